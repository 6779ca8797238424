"""Cells as Ray jobs: the driver's half, the node's half, and the files between them."""

from pipelines.runs.launchers.ray.launcher import RayLauncher

LAUNCHER = RayLauncher
