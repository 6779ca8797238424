"""CUDA cards, and the processes that train one cell together."""
