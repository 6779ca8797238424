"""`featherweight tune`."""

from argparse import ArgumentParser

from pipelines.cli.arguments import add_cell, add_profile, rate, whole
from pipelines.cli.command import OK, Arguments, Command, Stage
from pipelines.cli.working import keys_of, project_now
from pipelines.errors import UsageError

MOST_RATE = 100.0  # no learning rate is near it


def tune(arguments: Arguments) -> int:
    from pipelines.extras.tune.tune import Range, tune

    project = project_now(arguments.profile)
    if (arguments.low is None) != (arguments.high is None):
        raise UsageError("--low and --high go together: the least and the highest learning rate to try")
    asked = None if arguments.low is None else Range(arguments.low, arguments.high)
    if asked and not 0 < asked.low < asked.high < MOST_RATE:
        raise UsageError(f"--low {asked.low:g} --high {asked.high:g}: expected 0 < low < high < {MOST_RATE:g}")
    seeds = None if arguments.seed is None else [arguments.seed]
    (key, *_) = keys_of(project, arguments.model, arguments.method, seeds)
    found = tune(project.resolve(), key, trials=arguments.trials, asked=asked, tell=print)
    print(f"\nbest of {found.trials} trials: {found.rate:.2e}, loss {found.loss:.4f} on the slice held back from train")
    if found.at_edge:
        print("it lies at the edge of what was tried: run again with --low and --high moved that way")
    print(f"\n# experiments.yaml\n{found.yaml()}")
    return OK


def _tune_arguments(parser: ArgumentParser) -> None:
    add_cell(parser)
    parser.add_argument(
        "--trials", type=whole(1), default=12, metavar="N", help="in all, with those done before; default 12"
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
                "It goes on where it stopped.",
            ),
        ),
    ),
)
