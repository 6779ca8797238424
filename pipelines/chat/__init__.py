"""Answers side by side, in the terminal and on a small local page: base models and trained
cells."""
