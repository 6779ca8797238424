"""The console script `featherweight`: every stage without Dagster, one module per stage.

Exit codes: 0 done, 1 the work failed, 2 bad usage or configuration,
3 finished and recorded, but the outcome is not ok.
Heavy imports wait until a command runs, so that help and completion appear at once.
"""

from argparse import ArgumentParser
from collections.abc import Sequence

# The commands of `extras/` import modules of this package, so it imports them only when it runs.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. `arguments`: those of the process if None."""
    from pipelines.cli import console

    return console.main(arguments)


def parser() -> ArgumentParser:
    """The parser of all commands."""
    from pipelines.cli import stages

    return stages.parser()
