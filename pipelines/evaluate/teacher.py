"""How far is the teacher? A provider answers what the models were asked, through the journal and the budget (purpose `teacher`).

It has no losses: nobody sees its probabilities. Its answers are scored like all others, and end after as many tokens.
"""

from collections.abc import Sequence
from typing import Any

from pipelines.evaluate import scores
from pipelines.generate.answers import ended, text_of
from pipelines.generate.journal import Journal, Request
from pipelines.generate.providers import enabled
from pipelines.project import Project
from pipelines.train.conversations import calls_tools, conversation, question, spoken

Record = dict[str, Any]
METHOD = "teacher"


def teachers(project: Project) -> list[str]:
    """The configured teachers that may be asked."""
    allowed = enabled(project.experiments)
    return [name for name in dict.fromkeys(project.experiments.judging.teachers) if name in allowed]


def run_id(name: str) -> str:
    """In the place of an attempt's."""
    return f"{METHOD}-{name}"


def requests(project: Project, name: str, records: Sequence[Record]) -> list[Request]:
    """The records' questions, turn by turn as a model with a chat template gets them."""
    provider = project.experiments.provider(name)
    limit = project.settings.evaluation.max_new_tokens
    return [
        Request(
            provider=name,
            model=provider.model,
            messages=spoken(conversation(record)[:-1]),
            parameters={"max_tokens": limit, **provider.parameters},
            schema={},
            purpose="teacher",
            language=record["language"],
        )
        for record in _askable(records)
    ]


def _askable(records: Sequence[Record]) -> list[Record]:
    """The records that call no tool: a teacher has none to call."""
    return [record for record in records if not calls_tools(conversation(record))]


def answers(journal: Journal | None, project: Project, name: str, records: Sequence[Record]) -> list[Record]:
    """What the journal holds of the teacher's answers, as rows of answers.jsonl. One that refused has answered nothing."""
    rows = []
    for record, asked in zip(_askable(records), requests(project, name, records), strict=True):
        held = journal.row(asked.key) if journal else None
        if held is None or held["status"] != "answered":
            continue
        said, reference = _said(held["response"]), conversation(record)[-1]["content"]
        rows.append(
            {
                "example_id": record["example_id"],
                "language": record["language"],
                "prompt": question(record),
                "reference": reference,
                "answer": said,
                "answer_tokens": held["output_tokens"],
                "latency_ms": held["latency_ms"],
                "ended": ended(held["stop_reason"]),
                **scores.answer_scores(said, reference, record["language"]),
            }
        )
    return rows


def _said(response: str) -> str:
    try:
        return text_of(response).strip()
    except ValueError:
        return ""
