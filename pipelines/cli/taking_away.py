"""Using what was trained: `export`, `bit-widths`, `chat`."""

import sys
from argparse import ArgumentParser
from pathlib import Path

from pipelines.cli import completion
from pipelines.cli.arguments import add_cell, add_choice, add_force, add_seeds, not_negative, whole
from pipelines.cli.command import NOT_OK, OK, Arguments, Command
from pipelines.cli.working import keys_of, project_now, rows_now
from pipelines.errors import UsageError

GGUF = ("F32", "F16", "Q8_0", "Q4_K_M")
BIT_WIDTHS = ("fp32", "bf16", "int8", "nf4", "gguf-f16", "gguf-q8_0", "gguf-q4_k_m")


def export(arguments: Arguments) -> int:
    from pipelines.export.cell import Wanted
    from pipelines.export.cell import export as export_cell

    project, statuses = rows_now(), []
    schemes = list(dict.fromkeys(arguments.gguf or []))
    wanted = Wanted(arguments.merge or not schemes, schemes, Path(arguments.output) if arguments.output else None)
    keys = keys_of(project, arguments.model, arguments.method, arguments.seed)
    if wanted.output and len(keys) > 1:
        raise UsageError(
            f"--output holds one seed's export: name it with --seed ({', '.join(str(k.seed) for k in keys)})"
        )
    resolved = project.resolve()
    for key in keys:
        made = export_cell(resolved, key, wanted)
        result = made.result
        statuses.append(result.status)
        print(f"{key}: {result.status}")
        if not made.ok:
            print(f"{key}: {result.status_detail}", file=sys.stderr)
            continue
        for path in [*([made.merged] if made.merged else []), *made.gguf.values()]:
            print(f"  {path}")
        for name, value in result.measured.items():
            if name.endswith(("_per_byte", "_nats")):
                print(f"  {name.replace('_', ' ')}: {value:.6g}")
    return OK if set(statuses) == {"ok"} else NOT_OK


def _export_arguments(parser: ArgumentParser) -> None:
    add_cell(parser)
    add_seeds(parser)
    parser.add_argument("--merge", action="store_true", help="a transformers folder (the default without --gguf)")
    add_choice(
        parser,
        "--gguf",
        *GGUF,
        nargs="?",
        action="append",
        const="F16",
        about="for llama.cpp, at this precision (again for more); default: F16",
    )
    parser.add_argument("--output", metavar="DIR", help="default: exports/ of the data folder")


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
    Command("export", "write a trained result as plain weights, or GGUF for llama.cpp", export, _export_arguments),
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
