"""The examples that a profile trains and evaluates on: filtered by language, then capped in a
stable order."""

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
    """A selection from examples.parquet. None always means all.

    `languages`: only these. `max_train` and `max_eval`: at most so many of each side. `provider`:
    train only on the records of one provider.
    """

    languages: list[str] | None = None
    max_train: int | None = None
    max_eval: int | None = None
    provider: str | None = None


@dataclass(frozen=True)
class Selected:
    """The examples of both sides, the file they come from, and their selection."""

    train: list[dict[str, Any]]
    eval: list[dict[str, Any]]
    examples: Path
    selection: Selection

    def narrowed(self, provider: str | None, max_train: int | None) -> "Selected":
        """The same evaluation, but training on one provider's records (None: of all), at most so
        many (None: all)."""
        if (provider, max_train) == (self.selection.provider, self.selection.max_train):
            return self
        return select(self.examples, replace(self.selection, provider=provider, max_train=max_train))

    @cached_property
    def data_fingerprint(self) -> str:
        """Hash of the content of the train side, independent of its order."""
        return _content_hash(self.train)

    @cached_property
    def eval_fingerprint(self) -> str:
        """Hash of the content of the eval side, independent of its order."""
        return _content_hash(self.eval)


def select(examples: Path, selection: Selection) -> Selected:
    """The selected examples of each side. Only these are read in full, whatever the size of the
    file.

    Their order is by a hash of each example's id, so it does not depend on the other examples.

    Raises:
        UsageError: the file cannot be read.
    """
    keys = table(examples, ["example_id", "language", "split", "provider"]).to_pylist()
    if selection.languages:
        keys = [key for key in keys if key["language"] in selection.languages]
    keys.sort(key=lambda key: hashlib.sha256(key["example_id"].encode()).digest())
    train = [k["example_id"] for k in keys if k["split"] == "train" and selection.provider in (None, k["provider"])]
    held_out = [key["example_id"] for key in keys if key["split"] == "eval"]
    sides = (train[: selection.max_train], held_out[: selection.max_eval])
    rows = {row["example_id"]: row for row in _rows(examples, [name for side in sides for name in side])}
    trained, evaluated = ([rows[name] for name in side] for side in sides)
    return Selected(trained, evaluated, examples, selection)


def _rows(examples: Path, example_ids: list[str]) -> list[dict[str, Any]]:
    with reading(examples), duckdb.connect() as db:
        db.register("chosen", pa.table({"example_id": pa.array(example_ids, pa.string())}))
        db.read_parquet(str(examples)).create_view("examples")
        return db.sql("SELECT * FROM examples SEMI JOIN chosen USING (example_id)").to_arrow_table().to_pylist()


def _content_hash(rows: list[dict[str, Any]]) -> str:
    content = ("example_id", "instruction", "input", "output", "messages")
    return stable_hash(sorted([row[name] or "" for name in content] for row in rows))
