"""The comparison's rows: every configured cell of the profile, whatever its outcome, then those
outside it.

A value that was not measured is None.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, stdev
from typing import Any

from pipelines.compare.advice import advise, next_run
from pipelines.compare.benchmark_scores import Scores, add_benchmarks, scores_of
from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.columns.configured import comparison_for
from pipelines.compare.disturbed import has_valid_speed, in_words
from pipelines.compare.outside import is_outside, of_profile
from pipelines.compare.outside_cells import cells_outside
from pipelines.compare.quality import Qualities, Quality, quality_of
from pipelines.compare.ranking import incomparable, mark_pareto, other_costs
from pipelines.compare.rates import method_name, rates_of, weakest
from pipelines.compare.retrieval_report import add_against_retrieval, arms_of
from pipelines.compare.seeds import assumed_spreads
from pipelines.compare.targets import add_targets
from pipelines.estimate.estimate import training_gb
from pipelines.estimate.question import questions
from pipelines.evaluate.cell import EvaluatedBy, base_method, current_evaluation, evaluated_by
from pipelines.hardware import machine
from pipelines.lake.files import read_json
from pipelines.project import MEMORY_BUDGET, CellPlan, Project, Resolved
from pipelines.runs import cells
from pipelines.runs.cells import Attempt, CellKey, Evaluation
from pipelines.runs.result import RunResult
from pipelines.runs.spec import RunSpec
from pipelines.runs.status import SEVERITY
from pipelines.settings.methods import optimizer_of, traits_of
from pipelines.settings.model_settings import Model
from pipelines.train import chosen_layers
from pipelines.train.trainer.fast_paths import covers_adapters
from pipelines.weights import shortened

Row = dict[str, Any]

# If other programs use more than this percentage of the processors, the measured speed is not the
# cell's own. A cell on a card needs few processors, and the cells of a host's other cards count as
# other programs too.
DISTURBED_PCT, DISTURBED_BESIDE_A_CARD_PCT = 10.0, 50.0
# Measured values whose mean over the seeds has no meaning.
OF_ONE_RUN = ("best_step", "last_step", "learning_rate_at_edge")
FROM_TRAINING = tuple(name for name in COMPARISON.measured_by("training") if name not in OF_ONE_RUN)
FROM_EVALUATION = COMPARISON.measured_by("evaluation")
PAID = (
    "load_seconds", "quantize_seconds", "adapter_start_seconds", "probe_seconds", "search_seconds", "train_seconds",
    "other_seconds",
)  # fmt: skip

EVALUATING = ("evaluation_load_seconds", "loss_seconds", "answer_seconds", "serving_seconds")


@dataclass(frozen=True)
class Seed:
    """The newest attempt of one seed and its evaluations.

    `good` is its newest good evaluation, stale or not; `last` its newest evaluation, good or not.
    `retiming` is a later attempt that was meant to measure the speed again and did not end ok.
    """

    attempt: Attempt
    good: Evaluation | None
    last: Evaluation | None
    retiming: Attempt | None


@dataclass(frozen=True)
class Comparison:
    """The rows, their qualities by record, and the name of the method that trains nothing."""

    rows: list[Row]
    qualities: Qualities
    base: str | None


def comparison_rows(resolved: Resolved) -> list[Row]:
    """One row per configured model × method of the profile, in the order of experiments.yaml,
    then those outside it."""
    return comparison(resolved).rows


def comparison(resolved: Resolved) -> Comparison:
    """One row per configured model × method of the profile in the order of experiments.yaml, then
    those outside it.

    The result also holds the qualities by which the rows are compared.
    """
    by, project = evaluated_by(resolved), resolved.project
    keys = {cell: resolved.cell(*cell).keys for cell in project.grid} | cells_outside(project)
    plans = [resolved.cell(*cell) for cell in keys]
    seeds = {cell: [_seed(project, key, by.fingerprint) for key in cell_keys] for cell, cell_keys in keys.items()}
    rows = [_row(resolved, plan, seeds[plan.cell], by) for plan in plans]
    qualities = _qualities(resolved, plans, seeds, by)
    answered = {plan.cell: one for plan in plans if (one := _answered(project, plan, seeds[plan.cell]))}
    for row in rows:
        base, full = (_of_method(rows, row, method) for method in (base_method(project), "full"))
        _add_interval(row, qualities)
        _add_base(row, base, qualities)
        add_benchmarks(row, base, answered, project.settings.evaluation)
        _add_ratios(project, row, full, qualities)
    add_against_retrieval(rows, qualities, arms_of(project), partial(_answer_scores, seeds))
    mark_pareto(of_profile(rows), qualities)
    add_predictions(resolved, rows)
    add_targets(project, rows)
    for row in rows:
        row["advice"] = advise(row, rows if is_outside(row) else of_profile(rows))
    return Comparison(rows, qualities, base_method(project))


def _of_method(rows: Sequence[Row], row: Row, method: str | None) -> Row | None:
    """The row of the same model with that method. A row of the profile is compared only with
    rows of the profile."""
    candidates = rows if is_outside(row) else of_profile(rows)
    return next((one for one in candidates if (one["model"], one["method"]) == (row["model"], method)), None)


def _answer_scores(seeds: Mapping[tuple[str, str], Sequence["Seed | None"]], row: Row) -> dict[str, float]:
    """The chrF of each of the row's answers by record, as a mean over the seeds."""
    good = [seed.good for seed in seeds[row["model"], row["method"]] if seed and seed.good]
    by_record: dict[str, list[float]] = {}
    for answer in (one for evaluation in good for one in evaluation.answers()):
        by_record.setdefault(answer["example_id"], []).append(answer["chrf"])
    return {name: fmean(scores) for name, scores in by_record.items()}


def add_predictions(resolved: Resolved, rows: Sequence[Row]) -> None:
    """Add the predicted peak of training for the cell as configured now, if there is one; of
    several seeds the largest.

    The advice also needs the prediction with micro-batches half as large.
    """
    cells = [(row["model"], row["method"]) for row in rows]
    predictions: dict[tuple[str, str], list[Row]] = {cell: [] for cell in cells}
    for question in questions(resolved.project, cells, resolved.project.settings.seeds, resolved):
        if prediction := read_json(question.file):
            predictions[question.model, question.method].append(prediction)
    for row in rows:
        own = predictions[row["model"], row["method"]]
        row["estimated_memory_gb"] = max(filter(None, map(training_gb, own)), default=None)
        row["estimated_half_batch_gb"] = max(filter(None, (one.get("halved_gb") for one in own)), default=None)


def _qualities(
    resolved: Resolved,
    plans: Sequence[CellPlan],
    seeds: Mapping[tuple[str, str], Sequence["Seed | None"]],
    by: EvaluatedBy,
) -> Qualities:
    project = resolved.project
    known = {plan.cell: quality for plan in plans if (quality := _quality(project, plan, seeds[plan.cell]))}
    runs = {plan.cell: quality for plan in plans if (quality := _all_runs(resolved, plan, by))}
    assumed = assumed_spreads(project.experiments, [plan.cell for plan in plans])
    return Qualities(known, runs=runs, assumed=assumed)


def _row(resolved: Resolved, plan: CellPlan, seeds: Sequence["Seed | None"], by: EvaluatedBy) -> Row:
    model, method = plan.cell
    project, profile = resolved.project, resolved.project.settings
    row: Row = comparison_for(profile.evaluation).empty()
    row |= {"model": model, "method": method, "profile": project.profile, "seeds": len(seeds), "seeds_ok": 0}
    row["outside_profile"] = plan.cell not in project.grid
    row["model_note"] = _note(project, model)
    present = [seed for seed in seeds if seed]
    row["status"] = worst([_status(seed) for seed in seeds])
    if not present:
        return row
    newest = max(present, key=lambda seed: seed.attempt.run_id)
    shown = next((seed for seed in present if _status(seed) == row["status"]), newest)
    _add_attempt(row, shown, newest)
    row["status_detail"] = "; ".join(filter(None, (row["status_detail"], *map(_not_timed_again, present)))) or None
    counted = [seed for seed in present if seed.attempt.status == "ok"] or [shown]
    _add_numbers(row, counted)
    row["speed_disturbed"] = disturbed(row["other_cpu_pct"], row["device"])
    if row["status"] == "ok":
        row |= weakest([_rate_of_seed(row, seed) for seed in counted])
    row["rates"] = rates_of(row)
    row["fast_path"] = covers_adapters(row["fast_paths"], shown.attempt.spec.recipe)
    row["seeds_ok"] = sum(_status(seed) == "ok" for seed in present)
    _add_weights(row, resolved, present)
    _add_staleness(row, resolved, present, by)
    _add_price(row, counted, profile.price_per_hour)
    return row


def _add_weights(row: Row, resolved: Resolved, seeds: Sequence["Seed"]) -> None:
    """Add the known facts about the weights that the seeds began with."""
    project, name = resolved.project, row["model"]
    model = project.experiments.model(name)
    if model.origin.source.random:
        # A loss of random weights says nothing about quality.
        row["train_loss"] = None
    row["weights_fingerprint"] = weights_fingerprint(resolved, [seed.attempt for seed in seeds])
    if all(resolved.fits(seed.attempt) for seed in seeds):
        row["dropped_layers"] = chosen_layers.dropped(project.data, name, model)


def _add_staleness(row: Row, resolved: Resolved, seeds: Sequence["Seed"], by: EvaluatedBy) -> None:
    because = list(dict.fromkeys(name for seed in seeds for name in stale_because(resolved, seed, by)))
    row["is_stale"], row["stale_because"] = bool(because), ", ".join(because) or None
    # A lost run has no detail of its own, and the detail in the row holds only for an unchanged
    # cell.
    if row["status"] == "lost" and because:
        row["status_detail"] = f"the process that ran it ended without a word; {next_run(row)}"


def _add_price(row: Row, seeds: Sequence["Seed"], price_per_hour: float | None) -> None:
    if price_per_hour is not None and row["train_seconds"] is not None:
        paid = fmean(paid_seconds(seed.attempt.result.measured) for seed in seeds)
        row["train_usd"] = price_per_hour * paid / 3600


def note_on(model: Model) -> str | None:
    """The note on the model's weights in every table."""
    shape = model.origin.source.random
    random_note = (
        f"random weights in the shape of {shape}: memory and speed only, quality is not measured" if shape else None
    )
    fewer = _fewer_layers(model)
    return " ".join(filter(None, dict.fromkeys((random_note, model.origin.note, model.note, fewer)))) or None


def _fewer_layers(model: Model) -> str | None:
    """The layers of its parent that the model lacks, as far as the configuration names them."""
    drop, parent = model.source.drop_layers, model.source.parent
    if drop is None:
        return _fewer_layers(model.parent) if model.parent else None
    named = f"layers {shortened.in_words(drop)}" if isinstance(drop, list) else f"{drop} of the layers"
    return f"Without {named} of {parent}."


def _note(project: Project, name: str) -> str | None:
    """The note on the model and on the weights in the data folder."""
    model = project.experiments.model(name)
    return " ".join(filter(None, (note_on(model), chosen_layers.note_on_choice(project.data, name, model)))) or None


def _seed(project: Project, key: CellKey, fingerprint: str) -> Seed | None:
    attempt = cells.latest(project.data, key)
    if attempt is None:
        return None
    evaluations = attempt.evaluations()
    good = current_evaluation(attempt, fingerprint) or next((e for e in reversed(evaluations) if e.ok), None)
    return Seed(attempt, good, evaluations[-1] if evaluations else None, cells.failed_retiming(project.data, key))


def _status(seed: Seed | None) -> str:
    """The status of a seed. A trained cell with a failed evaluation has the status of that
    evaluation."""
    if seed is None:
        return "missing"
    failed_evaluation = seed.attempt.status == "ok" and seed.last and not seed.good
    return seed.last.result.status if failed_evaluation and seed.last else seed.attempt.status


def worst(statuses: Sequence[str]) -> str:
    return min(statuses, key=lambda status: [str(s) for s in SEVERITY].index(status))


def weights_fingerprint(resolved: Resolved, attempts: Sequence[Attempt]) -> str | None:
    """The fingerprints of the attempts' weights, joined if they differ; None if none is known."""
    good = [attempt for attempt in attempts if attempt.status == "ok"] or attempts
    known = [resolved.weights_of(attempt) for attempt in good]
    return ", ".join(dict.fromkeys(one or "unknown" for one in known)) if any(known) else None


def stale_because(resolved: Resolved, seed: Seed, by: EvaluatedBy) -> list[str]:
    """The names of the inputs that no longer match: data, recipe, code, machine, evaluation or
    memory budget.

    The memory budget is named if a good row used more than it allows now. `code` is the trainer's
    or the evaluation's.
    """
    because = resolved.changed(seed.attempt)
    if seed.attempt.status == "ok" and resolved.over_budget(seed.attempt):
        because.append(MEMORY_BUDGET)
    evaluation = by.changed_since(seed.good) if seed.attempt.status == "ok" else None
    return because if evaluation is None or evaluation in because else [*because, evaluation]


def _not_timed_again(seed: Seed) -> str | None:
    """A note if the seed's speed was to be measured again and that attempt failed."""
    if (failed := seed.retiming) is None:
        return None
    why = f": {failed.result.status_detail}" if failed.result.status_detail else ""
    return f"its speed could not be measured again, {failed.run_id} ended as {failed.status}{why}"


def _add_attempt(row: Row, shown: Seed, newest: Seed) -> None:
    result = shown.attempt.result
    if shown.attempt.status == "ok" and row["status"] != "ok" and shown.last:
        result = replace(result, phase=shown.last.result.phase, status_detail=shown.last.result.status_detail)
    elif shown.attempt.status == "ok" and shown.good is None:
        result = replace(result, status_detail="trained, not evaluated yet")
    elif shown.attempt.status == "ok" and shown.good and (lost := shown.good.result.status_detail):
        # A part of the evaluation could not be measured.
        result = replace(result, status_detail=lost)
    spec = shown.attempt.spec
    recipe, prints = spec.recipe, spec.fingerprints
    row |= {
        "phase": result.phase,
        "status_detail": result.status_detail,
        **learning_rate(result, spec),
        **{name: result.measured.get(name) for name in ("best_step", "last_step")},
        **adapter_of(recipe),
        "max_length": recipe.get("max_length"),
        "weights_revision": result.weights_revision,
        "optimizer": optimizer_of(recipe),
        "memory_budget_gb": spec.memory_budget_gb,
        **placement(spec),
        "data_fingerprint": prints.get("data"),
        "recipe_fingerprint": prints.get("recipe"),
        "code_version": prints.get("code"),
        "device": result.device or machine.machine_class(),
        "finished_at": result.finished_at,
        "run_id": newest.attempt.run_id,
        "evaluation_fingerprint": shown.good.fingerprint if shown.good else None,
    }


def adapter_of(recipe: Mapping[str, Any]) -> Row:
    """The adapter's rank and alpha, and its settings in PEFT's own format."""
    traits = traits_of(recipe)
    own = None if traits.is_short or not traits.peft else json.dumps(dict(traits.peft), sort_keys=True)
    return {
        "rank": traits.rank,
        "alpha": recipe.get("alpha") if traits.is_short else traits.alpha,
        "peft": own,
    }


def placement(spec: RunSpec) -> Row:
    """The devices, sharding and launcher of the attempt."""
    return {"devices": spec.devices, "sharding": spec.sharding, "launcher": spec.launcher}


def micro_batch_tokens(result: RunResult, spec: RunSpec) -> int | None:
    """The micro-batch size that the run used; the configured one if it was not recorded, as by
    older code."""
    return result.measured.get("micro_batch_tokens", spec.recipe.get("micro_batch_tokens"))


def learning_rate(result: RunResult, spec: RunSpec) -> Row:
    """The learning rate used, its source, and whether it was the smallest or largest of those
    tried."""
    measured, configured = result.measured, spec.recipe.get("learning_rate")
    return {
        "learning_rate": measured.get("learning_rate", None if isinstance(configured, list) else configured),
        "learning_rate_source": measured.get("learning_rate_source") or spec.learning_rate_source
        if configured
        else None,
        "learning_rate_at_edge": measured.get("learning_rate_at_edge"),
    }


def _rate_of_seed(row: Row, seed: Seed) -> Row:
    return {"trainable_params": row["trainable_params"], **learning_rate(seed.attempt.result, seed.attempt.spec)}


def _add_numbers(row: Row, seeds: Sequence[Seed]) -> None:
    """Add means over the seeds for measured numbers; texts come from the first seed."""
    trained = [seed.attempt.result.measured for seed in seeds]
    evaluated = [seed.good.result.measured for seed in seeds if seed.good]
    row |= _means(FROM_TRAINING, trained) | _means(FROM_EVALUATION, evaluated)
    used = [tokens for seed in seeds if (tokens := micro_batch_tokens(seed.attempt.result, seed.attempt.spec))]
    row["micro_batch_tokens"] = min(used, default=None)
    row["evaluation_seconds"] = _mean(
        [seconds for m in evaluated if (seconds := sum(m.get(name) or 0.0 for name in EVALUATING))]
    )
    bits = [m["eval_bits_per_byte"] for m in evaluated if m.get("eval_bits_per_byte") is not None]
    row["eval_bits_per_byte_std"] = stdev(bits) if len(bits) > 1 else None


def disturbed(other_cpu_pct: float | None, device: str | None) -> bool | None:
    """Whether other programs used too much of the processors for a valid speed; None if that was
    not measured."""
    limit = DISTURBED_BESIDE_A_CARD_PCT if machine.is_card(device) else DISTURBED_PCT
    return None if other_cpu_pct is None else other_cpu_pct > limit


def paid_seconds(measured: Mapping[str, Any]) -> float:
    """The seconds of a cell that its device is paid for; an older row has only some of them."""
    return sum(measured.get(name) or 0.0 for name in PAID)


def _means(names: Sequence[str], measured: Sequence[Mapping[str, Any]]) -> Row:
    return {name: _mean([m[name] for m in measured if m.get(name) is not None]) for name in names}


def _mean(values: Sequence[Any]) -> Any:
    if not values or not isinstance(values[0], int | float):
        return values[0] if values else None
    return values[0] if len(values) == 1 else fmean(values)


def _answered(project: Project, plan: CellPlan, seeds: Sequence["Seed | None"]) -> Scores | None:
    """The scores of the cell's runs on the profile's benchmarks, over the seeds that ended ok."""
    if not project.settings.evaluation.benchmarks:
        return None
    trains = project.experiments.method(plan.method).traits.trains
    return scores_of(list(_good(seeds).values()), trained=trains)


def _good(seeds: Sequence["Seed | None"]) -> dict[int, Evaluation]:
    """The evaluations of the seeds that ended ok."""
    return {seed.attempt.key.seed: seed.good for seed in seeds if seed and seed.good and seed.attempt.status == "ok"}


def _quality(project: Project, plan: CellPlan, seeds: Sequence["Seed | None"]) -> Quality | None:
    """The quality over the seeds that ended ok, like the row's other numbers."""
    good = _good(seeds)
    trains = project.experiments.method(plan.method).traits.trains
    return quality_of(list(good.values()), seeds=tuple(good), trained=trains)


def _all_runs(resolved: Resolved, plan: CellPlan, by: EvaluatedBy) -> Quality | None:
    """The quality over every seed trained with the current cell, if the profile does not name
    all of them; else None."""
    project, (model, method) = resolved.project, plan.cell
    folders = (project.data.cells / model / method).glob("[0-9]*")
    keys = [CellKey(model, method, seed) for seed in sorted(int(one.name) for one in folders if one.name.isdigit())]
    if not project.experiments.method(method).traits.trains or set(keys) <= set(plan.keys):
        return None
    evaluated = [seed for key in keys if (seed := _seed(project, key, by.fingerprint)) and seed.good]
    return _quality(project, plan, [seed for seed in evaluated if set(stale_because(resolved, seed, by)) <= {"code"}])


def _add_interval(row: Row, qualities: Qualities) -> None:
    quality = qualities.of(row)
    if quality and (interval := quality.interval()):
        row["eval_bits_per_byte_low"], row["eval_bits_per_byte_high"] = interval.low, interval.high
    if spread := qualities.spread(row):
        row |= {"seed_spread_bits_per_byte": spread.value, "seed_spread_source": spread.source}


def _add_difference(row: Row, name: str, other: Row, qualities: Qualities) -> None:
    if row is not other and (difference := qualities.difference(row, other)):
        row |= {name: difference.value, f"{name}_low": difference.low, f"{name}_high": difference.high}


def _add_base(row: Row, base: Row | None, qualities: Qualities) -> None:
    """Add the untouched model's bits per byte, the difference to it, and the loss on general texts
    above its loss.

    The difference needs the same weights and the same records.
    """
    if base and base["weights_fingerprint"] != row["weights_fingerprint"]:
        return
    if base and row["eval_set"] and base["eval_set"] == row["eval_set"]:
        row["base_bits_per_byte"] = base["eval_bits_per_byte"]
        _add_difference(row, "delta_base", base, qualities)
    general = row["general_bits_per_byte"]
    same_texts = base and row["general_set"] and base["general_set"] == row["general_set"]
    if base and same_texts and general is not None and base["general_bits_per_byte"] is not None:
        row["forgetting_bits_per_byte"] = general - base["general_bits_per_byte"]


def _add_ratios(project: Project, row: Row, full: Row | None, qualities: Qualities) -> None:
    """Add speed, memory and quality against `full` of the same model, or the reason why they are
    missing.

    Both rows must be ok and comparable. With other micro-batches only quality is compared; a
    disturbed speed is not compared.
    """
    if not project.experiments.method(row["method"]).traits.trains or row["status"] != "ok":
        return
    if full is None:
        row["ratios_because"] = "the profile has no method full"
    elif full["status"] != "ok":
        row["ratios_because"] = f"full is {full['status']}"
    elif different := incomparable(row, full):
        row["ratios_because"] = f"full was measured with other {different}"
    elif different := other_costs(row, full):
        row["ratios_because"] = f"full was measured with other {different}"
        _add_difference(row, "delta_full", full, qualities)
    else:
        if marked := [one for one in ([full] if row is full else [full, row]) if not has_valid_speed(one)]:
            row["ratios_because"] = f"speed disturbed: {in_words(marked, method_name)}"
        elif full["train_seconds"] and row["train_seconds"]:
            row["speedup_vs_full"] = full["train_seconds"] / row["train_seconds"]
        if full["peak_memory_gb"] and row["peak_memory_gb"]:
            row["memory_vs_full"] = row["peak_memory_gb"] / full["peak_memory_gb"]
        _add_difference(row, "delta_full", full, qualities)
