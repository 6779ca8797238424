"""What is done with answers that are kept, without the model: teachers answer the same, and the judge scores all of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pipelines.evaluate import judge, teacher
from pipelines.evaluate.cell import current_evaluation, evaluated_by
from pipelines.generate.generate import GenerationResult, ProviderResult, Session, outcome, session
from pipelines.generate.journal import Journal, Request, opened
from pipelines.generate.judge import ask_enabled
from pipelines.generate.send import Progress
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


def kept_answers(project: Project, model: str, method: str, fingerprint: str) -> list[list[Row]]:
    """The answers of a cell as the comparison shows it, one list for each seed that has any."""
    keys = [CellKey(model, method, seed) for seed in project.settings.seeds]
    found = [shown_evaluation(project, key, fingerprint) for key in keys]
    return [rows for evaluation in found if evaluation and (rows := evaluation.answers())]


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
) -> GenerationResult:
    """Have the teachers answer what these evaluations' models were asked (none given: all that the comparison shows), then have
    the judge score all answers, for at most `budget_usd` of this call's own; what the journal holds is not asked again. Without
    teachers and judge nothing is done.

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
    if not _anything_pending(project, records, answers):
        return GenerationResult()
    with session(project.data, project.experiments, progress=progress, budget_usd=budget_usd, wait=wait) as run:
        taught = {name: teacher.requests(project, name, records) for name in project.experiments.judging.teachers}
        results = _ask(run, taught, "teacher")
        results |= _ask(run, _for_the_judge(run.journal, project, records, answers), "judge")
        return GenerationResult(results, run.orphans)


def _all_answers(resolved: Resolved) -> list[list[Row]]:
    fingerprint = evaluated_by(resolved).fingerprint
    return [rows for cell in resolved.project.grid for rows in kept_answers(resolved.project, *cell, fingerprint)]


def _for_the_judge(
    journal: Journal | None, project: Project, records: Sequence[Row], answers: Sequence[Sequence[Row]]
) -> dict[str, list[Request]]:
    """All verdicts wanted, on the models' answers and on the teachers' that are here."""
    name = project.experiments.judging.judge
    if name is None:
        return {}
    taught = [teacher.answers(journal, project, one, records) for one in teacher.teachers(project)]
    wanted = [request for rows in (*answers, *taught) for request in judge.requests(project.experiments, rows)]
    return {name: list({request.key: request for request in wanted}.values())}


def _anything_pending(project: Project, records: Sequence[Row], answers: Sequence[Sequence[Row]]) -> bool:
    """Whether there is something to send; looked up without the lock that a run of hours may hold."""
    with reading(project) as journal:
        if journal is None:
            return bool(records)
        wanted = [
            one for name in project.experiments.judging.teachers for one in teacher.requests(project, name, records)
        ]
        verdicts = _for_the_judge(journal, project, records, answers).values()
        return bool(journal.to_send([*wanted, *(one for some in verdicts for one in some)]))


def _ask(run: Session, wanted: Mapping[str, list[Request]], role: str) -> dict[str, ProviderResult]:
    held = {name: run.journal.answered_among(requests) for name, requests in wanted.items()}
    tallies = ask_enabled(run, wanted, role)
    return {f"{name} ({role})": outcome(run, name, wanted[name], held[name], tallies[name]) for name in wanted}
