"""Where things lie and how they are written: folders, files, free space, the warehouse."""
