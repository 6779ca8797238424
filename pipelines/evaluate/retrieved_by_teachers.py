"""Prompts of teachers with retrieval. They are built once and stored in the lake for every reader.

A provider's window and tokenizer are unknown here. The prompt size is bounded by a token estimate
that does not undercount ordinary text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.evaluate.retrieved import Item, Library, document_items, last_question, train_items, with_context
from pipelines.generate import embeddings
from pipelines.generate.answers import text_of
from pipelines.generate.generate import Session
from pipelines.generate.journal import Journal, Request
from pipelines.generate.server import SLOT_TOKENS
from pipelines.lake.files import announce, read_json, stable_hash, write_json
from pipelines.project import Resolved
from pipelines.recipe import looked_up
from pipelines.retrieval import embedding_model, rewrites, sources
from pipelines.retrieval.inert import holds_common_mark, inert
from pipelines.retrieval.ranking import Embed
from pipelines.settings.judging import Teacher
from pipelines.settings.providers import Provider
from pipelines.settings.retrieval import Retrieval
from pipelines.train.trainer.conversations import conversation, spoken, with_shots

Record = dict[str, Any]
Messages = list[dict[str, str]]
# Limit of a prompt to an API, together with its answer.
MAX_PROMPT_TOKENS = 16_000
# ASCII characters per token; any other character counts as one token per byte.
CHARS_PER_TOKEN = 3


@dataclass(frozen=True)
class TeacherPrompt:
    """A provider's prompt for one record, and the number of retrieved items in it."""

    messages: Messages
    retrieved: int | None = None


def rewriting(resolved: Resolved, teacher: Teacher, records: Sequence[Record]) -> list[Request]:
    """The requests that reword the records' questions; [] if the teacher uses no rewording."""
    if not (teacher.retrieval and teacher.retrieval.rewrites):
        return []
    provider = resolved.experiments.provider(teacher.provider)
    return [
        Request(
            provider=teacher.provider,
            model=provider.model,
            messages=[{"role": "user", "content": rewrites.prompt(last_question(record))}],
            parameters={"max_tokens": rewrites.MAX_TOKENS, **provider.parameters},
            schema={},
            purpose="rewrite",
            language=record["language"],
        )
        for record in records
    ]


def prepared(
    resolved: Resolved, journal: Journal | None, teacher: Teacher, records: Sequence[Record]
) -> dict[str, TeacherPrompt]:
    """Stored prompts by record id.

    A record is missing if nothing was looked up for it or its rewordings are not known yet.
    """
    assert teacher.retrieval
    cache = read_json(_file(resolved, teacher)) or {}
    queries = _queries(resolved, journal, teacher, records)
    entries = {
        name: cache.get(_key(record, queries[name])) for record in records if (name := record["example_id"]) in queries
    }
    return {name: TeacherPrompt(one["messages"], len(one["retrieved"])) for name, one in entries.items() if one}


def prepare(resolved: Resolved, run: Session, teacher: Teacher, records: Sequence[Record]) -> None:
    """Look up the missing prompts whose rewordings are known, and store them.

    Raises:
        UnavailableError: the documents or the embedding model are not available.
        UsageError: the documents hold no text.
        WorkError: the lake cannot be written.
    """
    retrieval = teacher.retrieval
    assert retrieval
    journal = run.journal
    queries, known = _queries(resolved, journal, teacher, records), prepared(resolved, journal, teacher, records)
    missing = [one for one in records if one["example_id"] in queries and one["example_id"] not in known]
    if not missing:
        return
    library = Library(
        _items(resolved, retrieval), _recipe(resolved, retrieval), _embed(resolved, run, retrieval), announce
    )
    provider = resolved.experiments.provider(teacher.provider)
    room = _room(provider, resolved.project.settings.evaluation.max_new_tokens)
    results = library.find(missing, [queries[one["example_id"]] for one in missing])
    file = _file(resolved, teacher)
    cache = read_json(file) or {}
    for record, items in zip(missing, results, strict=True):
        cache[_key(record, queries[record["example_id"]])] = _fitting(record, items, retrieval, room)
    write_json(file, cache)


def _recipe(resolved: Resolved, retrieval: Retrieval) -> dict[str, Any]:
    return looked_up(retrieval) | sources.contents(resolved.data, resolved.experiments, retrieval)


def _file(resolved: Resolved, teacher: Teacher) -> Path:
    """The store; it depends on the recipe, the train records and the prompt limit."""
    retrieval = teacher.retrieval
    assert retrieval
    train = None if retrieval.documents else resolved.selected.data_fingerprint
    provider = resolved.experiments.provider(teacher.provider)
    room = _room(provider, resolved.project.settings.evaluation.max_new_tokens)
    return resolved.data.lake / "retrieval" / f"{stable_hash([_recipe(resolved, retrieval), train, room])}.json"


def _key(record: Record, queries: Sequence[str]) -> str:
    turns = [[turn["role"], turn["content"]] for turn in conversation(record)]
    return stable_hash([record["example_id"], turns, list(queries)])


def _queries(
    resolved: Resolved, journal: Journal | None, teacher: Teacher, records: Sequence[Record]
) -> dict[str, list[str]]:
    """The search queries by record id, without the records whose rewordings the journal lacks."""
    queries = {one["example_id"]: [last_question(one)] for one in records}
    for record, request in zip(records, rewriting(resolved, teacher, records), strict=False):
        text = answer_text(journal, request)
        if text is None:
            del queries[record["example_id"]]
        else:
            queries[record["example_id"]] = rewrites.wordings(last_question(record), text)
    return queries


def answer_text(journal: Journal | None, request: Request) -> str | None:
    """The answer text in the journal; None if there is none, empty for a refusal."""
    held = journal.row(request.key) if journal else None
    if held is None or held["status"] != "answered":
        return None
    try:
        return text_of(held["response"])
    except ValueError:
        # After a refusal only the question itself is looked up.
        return ""


def _items(resolved: Resolved, retrieval: Retrieval) -> list[Item]:
    if not retrieval.documents:
        return train_items(resolved.selected.train)
    spec = {"documents": retrieval.documents, "folder": str(retrieval.folder)}
    return document_items(spec, size=retrieval.passage_chars, expected=None)


def _embed(resolved: Resolved, run: Session, retrieval: Retrieval) -> Embed | None:
    if not retrieval.embeds:
        return None
    if sources.embeds_over_api(resolved.experiments, retrieval):
        return partial(embeddings.embed, run)
    folder = embedding_model.fetch(resolved.data, resolved.experiments.embeddings)
    return partial(embedding_model.embed_apart, folder)


def _room(provider: Provider, answer_tokens: int) -> int:
    """Maximum number of prompt tokens."""
    return (SLOT_TOKENS if provider.kind == "local" else MAX_PROMPT_TOKENS) - answer_tokens


def _fitting(record: Record, items: Sequence[Item], retrieval: Retrieval, room: int) -> dict[str, Any]:
    """The best items that fit, as messages; the worst matches are dropped first."""
    usable = [item for item in items if not (item.record and holds_common_mark(item.text))][: retrieval.k]
    for count in range(len(usable), 0, -1):
        messages = _messages(record, usable[:count])
        if _tokens(messages) <= room:
            return {"messages": messages, "retrieved": [item.name for item in usable[:count]]}
    return {"messages": _messages(record, ()), "retrieved": []}


def _messages(record: Record, items: Sequence[Item]) -> Messages:
    shots = [item.record for item in reversed(items) if item.record]
    context = [inert(item.text) for item in items if item.record is None]
    turns = with_shots(conversation(with_context(record, context))[:-1], shots)
    return spoken(turns)


def _tokens(messages: Sequence[Mapping[str, str]]) -> int:
    """Upper estimate of the token count. It holds except for texts of mostly digits and symbols."""
    total = 0
    for message in messages:
        letters = sum(character.isascii() for character in message["content"])
        total += letters // CHARS_PER_TOKEN + len(message["content"].encode()) - letters + 8
    return total
