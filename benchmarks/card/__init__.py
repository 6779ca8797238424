"""Checks that only a card can answer: `python -m benchmarks card`.

They need a CUDA card, PyTorch and this checkout, but no Dagster, no hub and no network.

    command.py       the arguments, the order, the limit of the run, the exit code
    checks.py        every check: its question, its limit in seconds, its expectations
    runner.py        one check in a process of its own, killed with its children at its limit
    child.py         that process
    verdicts.py      expectations against observations, and the summary
    bench.py         the context of a check: the device, the time left, clocks
    models.py        shapes, random weights made on the device, a tokenizer, examples
    cells.py         training cells as the project starts them, and their measurements
    rates.py         the card's arithmetic rate
    ours.py          the few calls from the checks into the trainer's own functions
    grid.py          the grid of profile gpu, predicted against measured, and TRL

The other files are the checks.
"""
