"""Metrics of one's own task, as experiments.yaml names them: checked whole when the file is read, before an answer is scored.

What each means is said in pipelines/evaluate/metrics.py. None needs the model, only its answers.
"""

import json
import re
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationInfo, model_serializer, model_validator

from pipelines.records.expected import expected_one_of
from pipelines.settings.column_names import METRIC_ENDINGS, require_columns
from pipelines.settings.json_schemas import require_schema
from pipelines.settings.strict import NamesFiles
from pipelines.settings.yaml_file import cut

Word = Literal["exact_match", "contains", "json_valid"]
Kind = Word | Literal["json_schema", "regex"]
WORDS: tuple[str, ...] = get_args(Word)
FORMS = (*WORDS, "{json_schema: FILE}", "{regex: PATTERN}")
MOST_PATTERN = 1000  # characters: a longer one is a program
MOST_BYTES = 1_000_000  # of a schema


class Metric(NamesFiles):
    """One metric of a user's own task: a word such as exact_match alone, or exactly one of json_schema and regex."""

    kind: Kind = Field(default="regex", exclude=True)  # told by what is given
    json_schema: str | None = None
    """File with a JSON Schema that the whole answer must fit."""
    regex: str | None = Field(default=None, min_length=1, max_length=MOST_PATTERN)
    """Pattern of Python's re that must be found in the answer."""
    name: str | None = None
    """Name of the metric's columns. Unset: its kind."""

    @model_validator(mode="before")
    @classmethod
    def _by_its_form(cls, data: Any) -> Any:
        if isinstance(data, str) and data in WORDS:
            return {"kind": data}
        if not isinstance(data, dict):
            raise ValueError(f"got {cut(repr(data))}; {expected_one_of(str(data), list(FORMS))}")
        keys = ("json_schema", "regex", "name")
        if unknown := [key for key in data if key not in keys]:
            raise ValueError(f"unknown key {cut(repr(unknown[0]))}; {expected_one_of(str(unknown[0]), list(keys))}")
        kinds = [name for name in keys[:2] if data.get(name) is not None]
        if len(kinds) != 1:
            raise ValueError(f"got {' and '.join(kinds) or 'neither'}; expected one of json_schema and regex")
        return {**data, "kind": kinds[0]}

    @model_validator(mode="after")
    def _can_be_measured(self, info: ValidationInfo) -> "Metric":
        require_columns("metric", [self.column], METRIC_ENDINGS)
        if self.regex is not None:
            _require_pattern(self.regex)
        if self.json_schema is not None:
            _ = self.schema_text
        return self

    @model_serializer
    def _as_written(self) -> Any:
        """What is written is read again."""
        if self.kind in WORDS:
            return self.kind
        return {"name": self.name, self.kind: self.regex or self.json_schema}

    @property
    def column(self) -> str:
        """What names its columns."""
        return self.kind if self.name is None else self.name

    @cached_property
    def schema_text(self) -> str:
        """The content of the file of `json_schema`, read and checked once, when the settings are read.

        Raises:
            ValueError: it is not there, not JSON, not a JSON schema, or refers to what does not stand in it.
        """
        path = self.placed(self.json_schema or "")
        text = _read(path)
        try:
            schema = json.loads(text, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"json_schema: {path} is not JSON: {cut(str(error))}") from None
        try:
            require_schema(schema)
        except ValueError as error:
            raise ValueError(f"json_schema: {path}: {error}") from None
        return text


def _require_pattern(pattern: str) -> None:
    """Raises ValueError where `re` does not take the pattern."""
    try:
        with warnings.catch_warnings(action="ignore"):  # that another version may read it otherwise
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        reason = str(error) or "nested too deeply"
        raise ValueError(f"regex: {cut(repr(pattern))} is no pattern of Python's re: {reason}") from None


def _read(path: Path) -> str:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError(f"json_schema: {path} is no file; expected a file with a JSON schema")
    try:
        with path.open("rb") as handle:
            content = handle.read(MOST_BYTES + 1)
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"json_schema: {path} cannot be read: {why}; expected a file with a JSON schema") from None
    if len(content) > MOST_BYTES:
        raise ValueError(f"json_schema: {path} is larger than {MOST_BYTES / 1e6:g} MB; expected what people write")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"json_schema: {path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
