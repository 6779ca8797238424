"""Dagster only: thin assets named for what they make. Each loads its input, calls one plain function, returns metadata."""
