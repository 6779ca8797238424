"""What `featherweight export` does with its arguments."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.errors import UsageError
from pipelines.extras.export import push
from pipelines.extras.export.cell import Export, Wanted
from pipelines.extras.export.cell import export as export_cell
from pipelines.project import Project
from pipelines.runs.cells import CellKey

Row = Mapping[str, Any]


def run(
    project: Project, keys: Sequence[CellKey], arguments: argparse.Namespace, published: Callable[[], Sequence[Row]]
) -> bool:
    """Export the cells and say where to; whether all went well. `published` gives the rows of the comparison, for model cards.

    Raises:
        UsageError: the options do not go together, or a cell cannot be exported.
        WorkError: the hub cannot be reached, or refuses.
    """
    _require_together(keys, arguments)
    wanted, ok = _wanted(arguments), True
    if arguments.push:
        push.require_ready(arguments.push, yes=arguments.yes)
    resolved, rows = project.resolve(), _rows(published)
    for key in keys:
        made = export_cell(resolved, key, replace(wanted, row=rows.get((key.model, key.method))))
        for line in _told(key, made):
            print(line)
        if not made.ok:
            print(f"{key}: {made.result.status_detail}", file=sys.stderr)
        elif arguments.push:
            upload = push.Upload(arguments.push, files_of(made, wanted), public=arguments.public)
            push.run(upload, yes=arguments.yes, say=print)
        ok = ok and made.ok
    return ok


def _require_together(keys: Sequence[CellKey], arguments: argparse.Namespace) -> None:
    seeds = ", ".join(str(key.seed) for key in keys)
    for option in ("output", "push"):
        if getattr(arguments, option) and len(keys) > 1:
            raise UsageError(f"--{option} holds one seed's export: name it with --seed ({seeds})")
    if arguments.push and arguments.adapter and arguments.merge:
        raise UsageError("--push: a repository holds an adapter or merged weights: leave out --adapter or --merge")
    for option in ("yes", "public"):
        if getattr(arguments, option) and not arguments.push:
            raise UsageError(f"--{option} goes with --push OWNER/NAME")


def _wanted(arguments: argparse.Namespace) -> Wanted:
    schemes = list(dict.fromkeys(arguments.gguf or (["F16"] if arguments.ollama else [])))
    merged = arguments.merge or not (schemes or arguments.adapter)
    output = Path(arguments.output) if arguments.output else None
    asked = {"adapter": arguments.adapter, "ollama": arguments.ollama}
    return Wanted(merged, schemes, output, **asked, reuse=bool(arguments.push))


def _rows(published: Callable[[], Sequence[Row]]) -> dict[tuple[str, str], Row]:
    """The published rows by cell; none where nothing was published yet."""
    try:
        return {(row["model"], row["method"]): row for row in published()}
    except UsageError:
        return {}


def _told(key: CellKey, made: Export) -> list[str]:
    lines = [f"{key}: {made.result.status}"]
    if made.ok:
        folders = [folder for folder in (made.adapter, made.merged) if folder]
        lines += [f"  {path}" for path in (*folders, *made.gguf.values(), *made.modelfiles.values())]
        for name, value in made.result.measured.items():
            if name.endswith(("_per_byte", "_nats")):
                lines.append(f"  {name.replace('_', ' ')}: {value:.6g}")
        if peak := made.result.measured.get("merge_peak_gb"):
            lines.append(f"  merged within {peak:.2f} GB, foretold {made.result.measured['merge_foretold_gb']:.2f} GB")
    return lines


def files_of(made: Export, wanted: Wanted) -> dict[str, Path]:
    """What of an export belongs into a repository, by its path there: the folder's files, GGUF files and Modelfiles beside them."""
    folder = made.adapter or (made.merged if wanted.merged else None)
    files = (
        {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        if folder
        else {}
    )
    for gguf in made.gguf.values():
        files[gguf.name] = gguf
        files.setdefault("README.md", gguf.with_suffix(".md"))
    return {**files, **{path.name: path for path in made.modelfiles.values()}}
