"""The wording of errors: a pydantic error as a message with file, line, key and value."""

import re
from pathlib import Path
from typing import Any

from pipelines.records.expected import NO_VALUE, what_is_wrong
from pipelines.settings.yaml_file import MESSAGE_CHARS, Lines, cut, where


def without_password(text: str) -> str:
    """The text without the user and password of its URLs."""
    return re.sub(r"://[^/\s]*@", "://…@", text)


def explanation(path: Path, lines: Lines, item: Any) -> str:
    """The message for one error of pydantic."""
    # After the file's own keys pydantic adds the name of the union member that it tried.
    place = tuple(item["loc"])
    while place and place not in lines:
        place = place[:-1]
    if item["type"] == "missing":
        place = (*place, item["loc"][-1])
    if item["type"] == "unknown_key":
        place = (*place, item["ctx"]["key"])
    message = cut(what_is_wrong(item), MESSAGE_CHARS)
    value = cut(without_password(repr(item.get("input"))))
    shown = "" if item["type"] in NO_VALUE else f"got {value}; "
    return f"{where(path, lines, place)}: {shown}{message}"
