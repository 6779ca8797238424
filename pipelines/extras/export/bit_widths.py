"""The cost of each bit width of a result: quality, size, latency, memory. Every format has one row,
with any outcome."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.compare.quantized import FORMATS, newest, rows
from pipelines.errors import UsageError
from pipelines.evaluate.cell import evaluated_by, spec_of
from pipelines.extras.export.cell import CHILD as EXPORT
from pipelines.extras.export.cell import ExportRequest, default_output, export, finished, is_written, run_of
from pipelines.lake.files import locked, stable_hash
from pipelines.lake.paths import DataRoot
from pipelines.lake.run_ids import new_run_id
from pipelines.project import Project, Resolved
from pipelines.records.expected import expected_one_of
from pipelines.runs.cells import Attempt, CellKey
from pipelines.runs.code import code_fingerprint
from pipelines.runs.result import write_result
from pipelines.runs.run import RunHooks, queue

CHILD = "pipelines.extras.export.measure"
Row = dict[str, Any]
GGUF = {"gguf-f16": "F16", "gguf-q8_0": "Q8_0", "gguf-q4_k_m": "Q4_K_M"}


def measure(
    resolved: Resolved,
    key: CellKey,
    formats: Sequence[str] = FORMATS,
    *,
    force: bool = False,
    hooks: RunHooks | None = None,
) -> list[Row]:
    """Measure the newest result of `key` in each of `formats` without a current row; returns the
    rows.

    Raises:
        UsageError: the cell is not ok, the weights here differ from those of its attempt, or a
            format is unknown.
    """
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"unknown format {name!r}; {expected_one_of(name, list(FORMATS))}.")
    project = resolved.project
    hooks, attempt, evaluated = hooks or RunHooks(), finished(project, key), evaluated_by(resolved).fingerprint
    resolved.require_same_weights(attempt, hooks.say)
    with locked(key.folder(project.data) / "bit-widths.lock", f"bit widths of {key}", say=hooks.say):
        missing = [name for name in formats if force or not _is_current(project, attempt, name, evaluated)]
        if missing:
            _measure_all(resolved, attempt, missing, evaluated, hooks)
    of_cell = [row for row in rows(project.data, project.experiments) if row["run_id"] == attempt.run_id]
    return [row for name in formats for row in of_cell if row["format"] == name]


def _measure_all(resolved: Resolved, attempt: Attempt, formats: Sequence[str], evaluated: str, hooks: RunHooks) -> None:
    project = resolved.project
    merged = default_output(project, attempt) / "merged"
    key = attempt.key
    plain = export(resolved, key, ExportRequest(merged=not is_written(merged, attempt)), hooks=hooks)
    schemes = [GGUF[name] for name in formats if name in GGUF]
    files = (
        export(resolved, key, ExportRequest(merged=False, gguf=schemes), hooks=hooks) if schemes and plain.ok else plain
    )
    for name in formats:
        home = _home(project.data, attempt) / name
        folder = home / new_run_id(home)
        gguf = files.gguf.get(GGUF[name]) if name in GGUF else None
        more = {
            "format": name,
            "merged": str(merged),
            "gguf": str(gguf) if gguf else None,
            "questions": str(plain.folder / "questions.json"),
        }
        spec = spec_of(resolved, attempt)
        prints = {"bit_widths": _fingerprint(attempt, name, evaluated)}
        queue(folder, replace(spec, fingerprints=prints, more={**spec.more, **more}), "measure")
        hooks.say(f"{key}: {name} …")
        exported = (files if name in GGUF else plain).result
        if exported.ok:
            run_of(resolved, folder, attempt, CHILD, hooks).to_result(project.site(hooks).here())
        else:
            write_result(folder, exported.status, exported.phase or "export", exported.status_detail)


def _home(data: DataRoot, attempt: Attempt) -> Path:
    key = attempt.key
    return data.lake / "bit_widths" / key.model / key.method / str(key.seed) / attempt.run_id


def _fingerprint(attempt: Attempt, name: str, evaluated: str) -> str:
    return stable_hash([attempt.run_id, name, evaluated, code_fingerprint(EXPORT, CHILD)])


def _is_current(project: Project, attempt: Attempt, name: str, evaluated: str) -> bool:
    last = newest(_home(project.data, attempt) / name)
    if last is None:
        return False
    return last.ok and last.fingerprints.get("bit_widths") == _fingerprint(attempt, name, evaluated)


def lines(rows: Sequence[Row]) -> list[str]:
    """The rows for a terminal; a dash means not measured."""
    head = f"{'format':<12} {'status':<13} {'bits/byte':>9} {'vs fp32':>9} {'MB':>8} {'p50 ms':>8} {'tok/s':>7} {'peak GB':>7}"
    lines = [head]
    for row in rows:
        numbers = [
            _number(row["bits_per_byte"], 9, 4), _number(row["bits_per_byte_vs_fp32"], 9, 4), _number(row["size_mb"], 8, 1),
            _number(row["p50_latency_ms"], 8, 0), _number(row["tokens_per_second"], 7, 1), _number(row["peak_memory_gb"], 7, 2),
        ]  # fmt: skip
        lines.append(f"{row['format']:<12} {row['status']:<13} {' '.join(numbers)}")
    lines += [f"{row['format']}: {row['detail']}" for row in rows if row["detail"]]
    return lines + list(dict.fromkeys(row["model_note"] for row in rows if row["model_note"]))


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'–' if value is None else format(value, f'.{digits}f'):>{width}}"
