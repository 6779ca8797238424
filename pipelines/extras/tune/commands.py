"""`featherweight tune`."""

from argparse import ArgumentParser

from pipelines.cli.arguments import add_cell, add_profile, rate, whole
from pipelines.cli.command import OK, Arguments, Command, Stage
from pipelines.cli.working import keys_of, project_now
from pipelines.errors import UsageError

# Far above any useful learning rate.
MAX_RATE = 100.0


def tune(arguments: Arguments) -> int:
    from pipelines.extras.tune.tune import Range, tune

    project = project_now(arguments.profile)
    if (arguments.low is None) != (arguments.high is None):
        raise UsageError("--low and --high go together: the lowest and the highest learning rate to try")
    span = None if arguments.low is None else Range(arguments.low, arguments.high)
    if span and not 0 < span.low < span.high < MAX_RATE:
        raise UsageError(f"--low {span.low:g} --high {span.high:g}: expected 0 < low < high < {MAX_RATE:g}")
    seeds = None if arguments.seed is None else [arguments.seed]
    (key, *_) = keys_of(project, arguments.model, arguments.method, seeds)
    result = tune(project.resolve(), key, trials=arguments.trials, bounds=span, tell=print)
    print(
        f"\nbest of {result.trials} trials: {result.rate:.2e}, loss {result.loss:.4f} on the slice held back from train"
    )
    if result.at_edge:
        print("it is at the edge of the range: run again with --low and --high moved in that direction")
    print(f"\n# experiments.yaml\n{result.yaml()}")
    return OK


def _tune_arguments(parser: ArgumentParser) -> None:
    add_cell(parser)
    parser.add_argument(
        "--trials", type=whole(1), default=12, metavar="N", help="total number, including earlier trials; default 12"
    )
    add_profile(parser)
    parser.add_argument("--low", type=rate, metavar="RATE", help="default: the configured rate / 10")
    parser.add_argument("--high", type=rate, metavar="RATE", help="default: the configured rate × 10")
    parser.add_argument("--seed", type=whole(), metavar="N", help="default: the profile's first")


STAGES = (
    Stage(
        "Training",
        (
            Command(
                "tune",
                "search a cell's learning rate on a slice of train (Optuna)",
                tune,
                _tune_arguments,
                "It continues after an interruption.",
            ),
        ),
    ),
)
