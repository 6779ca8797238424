"""Dagster only: thin assets, named for their output. Each loads its input, calls one plain function
and returns metadata."""
