"""Peak memory of a training cell, foretold without weights: the real step on tensors that have sizes but no bytes."""
