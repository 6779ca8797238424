"""Many cells of one model at once: `sweep` compares ranks or numbers of layers."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import TYPE_CHECKING

from pipelines.cli import completion
from pipelines.cli.arguments import add_choice, add_format, add_model, whole_numbers
from pipelines.cli.command import NOT_OK, OK, Arguments, Command
from pipelines.cli.working import rows_now
from pipelines.errors import UsageError

if TYPE_CHECKING:
    from pipelines.project import Project

# The ranks of a sweep that names none, as argparse would deliver them.
DEFAULT_RANKS = [[8, 128, 256]]


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

    if arguments.ranks is not DEFAULT_RANKS or arguments.alpha != "fixed" or arguments.targets:
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
        default=DEFAULT_RANKS,
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
        about="fixed: 32 at every rank (default); scaled: 4 × rank, so that a larger rank also learns faster; rslora: 16 at "
        "every rank, divided by the square root of the rank",
    )
    add_choice(parser, "--targets", "all-linear", "attention", about="default: the profile's setting")
    parser.add_argument(
        "--layers",
        type=whole_numbers(0, "numbers of layers, 0 or more, such as 0,4,8,12"),
        nargs="+",
        metavar="N",
        help="instead of ranks: remove N layers of the model; each is measured untouched and trained: 0,4,8,12",
    )
    methods = parser.add_argument(
        "--methods", metavar="M,M", help="with --layers; default: the untouched model, full, lora-r8, qlora-r8"
    )
    completion.offer(methods, completion.methods)
    add_format(parser)


COMMANDS = (
    Command(
        "sweep",
        "train LoRA at several ranks, or a model with fewer layers",
        sweep,
        _sweep_arguments,
        "Every cell is also evaluated; the table has loss, minutes and memory. Rank sweeps use dropout 0.1.",
    ),
)
