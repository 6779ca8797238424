"""The work of `featherweight export`."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.errors import UsageError
from pipelines.extras.export import push
from pipelines.extras.export.cell import Export, ExportRequest
from pipelines.extras.export.cell import export as export_cell
from pipelines.project import Project
from pipelines.runs.cells import CellKey

Row = Mapping[str, Any]


def run(
    project: Project, keys: Sequence[CellKey], arguments: argparse.Namespace, published: Callable[[], Sequence[Row]]
) -> bool:
    """Export the cells and print the paths; returns whether all exports succeeded. `published`
    returns the rows of the comparison, for model cards.

    Raises:
        UsageError: conflicting options, or a cell that cannot be exported.
        WorkError: the hub cannot be reached or refuses the request.
    """
    _require_consistent(keys, arguments)
    request, ok = _request(arguments), True
    if arguments.push:
        push.require_ready(arguments.push, yes=arguments.yes)
    resolved, rows = project.resolve(), _rows(published)
    for key in keys:
        outcome = export_cell(resolved, key, replace(request, row=rows.get((key.model, key.method))))
        for line in _report_lines(key, outcome):
            print(line)
        if not outcome.ok:
            print(f"{key}: {outcome.result.status_detail}", file=sys.stderr)
        elif arguments.push:
            upload = push.Upload(arguments.push, files_of(outcome, request), public=arguments.public)
            push.run(upload, yes=arguments.yes, say=print)
        ok = ok and outcome.ok
    return ok


def _require_consistent(keys: Sequence[CellKey], arguments: argparse.Namespace) -> None:
    seeds = ", ".join(str(key.seed) for key in keys)
    for option in ("output", "push"):
        if getattr(arguments, option) and len(keys) > 1:
            raise UsageError(f"--{option} holds one seed's export: name it with --seed ({seeds})")
    if arguments.push and arguments.adapter and arguments.merge:
        raise UsageError("--push: a repository holds an adapter or merged weights: leave out --adapter or --merge")
    for option in ("yes", "public"):
        if getattr(arguments, option) and not arguments.push:
            raise UsageError(f"--{option} goes with --push OWNER/NAME")


def _request(arguments: argparse.Namespace) -> ExportRequest:
    schemes = list(dict.fromkeys(arguments.gguf or (["F16"] if arguments.ollama else [])))
    merged = arguments.merge or not (schemes or arguments.adapter)
    output = Path(arguments.output) if arguments.output else None
    options = {"adapter": arguments.adapter, "ollama": arguments.ollama}
    return ExportRequest(merged, schemes, output, **options, reuse=bool(arguments.push))


def _rows(published: Callable[[], Sequence[Row]]) -> dict[tuple[str, str], Row]:
    """The published rows by cell; empty if nothing was published yet."""
    try:
        return {(row["model"], row["method"]): row for row in published()}
    except UsageError:
        return {}


def _report_lines(key: CellKey, outcome: Export) -> list[str]:
    lines = [f"{key}: {outcome.result.status}"]
    if outcome.ok:
        folders = [folder for folder in (outcome.adapter, outcome.merged) if folder]
        lines += [f"  {path}" for path in (*folders, *outcome.gguf.values(), *outcome.modelfiles.values())]
        for name, value in outcome.result.measured.items():
            if name.endswith(("_per_byte", "_nats")):
                lines.append(f"  {name.replace('_', ' ')}: {value:.6g}")
        if peak := outcome.result.measured.get("merge_peak_gb"):
            lines.append(
                f"  merged within {peak:.2f} GB, predicted {outcome.result.measured['merge_foretold_gb']:.2f} GB"
            )
    return lines


def files_of(outcome: Export, request: ExportRequest) -> dict[str, Path]:
    """The files of an export for a repository, by their path there: the folder's files, GGUF files
    and Modelfiles."""
    folder = outcome.adapter or (outcome.merged if request.merged else None)
    files = (
        {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        if folder
        else {}
    )
    for gguf in outcome.gguf.values():
        files[gguf.name] = gguf
        files.setdefault("README.md", gguf.with_suffix(".md"))
    return {**files, **{path.name: path for path in outcome.modelfiles.values()}}
