"""Results: `compare`, `table`, `decide`."""

from argparse import ArgumentParser
from contextlib import suppress

from pipelines.cli import completion
from pipelines.cli.arguments import add_format, model_and_method, not_negative
from pipelines.cli.command import NOT_OK, OK, Arguments, Command
from pipelines.cli.working import rows_now
from pipelines.errors import UsageError


def compare(_: Arguments) -> int:
    from pipelines.compare.compare import compare as publish
    from pipelines.compare.show import render
    from pipelines.compare.terminal import output_width

    publication = publish(rows_now())
    print(render(publication.rows, "text", publication.picks, output_width()))
    print(f"\nwarehouse: {publication.warehouse}\nreport:    {publication.report}")
    return OK


def table(arguments: Arguments) -> int:
    from pipelines.compare.compare import published_rows
    from pipelines.compare.show import render, wide
    from pipelines.compare.terminal import output_width
    from pipelines.lake.paths import data_root

    # The table can be read even if the configuration is wrong.
    with suppress(UsageError):
        rows_now()
    data = data_root()
    rows = published_rows(data)
    if arguments.wide:
        print(wide(rows, arguments.format))
        return OK
    print(render(rows, arguments.format, published_rows(data, "picks"), output_width()))
    return OK


def _table_arguments(parser: ArgumentParser) -> None:
    add_format(parser)
    parser.add_argument("--wide", action="store_true", help="every column, a table for each cell")


def decide(arguments: Arguments) -> int:
    from pipelines.compare.compare import decision
    from pipelines.compare.decide import Limits, in_words

    limits = Limits(arguments.memory, arguments.minutes, arguments.max_loss)
    outcome = decision(rows_now(), limits, arguments.also)
    print("\n".join(in_words(outcome)))
    return OK if outcome.verdict == "use" else NOT_OK


def _decide_arguments(parser: ArgumentParser) -> None:
    for name, unit, about in (
        ("--memory", "GB", "peak memory of training; default: any"),
        ("--minutes", "N", "time to train; default: any"),
        ("--max-loss", "X", "bits per byte above the best measured cell, at the interval's upper end; default: any"),
    ):
        parser.add_argument(name, type=not_negative, metavar=unit, help=about)
    also = parser.add_argument(
        "--also",
        type=model_and_method,
        metavar="MODEL/METHOD",
        action="append",
        default=[],
        help="also consider this cell outside the profile (repeat for more)",
    )
    completion.offer(also, completion.cells)


COMMANDS = (
    Command("compare", "rebuild and publish the comparison and the report", compare),
    Command(
        "table",
        "print the published comparison",
        table,
        _table_arguments,
        "A terminal shows the columns that fit, and the names of the others. A pipe or a file gets all columns, unless "
        "COLUMNS is set.",
    ),
    Command(
        "decide",
        "the cell to use within limits, or the cell to run next",
        decide,
        _decide_arguments,
        "Three outcomes: `use` names a cell that is certain to stay within the limits (exit code 0); `run next` names the cell "
        "whose run would decide (exit code 3); `no configured cell stays within these limits` (exit code 3). The lines below "
        "give the reasons.",
    ),
)
