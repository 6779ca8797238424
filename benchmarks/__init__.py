"""Benchmarks of speed, memory and scale: `make bench` prints one JSON object a line."""
