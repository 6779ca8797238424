"""The parent's half of an export: which result, where to, running the child, what became of it."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines import weights
from pipelines.errors import UsageError
from pipelines.evaluate.cell import readers
from pipelines.files import locked, read_json
from pipelines.runs import cells
from pipelines.runs.cells import Attempt, CellKey
from pipelines.runs.code import code_fingerprint
from pipelines.runs.result import RunResult, result_in
from pipelines.runs.run import Run, Watch, queue
from pipelines.runs.spec import RunSpec
from pipelines.train.cell import Project, examples_now
from pipelines.weights_record import RECORD

CHILD = "pipelines.export.child"


@dataclass(frozen=True)
class Export:
    """What came of one: its run's folder, and what it was to write, whether it did or not."""

    attempt: Attempt
    folder: Path
    merged: Path | None
    gguf: dict[str, Path]

    @property
    def result(self) -> RunResult:
        return result_in(self.folder)

    @property
    def ok(self) -> bool:
        return self.result.ok


@dataclass(frozen=True)
class Wanted:
    """`merged`: a transformers folder; `gguf`: keys of gguf_file.SCHEMES; `output`: the folder to write to."""

    merged: bool = True
    gguf: Sequence[str] = ()
    output: Path | None = None


def finished(project: Project, key: CellKey) -> Attempt:
    """The newest attempt at `key`.

    Raises:
        UsageError: it is not ok, or its model has random weights.
    """
    if project.experiments.model(key.model).source.random:
        raise UsageError(f"{key.model} has random weights: there is nothing to export or to compare.")
    attempt = cells.latest(project.data, key)
    if attempt is None or attempt.status != "ok":
        found = attempt.status if attempt else "missing"
        raise UsageError(
            f"{key} is {found}; only an ok cell is exported: run `featherweight train {key.model} {key.method}`."
        )
    return attempt


def export(project: Project, key: CellKey, wanted: Wanted, *, watch: Watch | None = None) -> Export:
    """Write the newest result of `key` as `wanted`, in a child under the cell's budget and time limit.

    Raises:
        UsageError: the cell is not ok, or what lies in the output folder is not ours to replace.
    """
    watch = watch or Watch()
    attempt = finished(project, key)
    output = (wanted.output or default_output(project, attempt)).resolve()
    if (output / "merged").exists() and not (output / "merged" / RECORD).exists():
        raise UsageError(f"{output}/merged is there and no export of ours: name another folder with --output.")
    with locked(key.folder(project.data) / "export.lock", f"export {key}", say=watch.say):
        if wanted.output is None:
            _drop_superseded(output)
        asked = _with_source(attempt, wanted, output)
        made = Export(
            attempt,
            project.data.lake / "exports" / key.model / key.method / str(key.seed) / cells.new_run_id(),
            output / "merged" if asked.merged else None,
            {scheme: output / f"{key.model}-{key.method}-{key.seed}.{scheme}.gguf" for scheme in asked.gguf},
        )
        queue(made.folder, _spec(project, made, output))
        run_of(project, made.folder, attempt, CHILD, watch).to_result(project.site(watch).here())
    return made


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


def _with_source(attempt: Attempt, wanted: Wanted, output: Path) -> Wanted:
    """GGUF files are made from the merged folder, so that has to be there too."""
    merged = wanted.merged or (bool(wanted.gguf) and not is_written(output / "merged", attempt))
    return replace(wanted, merged=merged)


def _drop_superseded(output: Path) -> None:
    """In the default place only the newest result's export is kept."""
    for other in output.parent.glob("*"):
        if other != output:
            shutil.rmtree(other, ignore_errors=True)


def spec_of(project: Project, attempt: Attempt, **more: Any) -> RunSpec:
    """What every child of this package is told of the result and of what it is measured on; `more` is for one of them."""
    examples, _ = examples_now(project)
    settings = project.experiments.training_for(project.profile, attempt.key.model, attempt.key.method)
    trained = attempt.model_folder if attempt.model_folder.exists() else None
    spec, told = attempt.spec, project.experiments.profile(project.profile).evaluation.model_dump()
    return RunSpec(
        run_id=spec.run_id, model=spec.model, method=spec.method, seed=spec.seed, profile=project.profile,
        root=str(project.data.root), examples=str(examples.relative_to(project.data.root)), weights=spec.weights,
        trained=str(trained.relative_to(project.data.root)) if trained else None, selection=asdict(project.selection),
        recipe=spec.recipe, memory_budget_gb=settings.memory_budget_gb, time_limit_minutes=settings.time_limit_minutes,
        more={"settings": told, "readers": readers(project), "batch_tokens": settings.micro_batch_tokens, **more},
    )  # fmt: skip


def _spec(project: Project, made: Export, output: Path) -> RunSpec:
    key = made.attempt.key
    recipe, model = made.attempt.spec.recipe, project.experiments.model(key.model)
    return spec_of(
        project,
        made.attempt,
        merged=str(made.merged) if made.merged else None,
        gguf={scheme: str(path) for scheme, path in made.gguf.items()},
        source=str(output / "merged"),
        name=f"{key.model} {key.method}",
        origin=origin(made.attempt),
        made=made_how(recipe),
        note=model.note,
        licence=model.licence,
        data=json.loads(made.attempt.result.measured.get("training_data") or "[]"),
    )


def made_how(recipe: Mapping[str, Any]) -> str:
    """A sentence on what the weights are."""
    if recipe["kind"] == "none":
        return "The base model, untouched."
    if recipe["kind"] == "full":
        return "All weights were trained."
    if recipe["quantization"]:
        return (
            f"A LoRA adapter, merged into the base it was trained on: the {recipe['quantization']} weights, unpacked. That is not "
            "the original base; the table below says what merging into that one would have given, where it was measured."
        )
    return "A LoRA adapter, merged into its base."


def run_of(project: Project, folder: Path, attempt: Attempt, module: str, watch: Watch) -> Run:
    """A child of this package as a run; it is no cell of the grid, so it runs on this machine."""

    def needs() -> None:
        weights.fetch(project.data, project.experiments, attempt.key.model, say=watch.say)

    return Run(folder, module, needs=needs, on_tick=lambda: watch.on_tick(attempt))
