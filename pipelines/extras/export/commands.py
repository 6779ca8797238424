"""`featherweight export` and `featherweight bit-widths`."""

from argparse import ArgumentParser
from functools import partial

from pipelines.cli.arguments import add_cell, add_choice, add_force, add_seeds
from pipelines.cli.command import NOT_OK, OK, Arguments, Command, Stage
from pipelines.cli.working import keys_of, rows_now
from pipelines.extras.export.arguments import add_arguments as export_arguments

BIT_WIDTHS = ("fp32", "bf16", "int8", "nf4", "gguf-f16", "gguf-q8_0", "gguf-q4_k_m")


def export(arguments: Arguments) -> int:
    from pipelines.compare.compare import published_rows
    from pipelines.extras.export import command

    project = rows_now()
    keys = keys_of(project, arguments.model, arguments.method, arguments.seed)
    return OK if command.run(project, keys, arguments, partial(published_rows, project.data)) else NOT_OK


def _export_arguments(parser: ArgumentParser) -> None:
    add_cell(parser)
    add_seeds(parser)
    export_arguments(parser)


def bit_widths(arguments: Arguments) -> int:
    from pipelines.extras.export import bit_widths

    project, statuses = rows_now(), set()
    keys, resolved = keys_of(project, arguments.model, arguments.method, arguments.seed), project.resolve()
    for key in keys:
        rows = bit_widths.measure(resolved, key, arguments.format or bit_widths.FORMATS, force=arguments.force)
        print(f"{key}")
        for line in bit_widths.lines(rows):
            print(line)
        statuses |= {row["status"] for row in rows}
    return OK if statuses == {"ok"} else NOT_OK


def _bit_widths_arguments(parser: ArgumentParser) -> None:
    add_cell(parser)
    add_seeds(parser)
    add_choice(
        parser,
        "--format",
        *BIT_WIDTHS,
        action="append",
        metavar="FORMAT",
        about=f"{', '.join(BIT_WIDTHS)} (repeat for more); default: all",
    )
    add_force(parser, "measure again even if the last measurement is current")


STAGES = (
    Stage(
        "Taking away",
        (
            Command(
                "export",
                "write a trained result as weights, an adapter, GGUF; upload it",
                export,
                _export_arguments,
                "Plain weights for transformers, an adapter for PEFT, GGUF for llama.cpp and Ollama.",
            ),
            Command(
                "bit-widths",
                "measure a trained result at 32, 16, 8 and 4 bits",
                bit_widths,
                _bit_widths_arguments,
                "The formats include those of llama.cpp.",
            ),
        ),
    ),
)
