"""Launchers, which start a run's command and watch it: on this machine, by torchrun, on a Ray or a
Slurm cluster."""
