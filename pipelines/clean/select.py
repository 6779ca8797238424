"""Which examples a profile trains and evaluates on: by language, then capped in an order that never depends on the others."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from pipelines.files import stable_hash


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
    """`train` is what is trained on; `pool` all that could be, in the order in which caps take it."""

    train: list[dict[str, Any]]
    eval: list[dict[str, Any]]
    pool: list[dict[str, Any]] = field(default_factory=list)

    def narrowed(self, provider: str | None, max_train: int | None) -> "Selected":
        """The same evaluation and pool, but training on one provider's records (None: of all), at most so many (None: all)."""
        rows = [row for row in self.pool if provider in (None, row["provider"])]
        return replace(self, train=rows[:max_train])

    @property
    def data_fingerprint(self) -> str:
        """Hash of the content that is trained on, in any order."""
        return _content_hash(self.train)

    @property
    def eval_fingerprint(self) -> str:
        """Hash of the content that is evaluated on, in any order."""
        return _content_hash(self.eval)


def select(examples: Path, selection: Selection) -> Selected:
    rows = parquet.read_table(examples).to_pylist()
    if selection.languages:
        rows = [row for row in rows if row["language"] in selection.languages]
    rows.sort(key=lambda row: hashlib.sha256(row["example_id"].encode()).digest())
    pool = [row for row in rows if row["split"] == "train"]
    held_out = [row for row in rows if row["split"] == "eval"][: selection.max_eval]
    return Selected(train=pool, eval=held_out, pool=pool).narrowed(selection.provider, selection.max_train)


def _content_hash(rows: list[dict[str, Any]]) -> str:
    content = ("example_id", "instruction", "input", "output", "messages")
    return stable_hash(sorted([row[name] or "" for name in content] for row in rows))
