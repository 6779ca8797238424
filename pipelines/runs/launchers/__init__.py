"""Launchers, which start and watch a run's command on this machine or on a cluster."""
