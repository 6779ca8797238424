"""A finished cell's quality, in a process of its own: losses on held-out records and greedy answers."""
