"""Shell completion. Names come from experiments.yaml as written.

The file is not validated here: validation would load more than a key stroke has time for.
"""

import os
from argparse import Action, ArgumentParser
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

# The shell function of argcomplete sets this environment variable.
REQUEST = "_ARGCOMPLETE"


def answer(parser: Callable[[], ArgumentParser]) -> None:
    """Print completions and end the process if the shell asks for them; otherwise do nothing."""
    if REQUEST in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser())


def offer(argument: Action, names: Callable[[], Iterable[str]]) -> None:
    """Complete `argument` with `names`."""

    def completer(**_: Any) -> list[str]:
        return list(names())

    # argcomplete looks for this attribute.
    argument.completer = completer  # pyright: ignore[reportAttributeAccessIssue]


def models() -> list[str]:
    return _names("models")


def methods() -> list[str]:
    return _names("methods")


def profiles() -> list[str]:
    return ["auto", *_names("profiles")]


def providers() -> list[str]:
    return _names("providers")


def cells() -> list[str]:
    """All cells with at least one attempt, as MODEL/METHOD."""
    from pipelines.lake.paths import data_root

    return [f"{folder.parent.name}/{folder.name}" for folder in sorted(data_root().cells.glob("*/*/"))]


def _names(section: str) -> list[str]:
    import yaml

    from pipelines.errors import UsageError
    from pipelines.lake.paths import experiments_file

    # The command itself reports what is wrong with the file.
    with suppress(UsageError, OSError, ValueError, yaml.YAMLError):
        data = yaml.load(experiments_file().read_bytes(), Loader=yaml.CSafeLoader)
        entries = data.get(section) if isinstance(data, dict) else None
        return [str(name) for name in entries] if isinstance(entries, dict) else []
    return []
