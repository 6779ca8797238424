"""Who starts a run's command and watches it: this machine, torchrun, a Ray cluster."""
