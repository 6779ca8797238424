"""Which examples a profile trains and evaluates on: by language, then capped in an order that never depends on the others."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as parquet

from pipelines.files import stable_hash


@dataclass(frozen=True)
class Selection:
    """What to take of examples.parquet: these languages (None: all), at most so many of each side (None: all)."""

    languages: list[str] | None = None
    max_train: int | None = None
    max_eval: int | None = None


@dataclass(frozen=True)
class Selected:
    train: list[dict[str, Any]]
    eval: list[dict[str, Any]]

    @property
    def data_fingerprint(self) -> str:
        """Hash of the content that is trained on, in any order."""
        return _content_hash(self.train)

    @property
    def eval_fingerprint(self) -> str:
        """Hash of the content that is evaluated on, in any order."""
        return _content_hash(self.eval)


def select(examples: Path, selection: Selection) -> Selected:
    """The chosen examples of each side. Of a file of any size only what is chosen is read whole."""
    keys = parquet.read_table(examples, columns=["example_id", "language", "split"]).to_pylist()
    if selection.languages:
        keys = [key for key in keys if key["language"] in selection.languages]
    keys.sort(key=lambda key: hashlib.sha256(key["example_id"].encode()).digest())
    sides = (("train", selection.max_train), ("eval", selection.max_eval))
    chosen = [[key["example_id"] for key in keys if key["split"] == side][:most] for side, most in sides]
    wanted = pa.table({"example_id": [name for side in chosen for name in side]})
    rows = {row["example_id"]: row for row in _rows(examples, wanted)}
    train, held_out = ([rows[name] for name in side] for side in chosen)
    return Selected(train=train, eval=held_out)


def _rows(examples: Path, wanted: pa.Table) -> list[dict[str, Any]]:
    with duckdb.connect() as db:
        db.register("wanted", wanted)
        db.read_parquet(str(examples)).create_view("examples")
        return db.sql("SELECT * FROM examples SEMI JOIN wanted USING (example_id)").to_arrow_table().to_pylist()


def _content_hash(rows: list[dict[str, Any]]) -> str:
    content = ("example_id", "instruction", "input", "output", "messages")
    return stable_hash(sorted([row[name] or "" for name in content] for row in rows))
