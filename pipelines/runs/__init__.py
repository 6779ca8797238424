"""The one way to run a child in a folder and to say how it ended."""
