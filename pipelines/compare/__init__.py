"""The comparison: one row per configured cell, published as a DuckDB file and a report that
anyone can read at any moment."""
