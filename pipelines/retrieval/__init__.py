"""What stands in a prompt because it was looked up for it: documents cut into passages, rankings, and what makes text inert."""
