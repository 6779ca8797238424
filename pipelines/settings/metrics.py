"""Metrics of the user's task in experiments.yaml. Reading the file checks them completely, before
any answer is scored.

pipelines/evaluate/metrics.py defines each metric. A metric needs only the answers, not the model.
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
# A longer pattern would be a program.
MAX_PATTERN_CHARS = 1000
MAX_SCHEMA_BYTES = 1_000_000


class Metric(NamesFiles):
    """One metric of a user's own task: a single word such as exact_match, or exactly one of
    json_schema and regex."""

    # Derived from the other fields; not a key of the file.
    kind: Kind = Field(default="regex", exclude=True)
    json_schema: str | None = None
    """File with a JSON Schema that the whole answer must fit."""
    regex: str | None = Field(default=None, min_length=1, max_length=MAX_PATTERN_CHARS)
    """Pattern of Python's re that must be found in the answer."""
    name: str | None = None
    """Name of the metric's columns. Unset: its kind."""

    @model_validator(mode="before")
    @classmethod
    def _with_kind(cls, data: Any) -> Any:
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
    def _check_definition(self, info: ValidationInfo) -> "Metric":
        require_columns("metric", [self.column], METRIC_ENDINGS)
        if self.regex is not None:
            _require_pattern(self.regex)
        if self.json_schema is not None:
            _ = self.schema_text
        return self

    @model_serializer
    def _as_written(self) -> Any:
        """The form of the file, so that a dump can be read again."""
        if self.kind in WORDS:
            return self.kind
        return {"name": self.name, self.kind: self.regex or self.json_schema}

    @property
    def column(self) -> str:
        """The name in its columns."""
        return self.kind if self.name is None else self.name

    @cached_property
    def schema_text(self) -> str:
        """The content of the file of `json_schema`, read and checked once, together with the
        settings.

        Raises:
            ValueError: the file is missing, is not JSON, is not a JSON schema, or has a reference
                that leads nowhere.
        """
        path = self.placed(self.json_schema or "")
        text = _read(path)
        try:
            schema = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"json_schema: {path} is not JSON: {cut(str(error))}") from None
        try:
            require_schema(schema)
        except ValueError as error:
            raise ValueError(f"json_schema: {path}: {error}") from None
        return text


def _require_pattern(pattern: str) -> None:
    """Raises ValueError if `re` rejects the pattern."""
    try:
        # Python warns of patterns whose meaning may change in a later version.
        with warnings.catch_warnings(action="ignore"):
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        reason = str(error) or "nested too deeply"
        raise ValueError(f"regex: {cut(repr(pattern))} is no pattern of Python's re: {reason}") from None


def _read(path: Path) -> str:
    # Opening a pipe would block.
    if path.exists() and not path.is_file():
        raise ValueError(f"json_schema: {path} is no file; expected a file with a JSON schema")
    try:
        with path.open("rb") as handle:
            content = handle.read(MAX_SCHEMA_BYTES + 1)
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"json_schema: {path} cannot be read: {why}; expected a file with a JSON schema") from None
    if len(content) > MAX_SCHEMA_BYTES:
        raise ValueError(
            f"json_schema: {path} is larger than {MAX_SCHEMA_BYTES / 1e6:g} MB; expected a schema written by hand"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"json_schema: {path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
