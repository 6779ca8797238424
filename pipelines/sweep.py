"""LoRA at several ranks, everything else equal: the cells trained and evaluated, and loss, minutes and memory by rank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.compare import plots
from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.show import Format, as_csv, as_json, tabulate
from pipelines.compare.table import comparison_rows
from pipelines.errors import UsageError
from pipelines.evaluate.cell import base_method, evaluate, evaluate_base
from pipelines.experiments import Method
from pipelines.files import replacing
from pipelines.foreign_text import one_line
from pipelines.methods import SHORT
from pipelines.project import Project
from pipelines.runs.cells import Attempt
from pipelines.runs.run import Watch
from pipelines.schema import real
from pipelines.train.cell import train

Row = dict[str, Any]
ALPHA_PER_RANK, DROPOUT = 4, 0.1
COLUMNS = (
    *COMPARISON.pick("rank", "alpha", "method", "status", "eval_loss", "eval_bits_per_byte"),
    real("minutes", "Time of the optimizer steps.", "min", 2),
    *COMPARISON.pick("peak_memory_gb", "tokens_per_second", "trainable_params", "artifact_mb"),
)


@dataclass(frozen=True)
class Sweep:
    """A project whose profile holds the ranks' methods, the model, and each rank's method. `added` are not in the user's."""

    project: Project
    model: str
    methods: dict[int, str]
    added: list[str]


def with_ranks(project: Project, model: str, ranks: Sequence[int]) -> Sweep:
    """`lora-r<rank>` for each rank: as experiments.yaml has it, else with alpha 4 × rank and dropout 0.1.

    Raises:
        UsageError: an unknown model, or one that the profile does not hold (evaluation records must fit all models of a profile).
    """
    experiments, profile = project.experiments, project.settings
    experiments.model(model)
    if model not in profile.models:
        raise UsageError(
            f"{model} is not in profile {project.profile} ({', '.join(profile.models)}): add it to its models"
        )
    methods = {rank: f"lora-r{rank}" for rank in sorted(set(ranks))}
    made = {
        name: Method(kind=SHORT, rank=rank, alpha=ALPHA_PER_RANK * rank, dropout=DROPOUT)
        for rank, name in methods.items()
        if name not in experiments.methods
    }
    base = [name for name in (base_method(project),) if name]
    wide = profile.model_copy(update={"methods": [*base, *methods.values()]})
    changes = {"methods": {**experiments.methods, **made}, "profiles": {**experiments.profiles, project.profile: wide}}
    added = [name for name in methods.values() if name not in profile.methods]
    return Sweep(replace(project, experiments=experiments.model_copy(update=changes)), model, methods, added)


def run_sweep(sweep: Sweep, *, on_tick: Callable[[Attempt], None], tell: Callable[[str], None]) -> list[Row]:
    """Make every rank's cell current, whatever becomes of the others, and return their rows, the smallest rank first."""
    watch, resolved = Watch(on_tick=on_tick), sweep.project.resolve()
    keys = [key for method in sweep.methods.values() for key in resolved.cell(sweep.model, method).keys]
    evaluate_base(resolved, sweep.model, watch=watch)
    for key in keys:
        attempt, reused = train(resolved, key, watch=watch)
        tell(f"{key}: {attempt.status}{' (current, reused)' if reused else ''}")
        if attempt.status == "ok":
            evaluate(resolved, key, watch=watch)
    found = {row["method"]: row for row in comparison_rows(resolved) if row["model"] == sweep.model}
    return [_by_rank(found[method], rank) for rank, method in sweep.methods.items()]


def _by_rank(row: Row, rank: int) -> Row:
    return {**row, "rank": rank, "minutes": None if row["train_seconds"] is None else row["train_seconds"] / 60}


def table(rows: Sequence[Row], sweep: Sweep, form: Format) -> str:
    shown = [{column.name: row[column.name] for column in COLUMNS} for row in rows]
    if form == "json":
        return as_json(shown)
    return as_csv(shown) if form == "csv" else tabulate(rows, COLUMNS, _notes(rows, sweep), form)


def _notes(rows: Sequence[Row], sweep: Sweep) -> list[str]:
    notes = [f"{sweep.model}, profile {sweep.project.profile}; untouched it has {row['base_bits_per_byte']:.4f} bits per byte"
             for row in rows if row["base_bits_per_byte"]][:1]  # fmt: skip
    notes += [
        f"{row['method']} is {row['status']}: {one_line(row['status_detail'] or '', 300)}. {one_line(row['advice'] or '', 300)}"
        for row in rows
        if row["status"] != "ok"
    ]
    if sweep.added:
        notes.append(
            f"not in the comparison: {', '.join(sweep.added)}; add to methods of profile {sweep.project.profile} to have them there"
        )
    return notes


def write_picture(rows: Sequence[Row], sweep: Sweep) -> Path:
    """Loss, minutes and memory by rank as a PNG beside the report."""
    path = sweep.project.data.report.with_name(f"rank-sweep-{sweep.model}.png")
    with replacing(path) as temporary:
        temporary.write_bytes(plots.swept_ranks(rows, "png"))
    return path
