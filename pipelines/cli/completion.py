"""What the shell offers when somebody presses Tab. The names come from experiments.yaml as it is written, unchecked: checking it
would load more than a key stroke has time for."""

import os
from argparse import Action, ArgumentParser
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

REQUEST = "_ARGCOMPLETE"  # set by argcomplete's function in the shell


def answer(parser: Callable[[], ArgumentParser]) -> None:
    """Where the shell asks for completions, print them and end the process; else do nothing."""
    if REQUEST in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser())


def offer(argument: Action, names: Callable[[], Iterable[str]]) -> None:
    """Have `argument` completed with `names`."""

    def completer(**_: Any) -> list[str]:
        return list(names())

    argument.completer = completer  # pyright: ignore[reportAttributeAccessIssue]: where argcomplete looks for it


def models() -> list[str]:
    return _names("models")


def methods() -> list[str]:
    return _names("methods")


def profiles() -> list[str]:
    return ["auto", *_names("profiles")]


def providers() -> list[str]:
    return _names("providers")


def cells() -> list[str]:
    """The cells that were ever trained, as MODEL/METHOD."""
    from pipelines.lake.paths import data_root

    return [f"{folder.parent.name}/{folder.name}" for folder in sorted(data_root().cells.glob("*/*/"))]


def _names(section: str) -> list[str]:
    import yaml

    from pipelines.errors import UsageError
    from pipelines.lake.paths import experiments_file

    with suppress(
        UsageError, OSError, ValueError, yaml.YAMLError
    ):  # the command itself says what is wrong with the file
        data = yaml.load(experiments_file().read_bytes(), Loader=yaml.CSafeLoader)
        entries = data.get(section) if isinstance(data, dict) else None
        return [str(name) for name in entries] if isinstance(entries, dict) else []
    return []
