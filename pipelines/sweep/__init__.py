"""Many cells of one model by one command: over ranks, over layers."""
