"""The one way to run a child in a folder and to record its ending."""
