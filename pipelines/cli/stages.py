"""All commands by stage, and the parser built from them."""

import argparse
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules

from pipelines.cli import comparison, data, looking_after, planning, searching, taking_away, training
from pipelines.cli.command import Arguments, Command, Stage

CORE = (
    Stage("Data", data.COMMANDS),
    Stage("Training", (*planning.COMMANDS, *training.COMMANDS, *searching.COMMANDS)),
    Stage("Comparison", comparison.COMMANDS),
    Stage("Taking away", taking_away.COMMANDS),
    Stage("Looking after", looking_after.COMMANDS),
)


def _extra_stages() -> Iterator[Stage]:
    """The stages of the packages in pipelines/extras. The core names none of these packages."""
    folder = find_spec("pipelines.extras")
    for package in iter_modules(folder.submodule_search_locations if folder else None):
        yield from import_module(f"pipelines.extras.{package.name}.commands").STAGES


def _merged(core: Sequence[Stage], more: Sequence[Stage]) -> tuple[Stage, ...]:
    """Each stage of the core with the commands that the extras add to it."""
    added = {
        stage.heading: [one for other in more if other.heading == stage.heading for one in other.commands]
        for stage in core
    }
    return tuple(Stage(stage.heading, (*stage.commands, *added[stage.heading])) for stage in core)


STAGES = _merged(CORE, list(_extra_stages()))
COMMANDS = {command.name: command for stage in STAGES for command in stage.commands}
ABOUT = "Full fine-tuning, LoRA or QLoRA: one measured table."
MORE = """\
`featherweight COMMAND --help` lists the options of a command.
Exit codes: 0 done; 1 the work failed; 2 bad usage or configuration;
3 finished and recorded, but an outcome is not ok."""


class OverviewParser(argparse.ArgumentParser):
    """The parser of the whole command line, whose help lists the commands by stage."""

    def format_help(self) -> str:
        return "\n".join(_overview())


def parser() -> argparse.ArgumentParser:
    top = OverviewParser(prog="featherweight", description=ABOUT)
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=argparse.ArgumentParser)
    for command in COMMANDS.values():
        about = f"{command.about[0].upper()}{command.about[1:]}. {command.details}".strip()
        command.arguments(commands.add_parser(command.name, help=command.about, description=about))
    return top


def parse(argv: Sequence[str]) -> tuple[Arguments, Command | None]:
    """The parsed arguments and the command; the command is None if the line names none.

    Raises:
        UsageError: no such command.
        SystemExit: the command does not take these arguments (2), or the user asked for help (0).
    """
    top = parser()
    if name := next((word for word in argv if not word.startswith("-")), None):
        _require_known(name)
    arguments, unknown = top.parse_known_args(argv)
    command = COMMANDS.get(arguments.command)
    if unknown:
        _refuse(unknown, top, command)
    return arguments, command


def _require_known(name: str) -> None:
    from pipelines.errors import UsageError
    from pipelines.records.expected import expected_one_of

    if name not in COMMANDS:
        raise UsageError(f"unknown command {name!r}; {expected_one_of(name, list(COMMANDS))}")


def _refuse(unknown: Sequence[str], top: argparse.ArgumentParser, command: Command | None) -> None:
    """Exit with code 2, and suggest the closest existing option for each unknown one."""
    from difflib import get_close_matches

    usage = top
    if command:
        usage = argparse.ArgumentParser(prog=f"{top.prog} {command.name}")
        command.arguments(usage)
    known = re.findall(r"(?<![\w-])--[a-z][a-z-]*", usage.format_usage())
    messages = []
    for word in unknown:
        close = get_close_matches(word.partition("=")[0], known, n=1) if word.startswith("--") else []
        messages.append(f"{word} (did you mean {close[0]}?)" if close else word)
    usage.error(f"not known here: {', '.join(messages)}")


def _overview() -> Iterator[str]:
    width = max(map(len, COMMANDS)) + 2
    yield from ("usage: featherweight COMMAND …", "", ABOUT)
    for stage in STAGES:
        yield from ("", stage.heading)
        for command in stage.commands:
            yield f"  {command.name:<{width}}{command.about}"
    yield from ("", "Options", f"  {'--version':<{width}}print the version", f"  {'--help':<{width}}print this")
    yield from ("", MORE, "")
