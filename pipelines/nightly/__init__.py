"""What a night has to do: which cells are due and why, within which budget, and in which order."""
