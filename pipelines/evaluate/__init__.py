"""Evaluation of a finished cell in a separate process: losses on held-out records, greedy
answers."""
