"""Looking after a project: doctor, prune, upgrade."""
