"""LoRA at several ranks, everything else equal: the cells trained and evaluated, and loss,
minutes and memory by rank."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipelines.compare import plots
from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.rates import rates_of
from pipelines.compare.show import Format
from pipelines.compare.table import comparison_rows
from pipelines.errors import UsageError
from pipelines.evaluate.cell import base_method
from pipelines.lake.files import replacing
from pipelines.lake.schema import real
from pipelines.project import Project
from pipelines.runs.cells import Attempt
from pipelines.runs.run import RunHooks
from pipelines.settings.experiments import Experiments
from pipelines.settings.method_settings import Method
from pipelines.settings.methods import SHORT
from pipelines.sweep.cells import doubts, make_current, table_of

Row = dict[str, Any]
Targets = Literal["all-linear", "attention"]
DROPOUT = 0.1
ALPHA_PER_RANK = 4
# An update is scaled by alpha / rank, which is 4 at rank 8; with rsLoRA by alpha / √rank, which is
# 4 at rank 16.
FIXED_ALPHA, RSLORA_ALPHA = 32, 16
COLUMNS = (
    *COMPARISON.pick("rank", "alpha", "method", "status", "eval_loss", "eval_bits_per_byte", "learning_rate", "rates"),
    real("minutes", "Time of the optimizer steps.", "min", 2),
    *COMPARISON.pick("peak_memory_gb", "tokens_per_second", "trainable_params", "artifact_mb"),
)
# The ending of a method's name for each of the targets.
NAME_ENDINGS = {None: "", "all-linear": "-all", "attention": "-qkv"}
HOW_RATES_ARE_CHOSEN = ("learning_rate", "learning_rate_source", "search_share", "search_cap")


@dataclass(frozen=True)
class AlphaRule:
    """How alpha follows the rank: `fixed` + `per_rank` × rank. `in_words` is for notes and the
    picture."""

    in_words: str
    fixed: int = 0
    per_rank: int = 0
    rslora: bool = False

    def method(self, rank: int, targets: Targets | None) -> Method:
        alpha = self.fixed + self.per_rank * rank
        return Method(kind=SHORT, rank=rank, alpha=alpha, dropout=DROPOUT, rslora=self.rslora, targets=targets)


ALPHA_RULES = {
    "fixed": AlphaRule(f"alpha {FIXED_ALPHA} at every rank", fixed=FIXED_ALPHA),
    "scaled": AlphaRule(f"alpha {ALPHA_PER_RANK} × rank", per_rank=ALPHA_PER_RANK),
    "rslora": AlphaRule(
        f"rsLoRA: alpha {RSLORA_ALPHA} at every rank, divided by √rank", fixed=RSLORA_ALPHA, rslora=True
    ),
}


@dataclass(frozen=True)
class Sweep:
    """A project whose profile has the methods of the sweep, the model, and each rank's method.

    `added` names the methods that the user's profile lacks. `alpha` is a key of ALPHA_RULES.
    `targets` None leaves the choice to the profile.
    """

    project: Project
    model: str
    methods: dict[int, str]
    added: list[str]
    alpha: str = "fixed"
    targets: Targets | None = None

    @property
    def in_words(self) -> str:
        """The settings that all ranks have in common, in words."""
        modules = {"attention": ["on the attention's q, k and v"], "all-linear": ["on all linear layers"]}
        return ", ".join([ALPHA_RULES[self.alpha].in_words, f"dropout {DROPOUT}", *modules.get(self.targets or "", [])])


def with_ranks(
    project: Project, model: str, ranks: Sequence[int], *, alpha: str = "fixed", targets: Targets | None = None
) -> Sweep:
    """A method for each rank: the one of experiments.yaml with these settings, else a new one for
    this sweep.

    Raises:
        UsageError: an unknown model, a model outside the profile (evaluation records must fit all
            models of a profile), or a method of experiments.yaml that has the name of a new one but
            other settings.
    """
    experiments, profile = project.experiments, project.settings
    experiments.model(model)
    if model not in profile.models:
        raise UsageError(
            f"{model} is not in profile {project.profile} ({', '.join(profile.models)}): add it to its models"
        )
    by_rank = {rank: ALPHA_RULES[alpha].method(rank, targets) for rank in sorted(set(ranks))}
    methods = {rank: _name_of(experiments, method) for rank, method in by_rank.items()}
    new_methods = {name: by_rank[rank] for rank, name in methods.items() if name not in experiments.methods}
    base = [name for name in (base_method(project),) if name]
    extended = profile.model_copy(update={"methods": [*base, *methods.values()]})
    changes = {
        "methods": {**experiments.methods, **new_methods},
        "profiles": {**experiments.profiles, project.profile: extended},
    }
    added = [name for name in methods.values() if name not in profile.methods]
    swept = replace(project, experiments=experiments.model_copy(update=changes))
    return Sweep(swept, model, methods, added, alpha, targets)


def _name_of(experiments: Experiments, method: Method) -> str:
    """The name of the configured method with these settings, else a new name that includes all of
    them.

    So no two sweeps share a cell.

    Raises:
        UsageError: the new name is taken.
    """
    settings = _without_rates(method)
    for name, known in experiments.methods.items():
        if _without_rates(known) == settings:
            return name
    alpha = f"-a{method.alpha:g}"
    ending = ("-rs" if method.rslora else "") + NAME_ENDINGS[method.targets]
    names = [f"lora-r{method.rank}{alpha}{ending}"]
    if method.alpha == ALPHA_PER_RANK * (method.rank or 0) and not method.rslora:
        # The name in earlier sweeps, whose cells remain.
        names.insert(0, f"lora-r{method.rank}{ending}")
    for name in names:
        if name not in experiments.methods:
            return name
    raise UsageError(
        f"methods.{names[-1]} of experiments.yaml has other settings than the sweep's method of that name "
        f"(rank {method.rank}, alpha {method.alpha:g}, dropout {method.dropout:g}): rename it"
    )


def _without_rates(method: Method) -> Row:
    """All settings of a method, a default alpha included, except those that choose its learning
    rate."""
    return method.model_dump(exclude=set(HOW_RATES_ARE_CHOSEN)) | {"alpha": method.traits.alpha}


def run_sweep(sweep: Sweep, *, on_tick: Callable[[Attempt], None], tell: Callable[[str], None]) -> list[Row]:
    """Make every rank's cell current, even if others fail, and return their rows, the smallest
    rank first."""
    hooks, resolved = RunHooks(on_tick=on_tick), sweep.project.resolve()
    make_current(resolved, sweep.model, sweep.methods.values(), hooks=hooks, tell=tell)
    by_method = {row["method"]: row for row in comparison_rows(resolved) if row["model"] == sweep.model}
    return [_by_rank(by_method[method], rank) for rank, method in sweep.methods.items()]


def _by_rank(row: Row, rank: int) -> Row:
    return {**row, "rank": rank, "minutes": None if row["train_seconds"] is None else row["train_seconds"] / 60}


def table(rows: Sequence[Row], sweep: Sweep, form: Format) -> str:
    return table_of(rows, COLUMNS, _notes(rows, sweep), form)


def _notes(rows: Sequence[Row], sweep: Sweep) -> list[str]:
    notes = [f"{sweep.model}, profile {sweep.project.profile}; untouched it has {row['base_bits_per_byte']:.4f} bits per byte"
             for row in rows if row["base_bits_per_byte"]][:1]  # fmt: skip
    notes += [sweep.in_words, *_of_rates(rows)]
    notes += doubts(rows, lambda row: row["method"], "minutes and tokens/s")
    if sweep.added:
        known = sweep.project.experiments.methods
        added = ", ".join(f"{name} {_defined(known[name])}" for name in sweep.added)
        notes.append(
            f"not in the comparison: {added}; name each under methods, and add to methods of profile {sweep.project.profile}"
        )
    return notes


def _defined(method: Method) -> str:
    """The method as experiments.yaml would write it."""
    settings = method.model_dump(exclude_defaults=True)
    return f"{{{', '.join(f'{name}: {json.dumps(value)}' for name, value in settings.items())}}}"


def _of_rates(rows: Sequence[Row]) -> Iterator[str]:
    """Notes on whether the ranks differ only by rank, or also by learning rates that were not
    searched for each."""
    trained = [row for row in rows if rates_of(row)]
    shared = [row for row in trained if rates_of(row) == "shared"]
    at_edge = [row["method"] for row in trained if rates_of(row) == "edge"]
    if trained and all(rates_of(row) == "tuned" for row in trained):
        yield "each rank at the best of the learning rates tried for it"
    if shared:
        methods = f" ({', '.join(row['method'] for row in shared)})" if len(shared) < len(trained) else ""
        yield f"{_at_rates(shared)}, not searched for{methods}; another rate may order the ranks otherwise"
    if at_edge:
        yield f"{', '.join(at_edge)}: the best learning rate is the smallest or largest of those tried; try more that way"


def _at_rates(rows: Sequence[Row]) -> str:
    rates = sorted({row["learning_rate"] for row in rows})
    if len(rates) == 1:
        return f"at one shared learning rate, {rates[0]:g}"
    return f"at the learning rates {', '.join(f'{rate:g}' for rate in rates)}"


def write_picture(rows: Sequence[Row], sweep: Sweep) -> Path:
    """Write loss, minutes and memory by rank as a PNG beside the report."""
    ending = "-".join(part for part in (sweep.model, sweep.alpha, sweep.targets) if part)
    path = sweep.project.data.report.with_name(f"rank-sweep-{ending}.png")
    with replacing(path) as temporary:
        temporary.write_bytes(plots.swept_ranks(rows, "png", title=f"{sweep.model}: {sweep.in_words}"))
    return path
