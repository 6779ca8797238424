"""Cells as jobs of a Ray cluster: Ray's job server over HTTP, what travels to a node and back, the launcher, the node's half."""
