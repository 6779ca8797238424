"""The result of a cleaning run in the lake.

`data/lake/clean/<fingerprint>/` holds examples, rejects and their summary as Parquet.
`current.json` names the folder that counts. The complete folder is renamed into place first, then
`current.json`.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import duckdb

from pipelines.clean import explain, reading
from pipelines.clean.stage import Staged
from pipelines.clean.work import Work
from pipelines.errors import UsageError, WorkError
from pipelines.lake.files import is_private, read_json, replacing, stable_hash, write_json
from pipelines.lake.paths import DataRoot

ACCEPTED = "accepted"
EXAMPLES = """
    SELECT substr(md5(normalized), 1, 16) AS example_id, instruction, input, output, messages, tools,
           coalesce(spoken.declared, spoken.language) AS language, source, provider, model, topic, side AS split, record_id,
           call_key
    FROM staged JOIN ranked USING (n) JOIN spoken USING (n) ANTI JOIN verdicts USING (n)
"""
REJECTS = """
    SELECT record_id, source, provider, model, topic,
           coalesce(spoken.declared, spoken.language, staged.language) AS language, call_key, reason, detail, twin, similarity,
           record
    FROM verdicts JOIN staged USING (n) JOIN ranked USING (n) LEFT JOIN spoken USING (n)
"""
SUMMARY = f"""
    SELECT *, records / sum(records) OVER (PARTITION BY source, provider) AS share
    FROM (SELECT source, provider, coalesce(reason, '{ACCEPTED}') AS reason, count(*) AS records
          FROM staged LEFT JOIN verdicts USING (n) GROUP BY ALL)
"""
Row = dict[str, Any]


@dataclass(frozen=True)
class CleaningResult:
    """The folder of the examples, and counts of the records: `read` = `accepted` + `rejected`.

    `shapes`: source → shape of its records → how many. `dropped_turns`: source → turns left out.
    `notes`: source → field or feature that was ignored or changed → how often. `warnings`: messages
    that the user should read.
    """

    folder: Path
    fingerprint: str
    read: int
    accepted: int
    rejected: int
    train: int
    eval: int
    reasons: dict[str, int]
    shapes: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped_turns: dict[str, int] = field(default_factory=dict)
    notes: dict[str, dict[str, int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    reused: bool = False


def publish(data: DataRoot, work: Work, staged: Staged) -> CleaningResult:
    """Write the result and make it current. If it already is, nothing is written.

    Raises:
        WorkError: no record is left to train or evaluate on, or the lake cannot be written. The
            last result stays current.
    """
    work.db.execute(
        f"CREATE VIEW examples AS {EXAMPLES}; CREATE VIEW rejects AS {REJECTS}; CREATE VIEW summary AS {SUMMARY}"
    )
    reasons = dict(work.db.execute("SELECT reason, count(*) FROM verdicts GROUP BY 1 ORDER BY 2 DESC, 1").fetchall())
    sides = dict(work.db.execute("SELECT split, count(*) FROM examples GROUP BY 1").fetchall())
    if not sides.get("train") or not sides.get("eval"):
        why = explain.nothing_left(work, staged, (sides.get("train", 0), sides.get("eval", 0)))
        raise WorkError(f"{why}\n{_keep_rejects(data, work)}The last result, if any, is untouched.")
    fingerprint = _fingerprint(work)
    folder = data.clean / fingerprint
    description = {
        "fingerprint": fingerprint, "read": staged.read, "accepted": sum(sides.values()), "rejected": sum(reasons.values()),
        "train": sides["train"], "eval": sides["eval"], "reasons": reasons,
        "shapes": {source: dict(sorted(shapes.items())) for source, shapes in sorted(staged.shapes.items())},
        "dropped_turns": {source: count for source, count in sorted(staged.dropped_turns.items()) if count},
        "notes": explain.notes(staged), "warnings": explain.warnings(work, staged),
    }  # fmt: skip
    reused = read_json(data.clean / "current.json") == description and folder.exists()
    if not reused:
        _write(work, folder)
        write_json(data.clean / "current.json", description)
    return CleaningResult(folder=folder, reused=reused, **description)


def _fingerprint(work: Work) -> str:
    """Hash of all examples and rejects, in any order: the exclusive or of a hash of each row (rows
    differ by `record_id`)."""
    hashes = [
        work.one(f"SELECT count(*), bit_xor(md5_number({table}::VARCHAR))::VARCHAR FROM {table}")
        for table in ("examples", "rejects")
    ]
    return stable_hash(hashes)


def _write(work: Work, folder: Path) -> None:
    # An existing folder is complete, and its name is the hash of its content.
    if folder.exists():
        return
    partial = work.folder / "result"
    partial.mkdir(mode=0o700 if is_private(folder) else 0o777)
    orders = {"examples": "example_id", "rejects": "record_id", "summary": "source, provider, records DESC, reason"}
    for table, order in orders.items():
        path = partial / f"{table}.parquet"
        work.db.execute(f"COPY (FROM {table} ORDER BY {order}) TO '{_quoted(path)}' (FORMAT parquet)")
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(folder)
    except OSError as error:
        raise WorkError(
            f"cannot put the examples into {folder.parent}: {error.strerror}. The last result is untouched; make the folder "
            "writable, on the same file system as its parent, then run the same command again."
        ) from error


def _keep_rejects(data: DataRoot, work: Work) -> str:
    """Save the rejects of a run that left nothing, since it has no result; returns a line that
    names the file, or ""."""
    path = data.clean / "failed" / "rejects.parquet"
    if not work.one("SELECT count(*) FROM rejects")[0]:
        return ""
    with suppress(WorkError), replacing(path) as temporary:
        work.db.execute(f"COPY (FROM rejects ORDER BY record_id) TO '{_quoted(temporary)}' (FORMAT parquet)")
        return f"Every reject: {path}\n"
    return ""


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def current(data: DataRoot) -> CleaningResult | None:
    """The current result, or None if nothing was cleaned yet.

    Raises:
        UsageError: the file that names it is damaged or cannot be read.
    """
    path = data.clean / "current.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        known = {one.name: description[one.name] for one in fields(CleaningResult) if one.name in description}
        return CleaningResult(**{**known, "folder": data.clean / description["fingerprint"], "reused": False})
    except FileNotFoundError:
        return None
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    except (ValueError, LookupError, TypeError, RecursionError):
        problem = "is damaged: it does not name the current examples"
    raise UsageError(f"{path} {problem}; remove it, then run `featherweight clean` to write it again.")


def examples(result: CleaningResult) -> list[Row]:
    """Every example. All of them are in memory, so this is for small results only."""
    return reading.table(result.folder / "examples.parquet").to_pylist()


def rejects(result: CleaningResult) -> list[Row]:
    """Every reject. All of them are in memory, so this is for small results only."""
    return reading.table(result.folder / "rejects.parquet").to_pylist()


def summary(result: CleaningResult) -> list[Row]:
    """Per source, provider and reason (`accepted` among them): records, and their share of that
    source and provider."""
    return reading.table(result.folder / "summary.parquet").to_pylist()


def queried(result: CleaningResult, query: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
    """The rows of a SQL query over the tables `examples` and `rejects` of a result."""
    with duckdb.connect() as db:
        for table in ("examples", "rejects"):
            db.read_parquet(str(result.folder / f"{table}.parquet")).create_view(table)
        return db.sql(query, params=dict(parameters or {})).to_arrow_table().to_pylist()
