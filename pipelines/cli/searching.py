"""Many cells at once: `tune` searches a learning rate, `sweep` compares ranks or numbers of layers."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import TYPE_CHECKING

from pipelines.cli import completion
from pipelines.cli.arguments import add_cell, add_choice, add_format, add_model, add_profile, rate, whole, whole_numbers
from pipelines.cli.command import NOT_OK, OK, Arguments, Command
from pipelines.cli.working import keys_of, project_now, rows_now
from pipelines.errors import UsageError

if TYPE_CHECKING:
    from pipelines.project import Project

MOST_RATE = 100.0  # no learning rate is near it
RANKS = [[8, 128, 256]]  # of a sweep that names none


def tune(arguments: Arguments) -> int:
    from pipelines.tune.tune import Range, tune

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


def sweep(arguments: Arguments) -> int:
    project = rows_now()
    model = arguments.model or project.settings.models[0]
    if arguments.layers:
        return _sweep_layers(project, model, arguments)
    if arguments.methods:
        raise UsageError("--methods belongs to --layers: a sweep over ranks makes its own methods")
    return _sweep_ranks(project, model, arguments)


def _sweep_ranks(project: Project, model: str, arguments: Arguments) -> int:
    from pipelines.compare.compare import compare as publish
    from pipelines.runs.progress import CellProgress
    from pipelines.sweep.ranks import run_sweep, table, with_ranks, write_picture

    ranks = [rank for part in arguments.ranks for rank in part]
    swept = with_ranks(project, model, ranks, alpha=arguments.alpha, targets=arguments.targets)
    rows = run_sweep(swept, on_tick=CellProgress().show, tell=print)
    publish(project)
    print(f"\n{table(rows, swept, arguments.format)}")
    print(f"\npicture: {write_picture(rows, swept)}", file=sys.stderr)
    return OK if all(row["status"] == "ok" for row in rows) else NOT_OK


def _sweep_layers(project: Project, model: str, arguments: Arguments) -> int:
    from pipelines.compare.compare import compare as publish
    from pipelines.runs.progress import CellProgress
    from pipelines.sweep.layers import run_sweep, table, with_layers, write_picture

    if arguments.ranks is not RANKS or arguments.alpha != "fixed" or arguments.targets:
        raise UsageError("--layers goes with --methods; --ranks, --alpha and --targets make methods of their own")
    counts = [count for part in arguments.layers for count in part]
    swept = with_layers(project, model, counts, arguments.methods and arguments.methods.split(","))
    rows = run_sweep(swept, on_tick=CellProgress().show, tell=print)
    publish(project)
    print(f"\n{table(rows, swept, arguments.format)}")
    if picture := write_picture(rows, swept):
        print(f"\npicture: {picture}", file=sys.stderr)
    return OK if all(row["status"] == "ok" for row in rows) else NOT_OK


def _sweep_arguments(parser: ArgumentParser) -> None:
    add_model(parser, "default: the profile's first", nargs="?")
    parser.add_argument(
        "--ranks",
        type=whole_numbers(1, "ranks of 1 or more, such as 8,128,256"),
        nargs="+",
        default=RANKS,
        metavar="R",
        help="2,8,32 or 2 8 32; default 8,128,256",
    )
    add_choice(
        parser,
        "--alpha",
        "fixed",
        "scaled",
        "rslora",
        default="fixed",
        about="fixed: 32 at every rank (default); scaled: 4 × rank, with which a larger rank also learns faster; rslora: 16 at "
        "every rank, divided by the root of the rank",
    )
    add_choice(parser, "--targets", "all-linear", "attention", about="default: what the profile says")
    parser.add_argument(
        "--layers",
        type=whole_numbers(0, "numbers of layers, 0 or more, such as 0,4,8,12"),
        nargs="+",
        metavar="N",
        help="instead of ranks: the model without so many of its layers, as it is and trained: 0,4,8,12",
    )
    methods = parser.add_argument(
        "--methods", metavar="M,M", help="with --layers; default: the untouched model, full, lora-r8, qlora-r8"
    )
    completion.offer(methods, completion.methods)
    add_format(parser)


COMMANDS = (
    Command(
        "tune",
        "search a cell's learning rate on a slice of train (Optuna)",
        tune,
        _tune_arguments,
        "It goes on where it stopped.",
    ),
    Command(
        "sweep",
        "train LoRA at several ranks, or a model with fewer layers",
        sweep,
        _sweep_arguments,
        "All of them are evaluated too; the table has loss, minutes and memory. Ranks are trained with dropout 0.1.",
    ),
)
