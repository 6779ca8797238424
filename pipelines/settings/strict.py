"""What every section of the configuration files shares: frozen, strict, and errors that list what is allowed."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from pipelines.settings.yaml_file import SHOWN_CHARS, cut

SLUG = r"^[a-z0-9][a-z0-9.-]*$"
Slug = Annotated[str, Field(pattern=SLUG)]
Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A frozen section of the file; a key it does not know is an error that lists those it does."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
    belongs_elsewhere: ClassVar[
        Mapping[str, str]
    ] = {}  # keys of other sections that people put here, and where they go

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in known:
                    expected = cls.belongs_elsewhere.get(str(key)) or expected_one_of(str(key), known)
                    message = f"unknown key {cut(repr(key))}; {expected}"
                    raise PydanticCustomError("unknown_key", "{message}", {"message": message, "key": str(key)})
        return data


class NamesFiles(Strict):
    """A section that names files or folders. A relative one lies beside the file that names it, wherever a command is started;
    `~` is the home folder. What was written stays as it is, since fingerprints are made of it."""

    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _note_folder(self, info: ValidationInfo) -> "NamesFiles":
        if info.context:
            self._folder = info.context["folder"]
        return self

    @property
    def folder(self) -> Path:
        """What a relative path is relative to."""
        return self._folder

    def placed(self, path: str) -> Path:
        """Where the file or folder that is named so lies."""
        return self._folder / os.path.expanduser(path)


# by pydantic's name of what is wrong with a value
EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping of names to values",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of at most 64 bits",
    "int_type": "a whole number",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "list_type": "a list",
    "model_type": "a mapping of names to values",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "string_too_short": "a text of {min_length} or more characters",
    "string_type": "a text",
    "too_long": "at most {max_length} of them",
    "too_short": "{min_length} of them or more",
}
NO_VALUE = ("missing", "value_error", "unknown_key")  # whose words stand without the value that was found


def what_is_wrong(item: Mapping[str, Any]) -> str:
    """An error of pydantic's (one of `ValidationError.errors()`) in our words, which name what was expected and no class."""
    kind, context = item["type"], item.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        return expected_one_of(str(item["input"]), allowed)
    if kind == "string_pattern_mismatch" and context["pattern"] == SLUG:
        return "expected small letters, digits, dots and dashes, a letter or a digit first"
    if kind in EXPECTED:
        return f"expected {EXPECTED[kind].format(**context)}"
    return str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")


def expected_one_of(value: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(value, allowed, n=1) if len(value) <= SHOWN_CHARS else []
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"expected one of {', '.join(allowed)}{hint}"
