"""data/topics.yaml: the grid of topics, a seeded sample that covers every axis evenly, and the rendered prompts."""

import random
from collections.abc import Iterator
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, Literal

import jsonschema
import yaml
from pydantic import Field, ValidationError, model_validator
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from pipelines.errors import UsageError
from pipelines.records import explain
from pipelines.settings import Strict, expected_one_of
from pipelines.shapes.mapping import SHAPES, TURNS, map_fields

Cell = dict[str, str]
JsonSchema = jsonschema.Draft202012Validator


class TopicGrid(Strict):
    """The axes, which of them name a topic cell, and how a cell becomes a prompt for a record of `schema`.

    `record` says how an answer's fields become instruction, input and output, where they are not named so:
    `{instruction: "{question}", output: "{answer}"}`.
    """

    axes: dict[str, list[str]] = Field(min_length=1)
    languages: dict[str, str] = Field(default_factory=dict)
    topic: list[str] = Field(min_length=1)
    prompt: str
    system: str = ""
    # pydantic's own BaseModel has a method of this name
    record_schema: dict[str, Any] = Field(alias="schema")
    record: dict[Literal["instruction", "input", "output"], str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        known = ["axes", "languages", "topic", "prompt", "system", "schema", "record"]
        for key in data if isinstance(data, dict) else []:
            if key not in known:
                raise ValueError(f"unknown key {key!r}; {expected_one_of(str(key), known)}")
        return data

    @model_validator(mode="after")
    def _axes_exist(self) -> "TopicGrid":
        for axis, values in self.axes.items():
            if not values:
                raise ValueError(f"axis {axis!r} has no values")
            if twice := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"axis {axis!r} has the value {twice[0]!r} twice")
        for axis in self.topic:
            if axis not in self.axes:
                raise ValueError(f"topic names {axis!r}; {expected_one_of(axis, list(self.axes))}")
        try:
            self.render({axis: values[0] for axis, values in self.axes.items()})
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"prompt: {error} is not an axis; {expected_one_of('', list(self.axes))}") from None
        return self

    @model_validator(mode="after")
    def _schema_and_record_fit(self) -> "TopicGrid":
        try:
            check_schema(self.record_schema)
        except jsonschema.SchemaError as error:
            raise ValueError(f"schema: not a JSON schema: {error.message}") from None
        fields = dict.fromkeys(self.record_schema.get("properties", {}), "x")
        for name, template in self.record.items():
            try:
                template.format_map(fields)
            except (LookupError, AttributeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"record.{name}: {error} is not a field; {expected_one_of('', list(fields))}"
                ) from None
        if problem := self._no_record():
            raise ValueError(problem)
        return self

    def _no_record(self) -> str | None:
        """Why no answer could become a record, as far as the names tell."""
        names = dict.fromkeys([*self.record_schema.get("properties", {}), *self.record_schema.get("required", [])], "x")
        if self.record:
            missing = [name for name in ("instruction", "output") if name not in self.record]
            return f"record: says nothing of {' and '.join(missing)}" if missing else None
        if (
            not names
            or any(name in names for name in TURNS)
            or {"instruction", "output"} <= {*map_fields(names).fields}
        ):
            return None
        return f"schema: its fields are {', '.join(names)}; expected {SHAPES}, or say under `record` what becomes what"

    def render(self, cell: Cell) -> str:
        return self.prompt.format(**cell).strip()

    def topic_of(self, cell: Cell) -> str:
        return "/".join(cell[axis].lower().replace(" ", "-") for axis in self.topic)

    def language_of(self, cell: Cell) -> str | None:
        return self.languages.get(cell.get("language", ""))

    def sample(self, count: int, *, seed: int, languages: list[str] | None = None) -> list[Cell]:
        """`count` distinct cells, every value of every axis about equally often; a longer sample starts like a shorter.

        Raises:
            UsageError: the grid has fewer cells than asked for.
        """
        if (size := self.size(languages)) < count:
            raise UsageError(f"data/topics.yaml: {count} topics wanted, the grid has {size}: add values to its axes.")
        return list(islice(self.cells(seed=seed, languages=languages), count))

    def cells(self, *, seed: int, languages: list[str] | None = None) -> Iterator[Cell]:
        """Every cell of the grid once, in the order in which samples take them."""
        axes, size = self._axes_in(languages), self.size(languages)
        streams = {axis: _shuffled_forever(values, random.Random(f"{seed}/{axis}")) for axis, values in axes.items()}
        seen: set[tuple[str, ...]] = set()
        while len(seen) < size:
            cell = {axis: next(stream) for axis, stream in streams.items()}
            if (values := tuple(cell.values())) not in seen:
                seen.add(values)
                yield cell

    def size(self, languages: list[str] | None = None) -> int:
        return prod(len(values) for values in self._axes_in(languages).values())

    def _axes_in(self, languages: list[str] | None) -> dict[str, list[str]]:
        axes = dict(self.axes)
        if languages and "language" in axes:
            axes["language"] = [value for value in axes["language"] if self.languages.get(value) in languages]
        return axes


def check_schema(schema: dict[str, Any]) -> None:
    """Refuse what no answer could be checked by, before an answer is paid for.

    Raises:
        SchemaError: no JSON schema, a pattern that is no regular expression among others.
        ValueError: a reference to what is not there.
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


def _shuffled_forever(values: list[str], rng: random.Random):
    while True:
        deck = list(values)
        rng.shuffle(deck)
        yield from deck


def load_topics(path: Path) -> TopicGrid:
    """Read and check data/topics.yaml.

    Raises:
        UsageError: not there, not YAML, or a wrong key or value, which is named.
    """
    try:
        return TopicGrid.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; it holds the grid of topics to generate for.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {error}") from None
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error)}") from None
