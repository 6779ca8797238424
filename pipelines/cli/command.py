"""What a command is: its name, what it does in one line, its arguments and its work."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass

Arguments = Namespace
OK, NOT_OK = 0, 3


def _none(_: ArgumentParser) -> None:
    """Of a command without arguments."""


@dataclass(frozen=True)
class Command:
    """`about` is the line in the list of commands; `details` follows it in the command's own help. `work` returns the exit code."""

    name: str
    about: str
    work: Callable[[Arguments], int]
    arguments: Callable[[ArgumentParser], None] = _none
    details: str = ""


@dataclass(frozen=True)
class Stage:
    """Commands that belong together, under one heading."""

    heading: str
    commands: tuple[Command, ...]
