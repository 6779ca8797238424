"""data/topics.yaml: the topic grid, seeded samples that cover every axis evenly, and the rendered
prompts."""

import random
import re
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from math import prod
from pathlib import Path
from string import Formatter
from typing import Any, Literal

import jsonschema
from pydantic import Field, JsonValue, ValidationError, model_validator
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from pipelines.errors import UsageError
from pipelines.records.expected import NO_VALUE, expected_one_of, what_is_wrong
from pipelines.records.shapes.mapping import SHAPES, TURNS, map_fields
from pipelines.settings.strict import Strict
from pipelines.settings.yaml_file import MESSAGE_CHARS, Lines, cut, joined, read

Cell = dict[str, str]
JsonSchema = jsonschema.Draft202012Validator
PLAIN_FORM = re.compile(r"(?!.*\d{4})[^{}]*")


class TopicGrid(Strict):
    """The axes, those of them that name the topic of a cell, and the prompt of a cell for a record
    of `schema`.

    `record` maps an answer's fields to instruction, input and output if they have other names:
    `{instruction: "{question}", output: "{answer}"}`.
    """

    axes: dict[str, list[str]] = Field(min_length=1)
    languages: dict[str, str] = Field(default_factory=dict)
    topic: list[str] = Field(min_length=1)
    prompt: str
    system: str = ""
    # Not named `schema`: pydantic's BaseModel has a method of that name.
    record_schema: dict[str, JsonValue] = Field(alias="schema")
    record: dict[Literal["instruction", "input", "output"], str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _axes_exist(self) -> "TopicGrid":
        for axis, values in self.axes.items():
            if not values:
                raise ValueError(f"axis {axis!r} has no values")
            if twice := [value for value, count in Counter(values).items() if count > 1]:
                raise ValueError(f"axis {axis!r} has the value {cut(repr(twice[0]))} twice")
        for axis in self.topic:
            if axis not in self.axes:
                raise ValueError(f"topic names {axis!r}; {expected_one_of(axis, list(self.axes))}")
        if problem := _misfit(self.prompt, self.axes, "an axis"):
            raise ValueError(f"prompt: {problem}")
        try:
            self.render({axis: values[0] for axis, values in self.axes.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"prompt: {error}; expected the axes' names alone, such as {{{self.topic[0]}}}") from None
        return self

    @model_validator(mode="after")
    def _schema_and_record_fit(self) -> "TopicGrid":
        try:
            check_schema(self.record_schema)
        except jsonschema.SchemaError as error:
            raise ValueError(f"schema: not a JSON schema: {error.message}") from None
        fields = dict.fromkeys(self._names("properties"), "x")
        for name, template in self.record.items():
            if problem := _misfit(template, fields, "a field"):
                raise ValueError(f"record.{name}: {problem}")
        if problem := self._no_record():
            raise ValueError(problem)
        return self

    def _names(self, under: str) -> list[str]:
        names: Any = self.record_schema.get(under, [])
        return list(names)

    def _no_record(self) -> str | None:
        """Why no answer could become a record, judged by the field names; None if one could."""
        names = dict.fromkeys([*self._names("properties"), *self._names("required")], "x")
        if self.record:
            missing = [name for name in ("instruction", "output") if name not in self.record]
            return f"record: has no template for {' and '.join(missing)}" if missing else None
        if (
            not names
            or any(name in names for name in TURNS)
            or {"instruction", "output"} <= {*map_fields(names).fields}
        ):
            return None
        return (
            f"schema: its fields are {', '.join(names)}; expected {SHAPES}, or a mapping of the fields under `record`"
        )

    def render(self, cell: Cell) -> str:
        return self.prompt.format(**cell).strip()

    def topic_of(self, cell: Cell) -> str:
        return "/".join(cell[axis].lower().replace(" ", "-") for axis in self.topic)

    def language_of(self, cell: Cell) -> str | None:
        return self.languages.get(cell.get("language", ""))

    def sample(self, count: int, *, seed: int, languages: list[str] | None = None) -> list[Cell]:
        """`count` distinct cells, every value of every axis about equally often.

        A longer sample starts with the cells of a shorter one.

        Raises:
            UsageError: the grid has fewer than `count` cells.
        """
        if (size := self.size(languages)) < count:
            raise UsageError(f"data/topics.yaml: {count} topics wanted, the grid has {size}: add values to its axes.")
        return list(islice(self.cells(seed=seed, languages=languages), count))

    def cells(self, *, seed: int, languages: list[str] | None = None) -> Iterator[Cell]:
        """Every cell of the grid once, in the order of the samples."""
        axes, size = self._axes_in(languages), self.size(languages)
        streams = {axis: _shuffled_forever(values, random.Random(f"{seed}/{axis}")) for axis, values in axes.items()}
        used: set[tuple[str, ...]] = set()
        while len(used) < size:
            cell = {axis: next(stream) for axis, stream in streams.items()}
            if (values := tuple(cell.values())) not in used:
                used.add(values)
                yield cell

    def size(self, languages: list[str] | None = None) -> int:
        return prod(len(values) for values in self._axes_in(languages).values())

    def _axes_in(self, languages: list[str] | None) -> dict[str, list[str]]:
        axes = dict(self.axes)
        if languages and "language" in axes:
            axes["language"] = [value for value in axes["language"] if self.languages.get(value) in languages]
        return axes


def check_schema(schema: dict[str, Any]) -> None:
    """Reject a schema that cannot validate answers, before any answer is paid for.

    Raises:
        SchemaError: not a JSON schema, for instance because a pattern is not a regular expression.
        ValueError: a reference to nothing, or to itself.
    """
    JsonSchema.check_schema(schema, format_checker=JsonSchema.FORMAT_CHECKER)
    resolver = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
    parts: list[Any] = [schema]
    for part in parts:
        if isinstance(part, dict):
            if isinstance(reference := part.get("$ref"), str):
                try:
                    resolver.lookup(reference)
                except Unresolvable:
                    raise ValueError(f"schema: {reference!r} stands nowhere in it") from None
            parts.extend(part.values())
        elif isinstance(part, list):
            parts.extend(part)
    try:
        for answer in ({}, dict.fromkeys(schema.get("properties", {}), "x")):
            next(JsonSchema(schema).iter_errors(answer), None)
    except RecursionError:
        raise ValueError("schema: a $ref leads back to itself, so no answer could be checked") from None


def _shuffled_forever(values: list[str], rng: random.Random):
    while True:
        shuffled = list(values)
        rng.shuffle(shuffled)
        yield from shuffled


def load_topics(path: Path) -> TopicGrid:
    """Read and check data/topics.yaml.

    Raises:
        UsageError: the file is missing or not YAML, or has a wrong key or value. The message names
            its line.
    """
    content, lines = read(path, "it holds the grid of topics to generate for.")
    try:
        return TopicGrid.model_validate(content)
    except ValidationError as error:
        raise UsageError(joined([_explain(path, lines, item) for item in error.errors()])) from None


def _explain(path: Path, lines: Lines, item: Any) -> str:
    place, message = tuple(item["loc"]), what_is_wrong(item)
    if item["type"] == "unknown_key":
        place = (*place, item["ctx"]["key"])
    location = "" if not item["loc"] else f"{cut('.'.join(str(part) for part in place))}: "
    # The message of a check of the whole grid starts with the field's name.
    about = place or (message.partition(":")[0].partition(".")[0],)
    line = next((lines[about[:end]] for end in range(len(about), -1, -1) if about[:end] in lines), 1)
    got = "" if item["type"] in NO_VALUE else f" (got {cut(repr(item['input']))})"
    return f"{path}:{line}: {location}{cut(message, MESSAGE_CHARS)}{got}"


def _misfit(template: str, known: Collection[str], kind: str) -> str | None:
    """Why the template cannot be filled in from `known`; None if it can.

    Widths are limited, since one of nine digits would fill the memory.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        return f"{error}; write a literal brace twice"
    for _, field, form, _ in parts:
        if field is not None and field not in known:
            return f"{cut(repr(field))} is not {kind}; {expected_one_of('', list(known))}"
        if form and not PLAIN_FORM.fullmatch(form):
            return f"{{{field}:{cut(form)}}} has a format that is not supported; expected {{{field}}} alone, or a width below 1000"
    return None
