"""What only a card can answer: `python -m benchmarks card`. It needs a CUDA card, PyTorch and this checkout, and neither Dagster,
nor a hub, nor a network.

    command.py       the arguments, the order, the whole run's limit, the exit code
    checks.py        every check: what it asks, its limit in seconds, what is expected
    runner.py        one check in a process of its own, killed whole at its limit
    child.py         that process
    verdicts.py      expected against seen, and the summary
    bench.py         what every check is given: the device, the time left, clocks
    models.py        shapes, random weights made on the device, a tokenizer, examples
    cells.py         training cells as the project starts them, and what they measured
    rates.py         what the card's arithmetic reaches
    ours.py          the few places where the checks call the trainer's own functions
    grid.py          the grid of profile gpu, predicted beside measured, and TRL

The other files are the checks.
"""
