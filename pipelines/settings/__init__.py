"""experiments.yaml as typed, frozen settings."""
