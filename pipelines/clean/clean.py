"""Clean raw records into examples (train | eval) and rejects, in SQL, and make the result current in one step.

accepted + rejected = read. The result does not depend on the order of the records. A record's side of the split is the hash
of the seed and its topic cell (else of its instruction and input), so it never changes when others come or go.
"""

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as parquet
from pydantic import ValidationError

from pipelines.clean.near_duplicates import clusters, near_duplicate_pairs
from pipelines.clean.read import CORPUS, GENERATED
from pipelines.clean.rules import field_rules
from pipelines.errors import WorkError
from pipelines.experiments import Cleaning
from pipelines.files import locked, read_json, replacing, stable_hash, write_json
from pipelines.paths import DataRoot
from pipelines.records import RawRecord, Record, explain

RAW_COLUMNS = pa.schema(
    [
        ("content_hash", pa.string()), ("source", pa.string()), ("provider", pa.string()), ("model", pa.string()),
        ("topic", pa.string()), ("language", pa.string()), ("instruction", pa.string()), ("input", pa.string()),
        ("output", pa.string()), ("messages", pa.string()), ("problem", pa.string()), ("record", pa.string()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class CleaningResult:
    """Where the current examples lie, and what became of the records: `read` = `accepted` + `rejected`."""

    folder: Path
    fingerprint: str
    read: int
    accepted: int
    rejected: int
    train: int
    eval: int
    reasons: dict[str, int]
    reused: bool = False


def clean(data: DataRoot, records: list[RawRecord], settings: Cleaning) -> CleaningResult:
    """Clean `records` and make the result the current one; where it already is, say so and write nothing.

    Raises:
        WorkError: no record was left to train or evaluate on, or the lake cannot be written. The last result stays current.
    """
    with duckdb.connect() as db:
        db.register("incoming", pa.Table.from_pylist(list(_rows(records)), schema=RAW_COLUMNS))
        _number_records(db)
        _reject(db, settings)
        _split(db, settings)
        return _publish(data, db, read=len(records))


def _rows(records: list[RawRecord]) -> Iterator[dict[str, Any]]:
    for raw in records:
        try:
            shown = json.dumps(raw.value, ensure_ascii=False, sort_keys=True, default=str)
            fields = _fields(raw.value) if raw.problem is None else {}
        except RecursionError:
            shown, fields = "", {"problem": raw.problem or "nested too deeply to be read"}
        row: dict[str, Any] = {
            "source": _storable(raw.source), "provider": raw.provider, "model": raw.model, "topic": raw.topic,
            "language": raw.language, "instruction": "", "input": "", "output": "", "messages": None,
            "problem": raw.problem, "record": _storable(shown),
        }  # fmt: skip
        row |= fields
        # over every column, so that records of equal id differ in nothing and their order cannot show
        row["content_hash"] = stable_hash(row)
        yield row


def _fields(value: Any) -> dict[str, Any]:
    """The checked fields of a record, or the problem it has."""
    try:
        record = Record.model_validate(value)
    except ValidationError as error:
        return {"problem": _storable(explain(error))}
    texts = {"instruction": record.instruction, "input": record.input, "output": record.output}
    named = {name: found for name in ("topic", "language") if (found := getattr(record, name))}
    messages = [message.model_dump() for message in record.messages or []]
    held = [*texts.values(), *named.values(), *(text for message in messages for text in message.values())]
    if any(_storable(text) != text for text in held):
        return {"problem": "text holds a lone surrogate or a NUL character"}
    fields: dict[str, Any] = {name: unicodedata.normalize("NFC", text) for name, text in texts.items()}
    fields["messages"] = json.dumps(messages, ensure_ascii=False) if messages else None
    return fields | named


def _storable(text: str) -> str:
    """`text` without what UTF-8 or DuckDB cannot hold: lone surrogates and NUL."""
    return text.encode("utf-8", errors="replace").decode("utf-8").replace("\0", "\ufffd")


def _number_records(db: duckdb.DuckDBPyConnection) -> None:
    """Give each record an id that does not depend on order, its normalized text, and its language where none is given."""
    normal = "trim(regexp_replace(lower(nfc_normalize({})), '\\s+', ' ', 'g'))"
    text = "concat_ws(' ', instruction, input, output)"
    letters = f"length(regexp_replace({text}, '[^\\p{{L}}]', '', 'g'))"
    hangul = f"length(regexp_replace({text}, '[^가-힣ㄱ-ㅎㅏ-ㅣ]', '', 'g'))"
    db.execute(f"""
        CREATE TEMP TABLE records AS
        SELECT * REPLACE (coalesce(language, CASE WHEN {hangul} >= 0.2 * greatest({letters}, 1) THEN 'ko' ELSE 'en' END)
                          AS language),
               format('{{}}-{{}}', content_hash, row_number() OVER (PARTITION BY content_hash)) AS record_id,
               {normal.format("concat_ws(chr(10), instruction, input)")} AS asked,
               {normal.format("concat_ws(chr(10), instruction, input, output, messages)")} AS normalized,
               NULL::VARCHAR AS reason, NULL::VARCHAR AS detail
        FROM incoming
    """)


def _reject(db: duckdb.DuckDBPyConnection, settings: Cleaning) -> None:
    for rule in field_rules(settings):
        db.execute(
            f"UPDATE records SET reason = '{rule.reason}', detail = {rule.detail}"
            f" WHERE reason IS NULL AND ({rule.condition})"
        )
    # Of equal records the one from the corpus is kept, then from files, then generated ones; then the smallest id.
    db.execute(f"""
        UPDATE records SET reason = 'exact_duplicate', detail = 'same as ' || kept
        FROM (SELECT record_id AS id, first_value(record_id) OVER (PARTITION BY normalized ORDER BY {_rank()}) AS kept
              FROM records WHERE reason IS NULL)
        WHERE record_id = id AND id <> kept
    """)
    _reject_near_duplicates(db, settings.near_duplicate_jaccard)


def _rank() -> str:
    """The stated order in which the best of several equal or similar records is kept."""
    return f"CASE source WHEN '{CORPUS}' THEN 0 WHEN '{GENERATED}' THEN 2 ELSE 1 END, length(output) DESC, record_id"


def _reject_near_duplicates(db: duckdb.DuckDBPyConnection, jaccard: float) -> None:
    db.execute("CREATE TEMP TABLE kept AS SELECT record_id, normalized FROM records WHERE reason IS NULL")
    pairs = near_duplicate_pairs(db, table="kept", jaccard=jaccard)
    if not pairs:
        return
    named = clusters(pairs)
    order = {
        row[0]: i for i, row in enumerate(db.execute(f"SELECT record_id FROM records ORDER BY {_rank()}").fetchall())
    }
    best: dict[str, str] = {}
    for record, cluster in named.items():
        best[cluster] = min(record, best.get(cluster, record), key=order.__getitem__)
    similarity = {(a, b): value for one, other, value in pairs for a, b in ((one, other), (other, one))}
    for record, cluster in named.items():
        keeper = best[cluster]
        if record == keeper:
            continue
        near = similarity.get((record, keeper))
        detail = f"like {keeper} (Jaccard {near:.3f})" if near else f"like {keeper} through others of its cluster"
        db.execute("UPDATE records SET reason = 'near_duplicate', detail = ? WHERE record_id = ?", [detail, record])


def _split(db: duckdb.DuckDBPyConnection, settings: Cleaning) -> None:
    """Put every kept record on its side; what a model generated only ever trains."""
    side = "('0x' || substr(md5(format('{}|{}', $seed, coalesce(topic, asked))), 1, 13))::UBIGINT / 16.0**13"
    db.execute(
        f"""
        CREATE TEMP TABLE examples AS
        SELECT substr(md5(normalized), 1, 16) AS example_id, instruction, input, output, messages, language, source,
               provider, model, topic,
               CASE WHEN source <> '{GENERATED}' AND {side} < $share THEN 'eval' ELSE 'train' END AS split, record_id
        FROM records WHERE reason IS NULL ORDER BY example_id
        """,
        {"seed": settings.split_seed, "share": settings.eval_share},
    )


def _publish(data: DataRoot, db: duckdb.DuckDBPyConnection, *, read: int) -> CleaningResult:
    examples = db.sql("SELECT * FROM examples").to_arrow_table()
    rejects = db.sql(
        "SELECT record_id, source, provider, reason, detail, record FROM records WHERE reason IS NOT NULL ORDER BY record_id"
    ).to_arrow_table()
    reasons = dict(
        db.execute(
            "SELECT reason, count(*) FROM records WHERE reason IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
        ).fetchall()
    )
    sides = dict(db.execute("SELECT split, count(*) FROM examples GROUP BY 1").fetchall())
    if not sides.get("train") or not sides.get("eval"):
        raise WorkError(
            f"cleaning kept {sides.get('train', 0)} train and {sides.get('eval', 0)} eval of {read} records (dropped: "
            f"{reasons or 'none'}); both sides need at least one. Bring more records or relax cleaning: in experiments.yaml."
        )
    fingerprint = stable_hash([examples.to_pylist(), rejects.to_pylist()])
    folder = data.clean / fingerprint
    current = {
        "fingerprint": fingerprint, "read": read, "accepted": examples.num_rows, "rejected": rejects.num_rows,
        "train": sides["train"], "eval": sides["eval"], "reasons": reasons,
    }  # fmt: skip
    with locked(data.locks / "clean.lock", "clean"):
        reused = read_json(data.clean / "current.json") == current and (folder / "rejects.parquet").exists()
        if not reused:
            _write_parquet(folder / "examples.parquet", examples)
            _write_parquet(folder / "rejects.parquet", rejects)
            write_json(data.clean / "current.json", current)
    return CleaningResult(folder=folder, reused=reused, **current)


def _write_parquet(path: Path, table: pa.Table) -> None:
    with replacing(path) as temporary:
        parquet.write_table(table, temporary)


def current(data: DataRoot) -> CleaningResult | None:
    """The current result, or None if nothing was cleaned yet."""
    found = read_json(data.clean / "current.json")
    return CleaningResult(folder=data.clean / found["fingerprint"], **found) if found else None


def examples(result: CleaningResult) -> list[dict[str, Any]]:
    return parquet.read_table(result.folder / "examples.parquet").to_pylist()


def rejects(result: CleaningResult) -> list[dict[str, Any]]:
    return parquet.read_table(result.folder / "rejects.parquet").to_pylist()
