"""The registry of every column of the published tables: its type, meaning, unit, heading, and
where it comes from."""
