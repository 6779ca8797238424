"""Maintenance of a project: doctor, prune, upgrade."""
