"""Search of a cell's learning rate by Optuna: log-uniform, TPE, median pruning.

Each trial is a child process under the cell's budget and time limit, measured on a slice of train.
The study is stored in data/lake/tune/ and continues after any interruption.

A study belongs to its range. Another range is another study, which takes over the finished trials
within it. Trials with other data, another recipe, code, machine or seed are in another folder and
are never mixed in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.errors import UnavailableError, UsageError, WorkError
from pipelines.lake.files import announce, locked, read_jsonl
from pipelines.lake.run_ids import new_run_id
from pipelines.project import Resolved
from pipelines.runs.cells import CellKey
from pipelines.runs.run import GivenUpError, Run, RunHooks, queue
from pipelines.runs.spec import RunSpec
from pipelines.settings.methods import traits_of
from pipelines.train.cell import no_examples
from pipelines.train.studies import LOCK, study_folder, without_rate
from pipelines.weights import store

CHILD = "pipelines.extras.tune.child"
# The range is the configured rate divided and multiplied by this factor.
RANGE_FACTOR = 10.0
# A rate within this factor of an end of the range is at the edge.
NEAR_EDGE = 1.15
# Number of trials before pruning and TPE start.
STARTUP_TRIALS = 3
# A step that is never reached: no evaluation or checkpoint at a fixed interval.
NO_STEP = 10**9
# The only parameter of the study.
RATE = "learning_rate"
# Attribute of a trial taken over from another range: its study and number.
TAKEN_OVER = "taken_over"


@dataclass(frozen=True)
class Range:
    low: float
    high: float

    @property
    def study(self) -> str:
        """The name of this range's study and of its trial folder."""
        return f"log-{self.low!r}-{self.high!r}"

    def holds(self, rate: float) -> bool:
        return self.low <= rate <= self.high

    def at_edge(self, rate: float) -> bool:
        return rate < self.low * NEAR_EDGE or rate > self.high / NEAR_EDGE


@dataclass(frozen=True)
class TuningResult:
    """The best rate of all trials within the range, its loss, and whether it is at the range's
    edge."""

    key: CellKey
    rate: float
    loss: float
    trials: int
    at_edge: bool

    def yaml(self) -> str:
        """The entry for experiments.yaml."""
        return (
            f"models:\n  {self.key.model}:\n    overrides:\n"
            f"      {self.key.method}: {{learning_rate: {self.rate:.2e}, learning_rate_source: tune}}"
        )


def tune(
    resolved: Resolved, key: CellKey, *, trials: int, bounds: Range | None = None, hooks: RunHooks | None = None,
    tell: Callable[[str], None] = announce,
) -> TuningResult:  # fmt: skip
    """Extend the study of the cell and range to `trials` trials, and return the best.

    `tell` gets one line per trial. Trials of other ranges within this one count, and `tell` gets
    their number.

    Raises:
        UnavailableError: Optuna is not installed, or the weights are not available.
        UsageError: the method trains nothing, or there is nothing to train on.
        WorkError: a trial failed for a reason that would stop the others too (out of memory, out of
            time, killed), or all diverged.
    """
    if find_spec("optuna") is None:
        raise UnavailableError("tune needs Optuna: run `make extras E=tune`")
    if not traits_of(resolved.plan(key).recipe).trains:
        raise UsageError(f"{key.method} trains nothing, so it has no learning rate to tune")
    if not resolved.plan(key).selected.train:
        raise UsageError(no_examples(resolved.project, key.method))
    store.fetch(resolved.data, resolved.experiments, key.model)
    resolved.weights_now(key.model)
    recipe, folder = resolved.plan(key).recipe, study_folder(resolved, key)
    configured = recipe["learning_rate"]
    start = recipe.get("learning_rate_default") or (
        sorted(configured)[len(configured) // 2] if isinstance(configured, list) else configured
    )
    if not folder.exists() and any(folder.parent.glob("*/journal.log")):
        tell(f"{key}: earlier trials had other data, another recipe, code, machine or seed, and do not count")
    with locked(folder / LOCK, f"tune {key}"):
        span = bounds or Range(start / RANGE_FACTOR, start * RANGE_FACTOR)
        study = _Study(resolved, key, folder, without_rate(recipe), span, hooks or RunHooks(), tell)
        study.run(trials, first=start)
        return study.best()


class _Study:
    def __init__(
        self, resolved: Resolved, key: CellKey, folder: Path, recipe: dict[str, Any], span: Range, hooks: RunHooks,
        tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._resolved, self._key, self._folder, self._recipe, self._span = resolved, key, folder, recipe, span
        self._watch, self._tell = hooks, tell
        self._states = optuna.trial.TrialState
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "journal.log")))
        self._study = optuna.create_study(study_name=span.study, storage=storage, load_if_exists=True)
        others = [one for one in optuna.get_all_study_names(storage) if one != span.study]
        self._take_over([optuna.load_study(study_name=one, storage=storage) for one in others])
        # A continued study must not draw the same numbers again.
        seed = key.seed + 1000 * len(self._study.trials)
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        self._study.pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS)

    def _take_over(self, others: Sequence[Any]) -> None:
        """Add the trials of other ranges' studies that are within this range.

        A pruned trial was pruned by the median of its own range, so it counts only if its range
        equals this one.
        """
        from optuna.distributions import FloatDistribution
        from optuna.trial import create_trial

        space: dict[str, Any] = {RATE: FloatDistribution(self._span.low, self._span.high, log=True)}
        known = {trial.user_attrs.get(TAKEN_OVER) for trial in self._study.trials}
        inside = outside = 0
        for other in others:
            for trial in other.get_trials(states=(self._states.COMPLETE, self._states.PRUNED)):
                if TAKEN_OVER in trial.user_attrs or (name := f"{other.study_name}/{trial.number}") in known:
                    continue
                if not self._span.holds(trial.params[RATE]):
                    outside += 1
                elif trial.state == self._states.COMPLETE or trial.distributions == space:
                    inside += 1
                    self._study.add_trial(
                        create_trial(
                            state=trial.state, value=trial.value, params=trial.params, distributions=space,
                            user_attrs={TAKEN_OVER: name}, intermediate_values=trial.intermediate_values,
                        )
                    )  # fmt: skip
        if inside or outside:
            self._tell(
                f"learning rates from {self._span.low:.2e} to {self._span.high:.2e}: {inside} trials of other ranges are "
                f"within and count, {outside} are outside and do not"
            )

    def run(self, trials: int, *, first: float) -> None:
        # Requeue trials of an interrupted call.
        for trial in self._study.get_trials(states=(self._states.RUNNING,)):
            self._study.tell(trial.number, state=self._states.FAIL)
            self._study.enqueue_trial(trial.params)
        tried = {trial.params.get(RATE) for trial in self._study.trials}
        if (
            all(TAKEN_OVER in trial.user_attrs for trial in self._study.trials)
            and self._span.holds(first)
            and first not in tried
        ):
            self._study.enqueue_trial({RATE: first})
        if (done := len(self._finished())) >= trials:
            self._tell(
                f"{done} trials within this range are done, so none is run; use --trials {done + 1} or more to continue"
            )
        while (done := len(self._finished())) < trials:
            trial = self._study.ask()
            rate = trial.suggest_float(RATE, self._span.low, self._span.high, log=True)
            self._tell(
                f"trial {done + 1} of {trials}: learning rate {rate:.2e}: {self._outcome(trial, rate)}{self._so_far()}"
            )

    def _finished(self) -> list[Any]:
        return self._study.get_trials(states=(self._states.COMPLETE, self._states.PRUNED))

    def _good(self) -> list[Any]:
        return [t for t in self._study.get_trials(states=(self._states.COMPLETE,)) if (t.value or 0.0) < float("inf")]

    def _so_far(self) -> str:
        if not self._good():
            return ""
        best = min(self._good(), key=lambda trial: trial.value)
        return f"; best so far {best.params[RATE]:.2e} ({best.value:.4f})"

    def best(self) -> TuningResult:
        if not self._good():
            raise WorkError(f"{self._key}: every trial diverged; lower the range (--low, --high)")
        best = min(self._good(), key=lambda trial: (trial.value, trial.params[RATE]))
        rate = best.params[RATE]
        return TuningResult(self._key, rate, best.value, len(self._finished()), self._span.at_edge(rate))

    def _outcome(self, trial: Any, rate: float) -> str:
        """Run the trial, report it to the study, and return a summary."""
        folder = self._folder / self._span.study / f"trial-{trial.number:04}"
        queue(folder, self._spec(rate))
        reported = {0}
        run = Run(folder, CHILD, on_tick=lambda: _report(trial, folder, reported))
        result = run.to_result(self._resolved.project.site(self._watch).here())
        if result.reason == "given_up":
            self._study.tell(trial, state=self._states.PRUNED)
            return str(result.status_detail)
        if result.status == "diverged":
            self._study.tell(trial, float("inf"))
            return "diverged"
        if not result.ok:
            self._study.tell(trial, state=self._states.FAIL)
            message = f"a trial of {self._key} is {result.status}: {result.status_detail} ({folder / 'log.txt'})"
            raise WorkError(message)
        loss = _evaluated_points(folder)[-1]["eval_loss"]
        self._study.tell(trial, loss)
        return f"loss {loss:.4f}"

    def _spec(self, rate: float) -> RunSpec:
        resolved, key = self._resolved, self._key
        settings, model = resolved.plan(key).settings, resolved.experiments.model(key.model)
        return RunSpec(
            run_id=new_run_id(), model=key.model, method=key.method, seed=key.seed,
            root=str(resolved.data.root), examples=resolved.examples,
            weights=store.lies_in(resolved.data, key.model, model),
            selection=vars(resolved.project.selection_of(key.method)), recipe={**self._recipe, "learning_rate": rate},
            memory_budget_gb=settings.memory_budget_gb, time_limit_minutes=settings.time_limit_minutes,
            more={
                "eval_every_steps": NO_STEP, "checkpoint_every_steps": NO_STEP,
                "tokens": {"bos": model.bos, "end": model.end},
            },
        )  # fmt: skip


def _report(trial: Any, folder: Path, reported: set[int]) -> None:
    """Report the trial's new points except the last one, which is its result. `reported` are known
    steps.

    Raises:
        GivenUpError: the trial is pruned.
    """
    for point in _evaluated_points(folder):
        if point["step"] in reported or point["step"] == point["steps"]:
            continue
        reported.add(point["step"])
        trial.report(point["eval_loss"], point["step"])
        if trial.should_prune():
            raise GivenUpError(f"pruned after step {point['step']} of {point['steps']} (loss {point['eval_loss']:.4f})")


def _evaluated_points(folder: Path) -> list[dict[str, Any]]:
    return [point for point in read_jsonl(folder / "curve.jsonl") if point["eval_loss"] is not None]
