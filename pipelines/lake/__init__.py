"""Storage: folders, files, free space, the warehouse."""
