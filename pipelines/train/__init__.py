"""One cell: a model, a method, a seed. The parent decides and judges; the child trains in its own
process."""
