"""The wording of errors: pydantic's errors as messages with the file, the line, the key and the value."""

import re
from pathlib import Path
from typing import Any

from pipelines.records.expected import NO_VALUE, what_is_wrong
from pipelines.settings.yaml_file import MESSAGE_CHARS, Lines, cut, where


def without_password(text: str) -> str:
    return re.sub(r"://[^/\s]*@", "://…@", text)


def explanation(path: Path, lines: Lines, item: Any) -> str:
    # pydantic adds the tried union member's name to the place; the file's own keys come first
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
