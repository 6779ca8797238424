"""Using what was trained: `export`, `bit-widths`, `chat`."""

from argparse import ArgumentParser
from functools import partial

from pipelines.cli import completion
from pipelines.cli.arguments import add_cell, add_choice, add_force, add_seeds, not_negative, whole
from pipelines.cli.command import NOT_OK, OK, Arguments, Command
from pipelines.cli.working import keys_of, project_now, rows_now
from pipelines.export.arguments import add_arguments as export_arguments

BIT_WIDTHS = ("fp32", "bf16", "int8", "nf4", "gguf-f16", "gguf-q8_0", "gguf-q4_k_m")


def export(arguments: Arguments) -> int:
    from pipelines.compare.compare import published_rows
    from pipelines.export import command

    project = rows_now()
    keys = keys_of(project, arguments.model, arguments.method, arguments.seed)
    return OK if command.run(project, keys, arguments, partial(published_rows, project.data)) else NOT_OK


def _export_arguments(parser: ArgumentParser) -> None:
    add_cell(parser)
    add_seeds(parser)
    export_arguments(parser)


def bit_widths(arguments: Arguments) -> int:
    from pipelines.export import bit_widths

    project, statuses = rows_now(), set()
    keys, resolved = keys_of(project, arguments.model, arguments.method, arguments.seed), project.resolve()
    for key in keys:
        found = bit_widths.measure(resolved, key, arguments.format or bit_widths.ALL, force=arguments.force)
        print(f"{key}")
        for line in bit_widths.lines(found):
            print(line)
        statuses |= {row["status"] for row in found}
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
        about=f"{', '.join(BIT_WIDTHS)} (again for more); default: all",
    )
    add_force(parser, "also where the last measurement is current")


def chat(arguments: Arguments) -> int:
    from pipelines.chat.command import Wanted
    from pipelines.chat.command import chat as begin

    given = {name: value for name, value in vars(arguments).items() if name in Wanted.__dataclass_fields__}
    return begin(project_now(), Wanted(**given))


def _chat_arguments(parser: ArgumentParser) -> None:
    cells = parser.add_argument(
        "cells",
        nargs="*",
        metavar="MODEL/METHOD[@SEED]",
        help="the base of each model answers, too; default: what the comparison prefers",
    )
    completion.offer(cells, completion.cells)
    parser.add_argument(
        "--temperature", type=not_negative, default=0.0, metavar="T", help="0 (default): the likeliest token"
    )
    parser.add_argument("--max-new-tokens", type=whole(1), default=256, metavar="N", help="default 256")
    parser.add_argument("--system", default="", metavar="TEXT", help="a system prompt; default: none")
    parser.add_argument(
        "--now", dest="beside", action="store_true", help="also while a measurement runs, which that disturbs"
    )
    add_choice(
        parser, "--format", "text", "json", about="json: a line for each prompt that is piped in", default="text"
    )
    parser.add_argument("--page", action="store_true", help="on a page of this machine (127.0.0.1), with a blind vote")
    parser.add_argument("--port", type=whole(0), default=3100, metavar="N", help="of the page; default 3100")


COMMANDS = (
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
        "llama.cpp's formats are among them.",
    ),
    Command(
        "chat",
        "ask base and trained cells the same; see answers side by side",
        chat,
        _chat_arguments,
        "In the terminal, or with --page on a local page.",
    ),
)
