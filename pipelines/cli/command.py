"""A command: its name, a one-line description, its arguments and the function that runs it."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass

Arguments = Namespace
OK, NOT_OK = 0, 3


def _none(_: ArgumentParser) -> None:
    """Add nothing: the command takes no arguments."""


@dataclass(frozen=True)
class Command:
    """One command.

    `about` is the line in the list of commands; `details` follows it in the command's own help.
    `work` returns the exit code.
    """

    name: str
    about: str
    work: Callable[[Arguments], int]
    arguments: Callable[[ArgumentParser], None] = _none
    details: str = ""


@dataclass(frozen=True)
class Stage:
    """Related commands under one heading."""

    heading: str
    commands: tuple[Command, ...]
