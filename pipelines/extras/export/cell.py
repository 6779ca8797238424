"""The parent process of an export: it selects the result and the output, and runs the child."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.errors import UsageError
from pipelines.evaluate.cell import fetch_same_weights, spec_of
from pipelines.extras.export.model_card import METRICS
from pipelines.extras.export.modelfile import is_ours
from pipelines.lake.files import locked, read_json
from pipelines.lake.run_ids import new_run_id
from pipelines.lake.weights_record import RECORD
from pipelines.project import Project, Resolved
from pipelines.runs import cells
from pipelines.runs.cells import Attempt, CellKey
from pipelines.runs.code import code_fingerprint
from pipelines.runs.result import RunResult, result_in
from pipelines.runs.run import Run, RunHooks, queue
from pipelines.runs.spec import RunSpec, spec_in
from pipelines.settings.methods import traits_of

CHILD = "pipelines.extras.export.child"


@dataclass(frozen=True)
class Export:
    """One export: its run's folder and its output paths, whether they were written or not."""

    attempt: Attempt
    folder: Path
    merged: Path | None
    gguf: dict[str, Path]
    adapter: Path | None = None
    modelfiles: Mapping[str, Path] = field(default_factory=dict)

    @property
    def result(self) -> RunResult:
        return result_in(self.folder)

    @property
    def ok(self) -> bool:
        return self.result.ok


@dataclass(frozen=True)
class ExportRequest:
    """The options of an export.

    `merged`: a transformers folder. `gguf`: keys of gguf_file.SCHEMES. `output`: the folder to
    write to. `adapter`: only the adapter. `row`: the cell's row of the comparison, for the model
    card. `ollama`: a Modelfile beside each GGUF file. `reuse`: an equal newest export is not
    repeated.
    """

    merged: bool = True
    gguf: Sequence[str] = ()
    output: Path | None = None
    adapter: bool = False
    row: Mapping[str, Any] | None = None
    ollama: bool = False
    reuse: bool = False


def finished(project: Project, key: CellKey) -> Attempt:
    """The newest attempt at `key`.

    Raises:
        UsageError: it is not ok, or its model has random weights.
    """
    if project.experiments.model(key.model).origin.source.random:
        raise UsageError(f"{key.model} has random weights: there is nothing to export or compare.")
    attempt = cells.latest(project.data, key)
    if attempt is None or attempt.status != "ok":
        status = attempt.status if attempt else "missing"
        raise UsageError(
            f"{key} is {status}; only an ok cell is exported: run `featherweight train {key.model} {key.method}`."
        )
    return attempt


def export(resolved: Resolved, key: CellKey, request: ExportRequest, *, hooks: RunHooks | None = None) -> Export:
    """Export the newest result of `key` in a child process, under the cell's budget and time limit.

    Raises:
        UsageError: the cell is not ok, the weights here differ from those of its attempt, it lacks
            a requested adapter, or the output folder has files that are not ours to replace.
    """
    hooks, project = hooks or RunHooks(), resolved.project
    attempt = finished(project, key)
    if request.adapter:
        _require_adapter(attempt)
    resolved.require_same_weights(attempt, hooks.say)
    output = (request.output or default_output(project, attempt)).resolve()
    _require_ours(output, _modelfiles(request, output).values())
    with locked(key.folder(project.data) / "export.lock", f"export {key}", say=hooks.say):
        if request.output is None:
            _drop_superseded(output)
        full_request = _with_source(attempt, request, output)
        home = project.data.lake / "exports" / key.model / key.method / str(key.seed)
        outcome = Export(
            attempt,
            home / new_run_id(home),
            output / "merged" if full_request.merged else None,
            {scheme: output / f"{key.model}-{key.method}-{key.seed}.{scheme}.gguf" for scheme in full_request.gguf},
            output / "adapter" if full_request.adapter else None,
            _modelfiles(full_request, output),
        )
        spec = _spec(resolved, outcome, output, request.row)
        if request.reuse and (before := _reusable(home, spec, outcome)):
            return before
        queue(outcome.folder, spec)
        run_of(resolved, outcome.folder, attempt, CHILD, hooks).to_result(project.site(hooks).here())
    return outcome


def _require_ours(output: Path, modelfiles: Iterable[Path]) -> None:
    """Raise UsageError if the output folder has something that is not ours to replace."""
    others = [
        path for path in (output / "merged", output / "adapter") if path.exists() and not (path / RECORD).exists()
    ]
    others += [path for path in modelfiles if path.exists() and not is_ours(path)]
    if others:
        raise UsageError(f"{others[0]} exists and is not one of our exports: name another folder with --output.")


def _reusable(home: Path, spec: RunSpec, outcome: Export) -> Export | None:
    """The newest export in `home` if it has the same spec and its files still exist.

    The merged folder of a GGUF export may be older.
    """
    folders = sorted(path for path in home.iterdir() if path.is_dir()) if home.exists() else []
    if not folders:
        return None
    before, now = ({**one.to_json(), "run_id": ""} for one in (spec_in(folders[-1]), spec))
    if outcome.merged is None:
        before["merged"] = None
    same = json.dumps(before, sort_keys=True) == json.dumps(now, sort_keys=True)
    written = [*outcome.gguf.values(), *outcome.modelfiles.values(), *filter(None, (outcome.adapter, outcome.merged))]
    there = same and all(path.exists() for path in written)
    earlier = replace(outcome, folder=folders[-1])
    return earlier if there and earlier.ok else None


def default_output(project: Project, attempt: Attempt) -> Path:
    key = attempt.key
    return project.data.root / "exports" / key.model / key.method / str(key.seed) / attempt.run_id


def origin(attempt: Attempt) -> dict[str, Any]:
    """The origin of an export: names, fingerprints, versions."""
    key, result = attempt.key, attempt.result
    prints, versions = result.fingerprints, result.versions
    return {
        "model": key.model, "method": key.method, "seed": key.seed, "run_id": attempt.run_id,
        "source": attempt.spec.recipe.get("source"),
        **{f"{name}_fingerprint": prints.get(name) for name in ("data", "recipe", "code")},
        "trained_on": result.device, "finished_at": result.finished_at,
        **{f"{name}_version": version for name, version in versions.items()},
        "export_code": code_fingerprint(CHILD),
    }  # fmt: skip


def is_written(folder: Path, attempt: Attempt) -> bool:
    """Whether `folder` is the merged export of exactly this result."""
    return read_json(folder / RECORD) == origin(attempt)


def _modelfiles(request: ExportRequest, output: Path) -> dict[str, Path]:
    """A Modelfile for each GGUF file; the first has Ollama's default name."""
    names = {scheme: f"Modelfile-{scheme}" if i else "Modelfile" for i, scheme in enumerate(request.gguf)}
    return {scheme: output / name for scheme, name in names.items()} if request.ollama else {}


def _require_adapter(attempt: Attempt) -> None:
    if not traits_of(attempt.spec.recipe).has_adapter:
        why = "trains every weight" if traits_of(attempt.spec.recipe).trains else "trains nothing"
        raise UsageError(f"{attempt.key}: {attempt.key.method} {why}, so there is no adapter: use --merge.")


def _with_source(attempt: Attempt, request: ExportRequest, output: Path) -> ExportRequest:
    """Add the merged folder to the request if a GGUF file needs it and it is not written yet."""
    merged = request.merged or (bool(request.gguf) and not is_written(output / "merged", attempt))
    return replace(request, merged=merged)


def _drop_superseded(output: Path) -> None:
    """Remove exports of older results from the default folder."""
    for other in output.parent.glob("*"):
        if other != output:
            shutil.rmtree(other, ignore_errors=True)


def _spec(resolved: Resolved, outcome: Export, output: Path, row: Mapping[str, Any] | None) -> RunSpec:
    key = outcome.attempt.key
    recipe, model = outcome.attempt.spec.recipe, resolved.experiments.model(key.model)
    more = {
        "adapter": str(outcome.adapter) if outcome.adapter else None,
        "merged": str(outcome.merged) if outcome.merged else None,
        "gguf": {scheme: str(path) for scheme, path in outcome.gguf.items()},
        "ollama": {scheme: str(path) for scheme, path in outcome.modelfiles.items()},
        "trained_examples": outcome.attempt.spec.examples,
        "trained_selection": dict(outcome.attempt.spec.selection),
        "source": str(output / "merged"),
        "name": f"{key.model} {key.method}",
        "origin": origin(outcome.attempt),
        "made": _how_made(recipe),
        "note": model.note,
        "licence": model.licence,
        "data": json.loads(outcome.attempt.result.measured.get("training_data") or "[]"),
        "evaluated": evaluated(outcome.attempt),
        "row": _plain_row(row, outcome.attempt),
    }
    spec = spec_of(resolved, outcome.attempt)
    return replace(spec, more={**spec.more, **more})


def evaluated(attempt: Attempt) -> dict[str, Any]:
    """The metrics of the attempt's newest good evaluation; {} without one."""
    good = [one for one in attempt.evaluations() if one.ok]
    return {name: good[-1].result.measured.get(name) for name in METRICS} if good else {}


def _plain_row(row: Mapping[str, Any] | None, attempt: Attempt) -> dict[str, Any] | None:
    """The row in JSON types if it includes this attempt, alone or with other seeds; else None."""
    if not row or (row.get("run_id") != attempt.run_id and (row.get("seeds") or 1) < 2):
        return None
    return {
        name: value if isinstance(value, (int, float, str)) else str(value)
        for name, value in row.items()
        if value is not None
    }


def _how_made(recipe: Mapping[str, Any]) -> str:
    """A sentence on the origin of the weights."""
    traits = traits_of(recipe)
    if not traits.has_adapter:
        return "All weights were trained." if traits.trains_all else "The base model, untouched."
    if traits.quantization:
        return (
            f"{traits.an_adapter}, merged into the base it was trained on: the {traits.quantization} weights, unpacked. That is "
            "not the original base; the table below shows the result of merging into the original, if it was measured."
        )
    return f"{traits.an_adapter}, merged into its base."


def run_of(resolved: Resolved, folder: Path, attempt: Attempt, module: str, hooks: RunHooks) -> Run:
    """A child process of this package as a run. It is not a cell of the grid, so it runs on this
    machine."""
    fetch = partial(fetch_same_weights, resolved, attempt, hooks)
    return Run(folder, module, fetch=fetch, on_tick=partial(hooks.on_tick, attempt))
