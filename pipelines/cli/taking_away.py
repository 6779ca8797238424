"""Using trained cells: `chat`. The commands of pipelines/extras appear under the same heading."""

from argparse import ArgumentParser

from pipelines.cli import completion
from pipelines.cli.arguments import add_choice, not_negative, whole
from pipelines.cli.command import Arguments, Command
from pipelines.cli.working import project_now


def chat(arguments: Arguments) -> int:
    from pipelines.chat.command import ChatOptions
    from pipelines.chat.command import chat as begin

    options = {name: value for name, value in vars(arguments).items() if name in ChatOptions.__dataclass_fields__}
    return begin(project_now(), ChatOptions(**options))


def _chat_arguments(parser: ArgumentParser) -> None:
    cells = parser.add_argument(
        "cells",
        nargs="*",
        metavar="MODEL/METHOD[@SEED]",
        help="the base of each model also answers; default: the cell that the comparison prefers",
    )
    completion.offer(cells, completion.cells)
    parser.add_argument(
        "--temperature", type=not_negative, default=0.0, metavar="T", help="0 (default): always the likeliest token"
    )
    parser.add_argument("--max-new-tokens", type=whole(1), default=256, metavar="N", help="default 256")
    parser.add_argument("--system", default="", metavar="TEXT", help="a system prompt; default: none")
    parser.add_argument(
        "--now", dest="beside", action="store_true", help="chat even during a measurement, and disturb it"
    )
    add_choice(parser, "--format", "text", "json", about="json: one line for each piped prompt", default="text")
    parser.add_argument("--page", action="store_true", help="open a local page (127.0.0.1) with a blind vote")
    parser.add_argument("--port", type=whole(0), default=3100, metavar="N", help="port of the page; default 3100")


COMMANDS = (
    Command(
        "chat",
        "put one prompt to base and trained cells, side by side",
        chat,
        _chat_arguments,
        "In the terminal, or with --page on a local page.",
    ),
)
