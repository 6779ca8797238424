"""What is done with answers that are kept, without the model: teachers answer the same, and the judge scores all of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pipelines.evaluate import judge, teacher
from pipelines.evaluate.cell import current_evaluation, evaluated_by
from pipelines.evaluate.endings import has_ended
from pipelines.generate.generate import GenerationResult, ProviderResult, Session, outcome, session
from pipelines.generate.journal import Journal, Request, opened
from pipelines.generate.judge import ask_enabled
from pipelines.generate.send import Progress
from pipelines.generate.verdicts import Reply, to_ask, unreadable_in
from pipelines.project import Project, Resolved
from pipelines.runs import cells
from pipelines.runs.cells import CellKey, Evaluation

Row = dict[str, Any]


def shown_evaluation(project: Project, key: CellKey, fingerprint: str) -> Evaluation | None:
    """The evaluation that the comparison shows of a cell: the newest attempt's current one, else its last good one."""
    attempt = cells.latest(project.data, key)
    if attempt is None:
        return None
    good = [one for one in attempt.evaluations() if one.ok]
    return current_evaluation(attempt, fingerprint) or (good[-1] if good else None)


def answers_of(evaluation: Evaluation) -> list[Row]:
    """The evaluation's answers, each with `ended` as far as that is known."""
    settings = evaluation.spec.more.get("settings")
    limit = settings.get("max_new_tokens") if isinstance(settings, dict) else None
    return [{**row, "ended": has_ended(row, limit)} for row in evaluation.answers()]


def kept_answers(project: Project, model: str, method: str, fingerprint: str) -> list[list[Row]]:
    """The answers of a cell as the comparison shows it, one list for each seed that has any."""
    keys = [CellKey(model, method, seed) for seed in project.settings.seeds]
    found = [shown_evaluation(project, key, fingerprint) for key in keys]
    return [rows for evaluation in found if evaluation and (rows := answers_of(evaluation))]


def sample(resolved: Resolved) -> list[Row]:
    """The held-out records that the profile's models were asked, as they were kept with their answers."""
    asked = {row["example_id"] for rows in _all_answers(resolved) for row in rows}
    return [record for record in resolved.selected.eval if record["example_id"] in asked]


@contextmanager
def reading(project: Project) -> Iterator[Journal | None]:
    """The journal, or None where nobody was ever asked."""
    if not project.data.journal.exists():
        yield None
        return
    with opened(project.data.journal) as journal:
        yield journal


def is_configured(project: Project) -> bool:
    """Whether anybody is to be asked: a judge, or a teacher."""
    return bool(project.experiments.judging.judge or project.experiments.judging.teachers)


def ask(
    resolved: Resolved,
    evaluations: Sequence[Evaluation] = (),
    *,
    progress: Progress | None = None,
    budget_usd: float | None = None,
    wait: bool = True,
    again: bool = False,
) -> GenerationResult:
    """Have the teachers answer what these evaluations' models were asked (none given: all that the comparison shows), then have
    the judge score all answers, for at most `budget_usd` of this call's own; what the journal holds is not asked again, but with
    `again` what the judge answered without a readable verdict, once more. Without teachers and judge nothing is done.

    Raises:
        UsageError: the prompts are broken.
        WorkError: the journal cannot be written.
        InUseError: `wait` is False, something is to be sent, and somebody else is sending.
    """
    project = resolved.project
    if not is_configured(project):
        return GenerationResult()
    answers = [one.answers() for one in evaluations] if evaluations else _all_answers(resolved)
    ids = {row["example_id"] for rows in answers for row in rows}
    records = [record for record in resolved.selected.eval if record["example_id"] in ids]
    if done := _all_held(project, records, answers, again=again):
        return done
    name = project.experiments.judging.judge
    with session(project.data, project.experiments, progress=progress, budget_usd=budget_usd, wait=wait) as run:
        taught = {one: teacher.requests(project, one, records) for one in project.experiments.judging.teachers}
        results = _ask(run, taught, "teacher")
        if name:  # now, since the teachers' new answers are judged too
            wanted = to_ask(_replies(run.journal, project, records, answers), again=again)
            judged = _ask(run, {name: wanted}, "judge")
            found = unreadable_in(_replies(run.journal, project, records, answers))
            results |= {key: replace(one, **found) for key, one in judged.items()}
        return GenerationResult(results, run.orphans)


def _all_answers(resolved: Resolved) -> list[list[Row]]:
    fingerprint = evaluated_by(resolved).fingerprint
    return [rows for cell in resolved.project.grid for rows in kept_answers(resolved.project, *cell, fingerprint)]


def _replies(
    journal: Journal, project: Project, records: Sequence[Row], answers: Sequence[Sequence[Row]]
) -> list[Reply[judge.Judgement]]:
    """How all verdicts wanted stand, on the models' answers and on the teachers' that are here."""
    taught = [teacher.answers(journal, project, one, records) for one in teacher.teachers(project)]
    return [one for rows in (*answers, *taught) for one in judge.replies(journal, project.experiments, rows)]


def _all_held(
    project: Project, records: Sequence[Row], answers: Sequence[Sequence[Row]], *, again: bool
) -> GenerationResult | None:
    """The result where there is nothing to send, else None; looked up without the lock that a run of hours may hold."""
    name = project.experiments.judging.judge
    with reading(project) as journal:
        if journal is None:
            return None if records else GenerationResult()
        wanted = [
            one for name in project.experiments.judging.teachers for one in teacher.requests(project, name, records)
        ]
        replies = _replies(journal, project, records, answers) if name else []
        verdicts = to_ask(replies, again=again)
        if journal.to_send([*wanted, *verdicts]):
            return None
        found = unreadable_in(replies)
        if name is None or not found["unreadable"]:
            return GenerationResult()
        charges = journal.charges().get(name)
        held = ProviderResult(len(verdicts), journal.answered_among(verdicts), usd=charges.total if charges else 0.0)
        return GenerationResult({f"{name} (judge)": replace(held, **found)})


def _ask(run: Session, wanted: Mapping[str, list[Request]], role: str) -> dict[str, ProviderResult]:
    held = {name: run.journal.answered_among(requests) for name, requests in wanted.items()}
    tallies = ask_enabled(run, wanted, role)
    return {f"{name} ({role})": outcome(run, name, wanted[name], held[name], tallies[name]) for name in wanted}
