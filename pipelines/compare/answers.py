"""Verdicts on answers in the comparison: the judge's shares in the cells' rows, and a row for
each teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pipelines.compare.columns.configured import comparison_for
from pipelines.compare.table import Row
from pipelines.evaluate import answers as answer_store
from pipelines.evaluate import judge, pairs, scores, teacher
from pipelines.evaluate.cell import evaluated_by
from pipelines.evaluate.statistics import percentile
from pipelines.generate.journal import Journal
from pipelines.generate.judge import family
from pipelines.generate.providers import missing_key
from pipelines.project import Project, Resolved
from pipelines.runs.cells import Evaluation
from pipelines.runs.status import Status
from pipelines.settings.experiments import Experiments
from pipelines.settings.judging import Teacher


def with_judgements(resolved: Resolved, rows: Sequence[Row]) -> list[Row]:
    """The cells' rows with their judge columns, then the teachers' rows."""
    project, fingerprint = resolved.project, evaluated_by(resolved).fingerprint
    with answer_store.reading(project) as journal:
        bases = answer_store.base_evaluations(resolved, project.settings.models)
        for row in rows:
            seeds = answer_store.kept_answers(project, row["model"], row["method"], fingerprint)
            row |= judge.cell_columns(journal, project.experiments, seeds)
            matches = answer_store.cell_matches(resolved, row["model"], row["method"], bases, fingerprint)
            row |= pairs.cell_columns(journal, project.experiments, row["model"], matches)
        return [*rows, *(_teacher_row(resolved, journal, one, bases) for one in _answers_by_teacher(resolved, journal))]


def pair_verdicts(resolved: Resolved) -> list[dict[str, Any]]:
    """The rows of the table pair_verdicts: every pair of the profile and of the teachers that
    has a verdict."""
    project, fingerprint = resolved.project, evaluated_by(resolved).fingerprint
    bases = answer_store.base_evaluations(resolved, project.settings.models)
    if not bases:
        return []
    with answer_store.reading(project) as journal:
        matches = [
            (cell, match)
            for cell in project.grid
            for match in answer_store.cell_matches(resolved, *cell, bases, fingerprint)
        ]
        for match in _answers_by_teacher(resolved, journal):
            if against := answer_store.teacher_match(project, match.teacher, match.answers, bases):
                matches.append(((match.teacher.provider, match.teacher.method), against))
        return [
            {**row, "model": model, "method": method}
            for (model, method), match in matches
            if isinstance(match, pairs.Match)
            for row in pairs.verdict_rows(journal, project.experiments, match)
        ]


@dataclass(frozen=True)
class TeacherAnswers:
    """A teacher, its answers as rows, and the number of prompts to answer."""

    teacher: Teacher
    answers: list[dict[str, Any]]
    prompts: int


def _answers_by_teacher(resolved: Resolved, journal: Journal | None) -> list[TeacherAnswers]:
    """The teachers that may be asked, with their answers so far."""
    names = teacher.teachers(resolved.project)
    records = answer_store.sample(resolved) if names else []
    return [TeacherAnswers(one, teacher.answers(journal, resolved, one, records), len(records)) for one in names]


def _teacher_row(
    resolved: Resolved, journal: Journal | None, entry: TeacherAnswers, bases: Mapping[str, Evaluation | str]
) -> Row:
    """A teacher's row. It has scores of answers, but no losses, training or memory."""
    one, answers, project = entry.teacher, entry.answers, resolved.project
    name = one.provider
    provider = resolved.experiments.provider(name)
    against = answer_store.teacher_match(project, one, answers, bases)
    status, detail = _outcome(project, name, len(answers), entry.prompts)
    tokens = [row["answer_tokens"] for row in answers if row["answer_tokens"] is not None]
    latencies = [row["latency_ms"] for row in answers if row["latency_ms"] is not None]
    retrieved = [row["retrieved"] for row in answers if "retrieved" in row]
    return {
        **comparison_for(project.settings.evaluation).empty(),
        "model": name,
        "method": one.method,
        "status": status,
        "phase": "evaluate",
        "status_detail": detail,
        "is_stale": False,
        "seeds": 1,
        "seeds_ok": int(status == "ok"),
        "profile": project.profile,
        "outside_profile": False,
        "model_note": _note(project.experiments, name),
        "advice": "not one of our models: the distance from the tuned models' answers to its answers is what is left to gain",
        "run_id": one.run_id,
        "answers": len(answers) or None,
        "answer_tokens": sum(tokens) if tokens else None,
        "p50_latency_ms": percentile(latencies, 0.5),
        "retrieved": fmean(retrieved) if retrieved else None,
        "device": provider.model,
        **scores.cell_scores(answers),
        **judge.cell_columns(journal, project.experiments, [answers] if answers else []),
        **pairs.cell_columns(journal, project.experiments, None, [against] if against else []),
    }


def _outcome(project: Project, name: str, answered: int, prompts: int) -> tuple[Status, str | None]:
    if prompts and answered == prompts:
        return "ok", None
    if not prompts:
        return "missing", "no model has answered yet, so there is nothing to ask the teacher"
    why = missing_key(project.experiments.provider(name)) or "run `featherweight judge` to ask for what is missing"
    return "unavailable", f"{answered} of {prompts} prompts are answered: {why}"


def _note(experiments: Experiments, name: str) -> str:
    provider, judge_name = experiments.provider(name), experiments.judging.judge
    note = f"{provider.model}, asked over its API with the same prompts; its losses cannot be seen."
    related = judge_name is not None and family(experiments.provider(judge_name)) == family(provider)
    return f"{note} Its judge is of its own family, which may favour it." if related else note


def teacher_answers(resolved: Resolved) -> list[dict[str, Any]]:
    """The teachers' answers as rows of evaluation_answers, the verdicts on them included."""
    project = resolved.project
    if not teacher.teachers(project):
        return []
    rows = []
    with answer_store.reading(project) as journal:
        for entry in _answers_by_teacher(resolved, journal):
            one = entry.teacher
            identity = {"run_id": one.run_id, "model": one.provider, "method": one.method}
            rows += [{**row, **identity} for row in with_verdicts(journal, project.experiments, entry.answers)]
    return rows


def with_verdicts(
    journal: Journal | None, experiments: Experiments, rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The answers with the judge's verdict on each."""
    verdicts = judge.judged(journal, experiments, rows)
    return [{**row, **judge.answer_columns(verdict)} for row, verdict in zip(rows, verdicts, strict=True)]
