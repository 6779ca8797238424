"""Answers side by side, in the terminal and on a small local page: the base and the cells that were trained from it."""
