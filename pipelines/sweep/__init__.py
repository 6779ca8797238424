"""Runs many cells of one model by one command: over ranks or over layers."""
