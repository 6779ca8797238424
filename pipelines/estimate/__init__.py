"""Predicts the peak memory of a training cell without weights, by running the real step on
tensors without bytes."""
