"""Which examples a profile trains and evaluates on: by language, then capped in an order that never depends on the others."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipelines.clean.reading import reading, table
from pipelines.lake.files import stable_hash


@dataclass(frozen=True)
class Selection:
    """What to take of examples.parquet: these languages (None: all), at most so many of each side (None: all), and for
    training only the records of one provider (None: of all sources)."""

    languages: list[str] | None = None
    max_train: int | None = None
    max_eval: int | None = None
    provider: str | None = None


@dataclass(frozen=True)
class Selected:
    """What is trained and evaluated on, and where and how it was chosen."""

    train: list[dict[str, Any]]
    eval: list[dict[str, Any]]
    examples: Path
    selection: Selection

    def narrowed(self, provider: str | None, max_train: int | None) -> "Selected":
        """The same evaluation, but training on one provider's records (None: of all), at most so many (None: all)."""
        if (provider, max_train) == (self.selection.provider, self.selection.max_train):
            return self
        return select(self.examples, replace(self.selection, provider=provider, max_train=max_train))

    @cached_property
    def data_fingerprint(self) -> str:
        """Hash of the content that is trained on, in any order."""
        return _content_hash(self.train)

    @cached_property
    def eval_fingerprint(self) -> str:
        """Hash of the content that is evaluated on, in any order."""
        return _content_hash(self.eval)


def select(examples: Path, selection: Selection) -> Selected:
    """The chosen examples of each side. Of a file of any size only what is chosen is read whole.

    Raises:
        UsageError: the file cannot be read.
    """
    keys = table(examples, ["example_id", "language", "split", "provider"]).to_pylist()
    if selection.languages:
        keys = [key for key in keys if key["language"] in selection.languages]
    keys.sort(key=lambda key: hashlib.sha256(key["example_id"].encode()).digest())
    train = [k["example_id"] for k in keys if k["split"] == "train" and selection.provider in (None, k["provider"])]
    held_out = [key["example_id"] for key in keys if key["split"] == "eval"]
    chosen = (train[: selection.max_train], held_out[: selection.max_eval])
    rows = {row["example_id"]: row for row in _rows(examples, [name for side in chosen for name in side])}
    trained, evaluated = ([rows[name] for name in side] for side in chosen)
    return Selected(trained, evaluated, examples, selection)


def _rows(examples: Path, example_ids: list[str]) -> list[dict[str, Any]]:
    with reading(examples), duckdb.connect() as db:
        db.register("chosen", pa.table({"example_id": pa.array(example_ids, pa.string())}))
        db.read_parquet(str(examples)).create_view("examples")
        return db.sql("SELECT * FROM examples SEMI JOIN chosen USING (example_id)").to_arrow_table().to_pylist()


def _content_hash(rows: list[dict[str, Any]]) -> str:
    content = ("example_id", "instruction", "input", "output", "messages")
    return stable_hash(sorted([row[name] or "" for name in content] for row in rows))
