"""Work on stored answers that needs no model: teachers answer the same questions; the judge scores
all answers and compares them with the untouched model's."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pipelines.evaluate import judge, pairs, teacher, teaching
from pipelines.evaluate.cell import base_of, current_evaluation, evaluated_by
from pipelines.evaluate.endings import has_ended
from pipelines.evaluate.pairs import Match
from pipelines.generate.estimate import Estimate, of_requests
from pipelines.generate.generate import GenerationResult, ProviderResult, device_lock, session
from pipelines.generate.journal import Journal, opened
from pipelines.generate.providers import enabled
from pipelines.generate.send import Progress
from pipelines.generate.verdicts import Reply, to_ask, unreadable_in
from pipelines.project import Project, Resolved
from pipelines.runs import cells
from pipelines.runs.cells import CellKey, Evaluation
from pipelines.settings.judging import Teacher

Row = dict[str, Any]
# The two roles of the judge: it scores one answer, or compares two.
ROLES = ("judge", "pair")


def shown_evaluation(project: Project, key: CellKey, fingerprint: str) -> Evaluation | None:
    """The evaluation that the comparison shows for a cell: the newest attempt's current one, else
    its last good one."""
    attempt = cells.latest(project.data, key)
    if attempt is None:
        return None
    good = [one for one in attempt.evaluations() if one.ok]
    return current_evaluation(attempt, fingerprint) or (good[-1] if good else None)


def answers_of(evaluation: Evaluation) -> list[Row]:
    """The evaluation's answers, each with `ended` (None if unknown)."""
    settings = evaluation.spec.more.get("settings")
    limit = settings.get("max_new_tokens") if isinstance(settings, dict) else None
    return [{**row, "ended": has_ended(row, limit)} for row in evaluation.answers()]


def kept_answers(project: Project, model: str, method: str, fingerprint: str) -> list[list[Row]]:
    """The answers of a cell that the comparison shows, one list for each seed with answers."""
    keys = [CellKey(model, method, seed) for seed in project.settings.seeds]
    evaluations = [shown_evaluation(project, key, fingerprint) for key in keys]
    return [rows for evaluation in evaluations if evaluation and (rows := answers_of(evaluation))]


def sample(resolved: Resolved) -> list[Row]:
    """The held-out records that the profile's models have answered."""
    return _records(resolved, [one.answers() for one in _all_evaluations(resolved)])


@contextmanager
def reading(project: Project) -> Iterator[Journal | None]:
    """The journal; None if no request was ever sent."""
    if not project.data.journal.exists():
        yield None
        return
    with opened(project.data.journal) as journal:
        yield journal


def is_configured(project: Project) -> bool:
    """Whether a judge or a teacher is configured."""
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
    """Send the requests to teachers and judge about these evaluations; none means all that the
    comparison shows.

    The teachers answer the questions that the models were asked. The judge then scores all answers
    and, with `judging.pairs`, compares them with the untouched model's. `budget_usd` caps the cost
    of this call. Nothing in the journal is sent again, except with `again` the requests without a
    readable verdict. Without teachers and judge the call does nothing.

    Raises:
        UsageError: the prompts are broken.
        WorkError: the journal cannot be written.
        InUseError: `wait` is False, there are requests to send, and another process is sending.
    """
    project = resolved.project
    if not is_configured(project):
        return GenerationResult()
    about = _subject(resolved, evaluations)
    if done := _held_result(about, again=again):
        return done
    name = project.experiments.judging.judge
    with ExitStack() as held:
        # Take the device before the session, since it may be in use for hours.
        device = held.enter_context(device_lock(wait=wait)) if teaching.local_teachers(project) else None
        run = held.enter_context(
            session(project.data, project.experiments, progress=progress, budget_usd=budget_usd, wait=wait)
        )
        results = teaching.ask_teachers(run, resolved, about.records, device)
        # The judge comes last, since it also judges the teachers' new answers.
        for role in ROLES if name else ():
            requests = to_ask(about.replies(run.journal, role), again=again)
            judged = teaching.send(run, {name: requests}, role) if name and requests else {}
            counts = unreadable_in(about.replies(run.journal, role))
            results |= {key: replace(one, **counts) for key, one in judged.items()}
        return GenerationResult(results, run.orphans)


def estimates(resolved: Resolved) -> Iterator[Estimate]:
    """The requests that `ask` would send now and their cost, by provider and role. Sends nothing.

    Two kinds of requests are not counted: verdicts on teachers' answers that do not exist yet, and
    requests to teachers whose retrieval is missing.
    """
    project = resolved.project
    if not is_configured(project):
        return
    about, name = _subject(resolved, ()), project.experiments.judging.judge
    with opened(project.data.journal) as journal:
        known = teaching.known_requests(resolved, journal, about.records)
        batches = [(one, "teacher", requests) for one, requests in known.items()]
        batches += [(name, role, to_ask(about.replies(journal, role), again=False)) for role in ROLES if name]
        for one, role, requests in batches:
            if requests:
                estimate = of_requests(journal, project.experiments, one, requests)
                free = project.experiments.provider(one).kind == "local"
                not_enabled = (
                    None if free or one in enabled(project.experiments) else f"set providers.{one}.enabled: true"
                )
                yield replace(estimate, provider=f"{one} ({role})", problem=not_enabled or estimate.problem)


@dataclass(frozen=True)
class Subject:
    """What teachers and judge work on: each run's answers, the answered records, and the runs'
    matches.

    `bases` holds the untouched model's evaluation by model, or the reason why answers are not
    compared with it.
    """

    resolved: Resolved
    records: Sequence[Row]
    answers: Sequence[Sequence[Row]]
    matches: Sequence[Match]
    bases: Mapping[str, Evaluation | str]

    def replies(self, journal: Journal, role: str) -> list[Reply[Any]]:
        """The state of the judge's verdicts in `role`, on the answers of the models and the
        teachers."""
        experiments, project = self.resolved.experiments, self.resolved.project
        if role == "pair" and not pairs.is_configured(experiments):
            return []
        taught = [
            (one, teacher.answers(journal, self.resolved, one, self.records)) for one in teacher.teachers(project)
        ]
        if role == "judge":
            answers = [*self.answers, *(rows for _, rows in taught)]
            return [one for rows in answers for one in judge.replies(journal, experiments, rows)]
        teacher_matches = [teacher_match(project, one, rows, self.bases) for one, rows in taught]
        matches = [*self.matches, *(one for one in teacher_matches if isinstance(one, Match))]
        return pairs.all_replies(journal, experiments, matches)


def _subject(resolved: Resolved, evaluations: Sequence[Evaluation]) -> Subject:
    about = evaluations or _all_evaluations(resolved)
    answers = [rows for one in about if (rows := one.answers())]
    bases = base_evaluations(resolved, [one.attempt.key.model for one in about])
    matches = [match for one in about if isinstance(match := run_match(resolved, one, bases), Match)]
    return Subject(resolved, _records(resolved, answers), answers, matches, bases)


def _all_evaluations(resolved: Resolved) -> list[Evaluation]:
    project, fingerprint = resolved.project, evaluated_by(resolved).fingerprint
    keys = [CellKey(*cell, seed) for cell in project.grid for seed in project.settings.seeds]
    return [evaluation for key in keys if (evaluation := shown_evaluation(project, key, fingerprint))]


def _records(resolved: Resolved, answers: Sequence[Sequence[Row]]) -> list[Row]:
    ids = {row["example_id"] for rows in answers for row in rows}
    return [record for record in resolved.selected.eval if record["example_id"] in ids]


def base_evaluations(resolved: Resolved, models: Sequence[str]) -> dict[str, Evaluation | str]:
    """The untouched model's evaluation by model, or why answers are not compared with it.

    Empty without `judging.pairs`.
    """
    if not pairs.is_configured(resolved.experiments):
        return {}
    by = evaluated_by(resolved)
    evaluations: dict[str, Evaluation | str] = {}
    for model in dict.fromkeys(models):
        base = base_of(resolved.project, model)
        shown = shown_evaluation(resolved.project, base, by.fingerprint) if base else None
        evaluations[model] = pairs.base_answers(resolved, by, model, shown)
    return evaluations


def run_match(resolved: Resolved, evaluation: Evaluation, bases: Mapping[str, Evaluation | str]) -> Match | str | None:
    """The evaluation's answers against the untouched model's, or why they are not compared; None
    for the untouched model itself."""
    key = evaluation.attempt.key
    base = base_of(resolved.project, key.model)
    if key.model not in bases or (base and (key.model, key.method) == (base.model, base.method)):
        return None
    against = bases[key.model]
    return against if isinstance(against, str) else pairs.match_runs(resolved, evaluation, against)


def cell_matches(
    resolved: Resolved, model: str, method: str, bases: Mapping[str, Evaluation | str], fingerprint: str
) -> list[Match | str]:
    """The matches of a cell that the comparison shows, one for each evaluated seed.

    `fingerprint` is that of `evaluated_by`.
    """
    project = resolved.project
    keys = [CellKey(model, method, seed) for seed in project.settings.seeds]
    evaluations = [shown for key in keys if (shown := shown_evaluation(project, key, fingerprint))]
    return [match for one in evaluations if (match := run_match(resolved, one, bases))]


def teacher_match(
    project: Project, one: Teacher, rows: Sequence[Row], bases: Mapping[str, Evaluation | str]
) -> Match | str | None:
    """The teacher's answers against those of the profile's only untouched model, or why there is no
    match."""
    if not bases or not rows:
        return None
    if len(project.settings.models) > 1:
        return "the profile has several models, so there is no single untouched model to compare a teacher with"
    against = bases.get(project.settings.models[0], "the untouched model has no evaluation")
    return against if isinstance(against, str) else pairs.match_rows(one.run_id, rows, against)


def _held_result(about: Subject, *, again: bool) -> GenerationResult | None:
    """The result if there is nothing to send, else None.

    The check takes no lock, because another run may hold the lock for hours.
    """
    project = about.resolved.project
    name = project.experiments.judging.judge
    with reading(project) as journal:
        if journal is None:
            return None if about.records else GenerationResult()
        teacher_requests = teaching.all_requests(about.resolved, journal, about.records)
        if teacher_requests is None:
            return None
        replies = {role: about.replies(journal, role) if name else [] for role in ROLES}
        verdicts = {role: to_ask(role_replies, again=again) for role, role_replies in replies.items()}
        if journal.to_send([*teacher_requests, *(one for requests in verdicts.values() for one in requests)]):
            return None
        charges = journal.charges().get(name or "")
        results = {}
        for role, role_replies in replies.items():
            if (unreadable := unreadable_in(role_replies))["unreadable"]:
                held = journal.answered_among(verdicts[role])
                result = ProviderResult(len(verdicts[role]), held, usd=charges.total if charges else 0.0)
                results[f"{name} ({role})"] = replace(result, **unreadable)
        return GenerationResult(results)
