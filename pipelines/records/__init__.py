"""Records: their shapes, and the readers of files with records."""
