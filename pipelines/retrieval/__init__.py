"""Retrieval for prompts: documents cut into passages, rankings, and retrieved text made inert."""
