"""The parent's half of an export: which result, where to, running the child, what became of it."""

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
    """What came of one: its run's folder, and what it was to write, whether it did or not."""

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
class Wanted:
    """`merged`: a transformers folder; `gguf`: keys of gguf_file.SCHEMES; `output`: the folder to write to; `adapter`: the adapter
    alone; `row`: the cell's row of the comparison, for the model card; `ollama`: a Modelfile beside each GGUF file; `reuse`: what
    the newest export wrote just so is not written again."""

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
        raise UsageError(f"{key.model} has random weights: there is nothing to export or to compare.")
    attempt = cells.latest(project.data, key)
    if attempt is None or attempt.status != "ok":
        found = attempt.status if attempt else "missing"
        raise UsageError(
            f"{key} is {found}; only an ok cell is exported: run `featherweight train {key.model} {key.method}`."
        )
    return attempt


def export(resolved: Resolved, key: CellKey, wanted: Wanted, *, hooks: RunHooks | None = None) -> Export:
    """Write the newest result of `key` as `wanted`, in a child under the cell's budget and time limit.

    Raises:
        UsageError: the cell is not ok, it was made with other weights than are here, it has no adapter where one is wanted, or what
            lies in the output folder is not ours to replace.
    """
    hooks, project = hooks or RunHooks(), resolved.project
    attempt = finished(project, key)
    if wanted.adapter:
        _require_adapter(attempt)
    resolved.require_same_weights(attempt, hooks.say)
    output = (wanted.output or default_output(project, attempt)).resolve()
    _require_ours(output, _modelfiles(wanted, output).values())
    with locked(key.folder(project.data) / "export.lock", f"export {key}", say=hooks.say):
        if wanted.output is None:
            _drop_superseded(output)
        asked = _with_source(attempt, wanted, output)
        home = project.data.lake / "exports" / key.model / key.method / str(key.seed)
        made = Export(
            attempt,
            home / new_run_id(home),
            output / "merged" if asked.merged else None,
            {scheme: output / f"{key.model}-{key.method}-{key.seed}.{scheme}.gguf" for scheme in asked.gguf},
            output / "adapter" if asked.adapter else None,
            _modelfiles(asked, output),
        )
        spec = _spec(resolved, made, output, wanted.row)
        if wanted.reuse and (before := _standing(home, spec, made)):
            return before
        queue(made.folder, spec)
        run_of(resolved, made.folder, attempt, CHILD, hooks).to_result(project.site(hooks).here())
    return made


def _require_ours(output: Path, modelfiles: Iterable[Path]) -> None:
    """Raises UsageError where something lies in the output folder that is not ours to replace."""
    others = [
        path for path in (output / "merged", output / "adapter") if path.exists() and not (path / RECORD).exists()
    ]
    others += [path for path in modelfiles if path.exists() and not is_ours(path)]
    if others:
        raise UsageError(f"{others[0]} is there and no export of ours: name another folder with --output.")


def _standing(home: Path, spec: RunSpec, made: Export) -> Export | None:
    """The newest export in `home`, where it was asked for the same and what it wrote is there; the merged folder that a GGUF file
    was made from may have been there before."""
    folders = sorted(path for path in home.iterdir() if path.is_dir()) if home.exists() else []
    if not folders:
        return None
    before, now = ({**told.to_json(), "run_id": ""} for told in (spec_in(folders[-1]), spec))
    if made.merged is None:
        before["merged"] = None
    same = json.dumps(before, sort_keys=True) == json.dumps(now, sort_keys=True)
    written = [*made.gguf.values(), *made.modelfiles.values(), *filter(None, (made.adapter, made.merged))]
    there = same and all(path.exists() for path in written)
    found = replace(made, folder=folders[-1])
    return found if there and found.ok else None


def default_output(project: Project, attempt: Attempt) -> Path:
    key = attempt.key
    return project.data.root / "exports" / key.model / key.method / str(key.seed) / attempt.run_id


def origin(attempt: Attempt) -> dict[str, Any]:
    """Where an export comes from: names, fingerprints, versions."""
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
    """Whether a merged folder of this very result lies there."""
    return read_json(folder / RECORD) == origin(attempt)


def _modelfiles(asked: Wanted, output: Path) -> dict[str, Path]:
    """A Modelfile for each GGUF file; that of the first has the name that Ollama looks for."""
    names = {scheme: f"Modelfile-{scheme}" if i else "Modelfile" for i, scheme in enumerate(asked.gguf)}
    return {scheme: output / name for scheme, name in names.items()} if asked.ollama else {}


def _require_adapter(attempt: Attempt) -> None:
    if not traits_of(attempt.spec.recipe).has_adapter:
        why = "trains every weight" if traits_of(attempt.spec.recipe).trains else "trains nothing"
        raise UsageError(f"{attempt.key}: {attempt.key.method} {why}, so there is no adapter: use --merge.")


def _with_source(attempt: Attempt, wanted: Wanted, output: Path) -> Wanted:
    """GGUF files are made from the merged folder, so that has to be there too."""
    merged = wanted.merged or (bool(wanted.gguf) and not is_written(output / "merged", attempt))
    return replace(wanted, merged=merged)


def _drop_superseded(output: Path) -> None:
    """In the default place only the newest result's export is kept."""
    for other in output.parent.glob("*"):
        if other != output:
            shutil.rmtree(other, ignore_errors=True)


def _spec(resolved: Resolved, made: Export, output: Path, row: Mapping[str, Any] | None) -> RunSpec:
    key = made.attempt.key
    recipe, model = made.attempt.spec.recipe, resolved.experiments.model(key.model)
    more = {
        "adapter": str(made.adapter) if made.adapter else None,
        "merged": str(made.merged) if made.merged else None,
        "gguf": {scheme: str(path) for scheme, path in made.gguf.items()},
        "ollama": {scheme: str(path) for scheme, path in made.modelfiles.items()},
        "trained_examples": made.attempt.spec.examples,
        "trained_selection": dict(made.attempt.spec.selection),
        "source": str(output / "merged"),
        "name": f"{key.model} {key.method}",
        "origin": origin(made.attempt),
        "made": made_how(recipe),
        "note": model.note,
        "licence": model.licence,
        "data": json.loads(made.attempt.result.measured.get("training_data") or "[]"),
        "evaluated": evaluated(made.attempt),
        "row": _plain_row(row, made.attempt),
    }
    spec = spec_of(resolved, made.attempt)
    return replace(spec, more={**spec.more, **more})


def evaluated(attempt: Attempt) -> dict[str, Any]:
    """What the newest good evaluation of the attempt measured; {} where there is none."""
    good = [one for one in attempt.evaluations() if one.ok]
    return {name: good[-1].result.measured.get(name) for name in METRICS} if good else {}


def _plain_row(row: Mapping[str, Any] | None, attempt: Attempt) -> dict[str, Any] | None:
    """The row, as JSON holds it, where it tells of this attempt: alone, or with those of other seeds."""
    if not row or (row.get("run_id") != attempt.run_id and (row.get("seeds") or 1) < 2):
        return None
    return {
        name: value if isinstance(value, (int, float, str)) else str(value)
        for name, value in row.items()
        if value is not None
    }


def made_how(recipe: Mapping[str, Any]) -> str:
    """A sentence on what the weights are."""
    traits = traits_of(recipe)
    if not traits.has_adapter:
        return "All weights were trained." if traits.trains_all else "The base model, untouched."
    if traits.quantization:
        return (
            f"{traits.an_adapter}, merged into the base it was trained on: the {traits.quantization} weights, unpacked. That is "
            "not the original base; the table below says what merging into that one would have given, where it was measured."
        )
    return f"{traits.an_adapter}, merged into its base."


def run_of(resolved: Resolved, folder: Path, attempt: Attempt, module: str, hooks: RunHooks) -> Run:
    """A child of this package as a run; it is no cell of the grid, so it runs on this machine."""
    fetch = partial(fetch_same_weights, resolved, attempt, hooks)
    return Run(folder, module, fetch=fetch, on_tick=partial(hooks.on_tick, attempt))
