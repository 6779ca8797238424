"""One cell: a model, a method, a seed. The parent's half decides and judges; the child's half trains in a process alone."""
