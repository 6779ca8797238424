"""Teachers: providers that answer the models' prompts, for comparison.

Requests go through the journal and the budget (purpose `teacher`), with or without retrieval.
A teacher has no losses, because its probabilities are hidden. Its answers are scored like all
others and have the same token limit.
"""

from collections.abc import Sequence
from typing import Any

from pipelines.evaluate import scores
from pipelines.evaluate.retrieved_by_teachers import TeacherPrompt, answer_text, prepared
from pipelines.generate.answers import ended
from pipelines.generate.journal import Journal, Request
from pipelines.generate.providers import enabled
from pipelines.project import Project, Resolved
from pipelines.settings.judging import Teacher
from pipelines.train.trainer.conversations import calls_tools, conversation, question, spoken

Record = dict[str, Any]


def teachers(project: Project) -> list[Teacher]:
    """The configured teachers that are enabled. A local server costs nothing and counts as
    enabled."""
    allowed, known = enabled(project.experiments), project.experiments.providers
    return [
        one for one in project.experiments.judging.teachers
        if one.provider in allowed or known[one.provider].kind == "local"
    ]  # fmt: skip


def requests(
    resolved: Resolved, journal: Journal | None, teacher: Teacher, records: Sequence[Record]
) -> list[tuple[Record, Request, TeacherPrompt]]:
    """The records' questions, turn by turn as a model with a chat template gets them.

    With retrieval, only the records whose retrieval is done.
    """
    provider = resolved.experiments.provider(teacher.provider)
    limit = resolved.project.settings.evaluation.max_new_tokens
    own, triples = askable(records), []
    looked_up = prepared(resolved, journal, teacher, own) if teacher.retrieval else {}
    for record in own:
        prompt = looked_up.get(record["example_id"])
        if prompt is None and teacher.retrieval:
            continue
        prompt = prompt or TeacherPrompt(spoken(conversation(record)[:-1]))
        request = Request(
            provider=teacher.provider,
            model=provider.model,
            messages=prompt.messages,
            parameters={"max_tokens": limit, **provider.parameters},
            schema={},
            purpose="teacher",
            language=record["language"],
        )
        triples.append((record, request, prompt))
    return triples


def askable(records: Sequence[Record]) -> list[Record]:
    """The records without tool calls: a teacher has no tools."""
    return [record for record in records if not calls_tools(conversation(record))]


def answers(journal: Journal | None, resolved: Resolved, teacher: Teacher, records: Sequence[Record]) -> list[Record]:
    """The teacher's answers in the journal, as rows of answers.jsonl. A refusal is an empty
    answer."""
    rows = []
    for record, request, prompt in requests(resolved, journal, teacher, records):
        held = journal.row(request.key) if journal else None
        if held is None or held["status"] != "answered":
            continue
        answer, reference = (answer_text(journal, request) or "").strip(), conversation(record)[-1]["content"]
        rows.append(
            {
                "example_id": record["example_id"],
                "language": record["language"],
                "prompt": question(record),
                "reference": reference,
                "answer": answer,
                "answer_tokens": held["output_tokens"],
                "latency_ms": held["latency_ms"],
                "ended": ended(held["stop_reason"]),
                **({} if prompt.retrieved is None else {"retrieved": prompt.retrieved}),
                **scores.answer_scores(answer, reference, record["language"]),
            }
        )
    return rows
