"""The prompts of a retrieval arm: similar train records as shots, or document passages as
context."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.lake.files import write_jsonl
from pipelines.retrieval import documents, rewrites
from pipelines.retrieval.inert import holds_mark, inert
from pipelines.retrieval.leaks import Sides, gives_away
from pipelines.retrieval.ranking import Embed, Index, fused
from pipelines.retrieval.stored_vectors import StoredVectors
from pipelines.runs.worker import Worker
from pipelines.train.trainer.conversations import answer_of, calls_tools, conversation
from pipelines.train.trainer.prompts import PromptFormat
from pipelines.train.trainer.templates import Unshown

Record = dict[str, Any]
Say = Callable[[str], None]
INTRODUCTIONS = {
    "ko": "다음 글이 질문에 도움이 되면 참고하세요.",
    "en": "Use the following passages where they help to answer.",
}
# The answering model's reply to each of these prompts.
Rewrite = Callable[[Sequence[str]], list[str]]


def last_question(record: Mapping[str, Any]) -> str:
    """The search query: the last user turn before the last answer, without system prompt and
    earlier turns."""
    questions = [turn["content"] for turn in conversation(record)[:-1] if turn["role"] == "user"]
    return questions[-1] if questions else ""


def sides_of(record: Mapping[str, Any]) -> Sides:
    """The record for the leak check: all its user turns and all its answers."""
    turns = conversation(record)
    questions = "\n".join(turn["content"] for turn in turns if turn["role"] == "user")
    return Sides(
        record["example_id"], questions, "\n".join(answer_of(one) for one in turns if one["role"] == "assistant")
    )


@dataclass(frozen=True)
class Item:
    """A searchable item: a train record or a passage. `name` is the record's id or the document's
    name."""

    name: str
    text: str
    record: Record | None = None


def train_items(train: Sequence[Record]) -> list[Item]:
    """Train records in the order of their ids, so that ties do not depend on the storage order.

    Records with tool calls are excluded.
    """
    ordered = sorted(train, key=lambda one: one["example_id"])
    texts = [(one, sides_of(one)) for one in ordered if not calls_tools(conversation(one))]
    return [Item(one["example_id"], f"{sides.question}\n{sides.answer}", one) for one, sides in texts]


def document_items(spec: Mapping[str, Any], *, size: int, expected: str | None) -> list[Item]:
    """The passages of the documents in a spec.

    Raises:
        UsageError: the documents are missing or hold no text.
        ValueError: the documents have changed since the cell was planned.
    """
    patterns, folder = spec["documents"], Path(spec["folder"])
    passages = documents.passages(patterns, folder, size)
    if expected is not None and (now := documents.content_hash(patterns, folder)) != expected:
        raise ValueError(f"the documents changed while the cell waited (then {expected}, now {now}): run it again")
    return [Item(one.name, one.text) for one in passages]


class Library:
    """All searchable items, indexed once. `recipe` is the `retrieval` of a cell's recipe."""

    def __init__(self, items: Sequence[Item], recipe: Mapping[str, Any], embed: Embed | None, say: Say) -> None:
        self._items, self._recipe = list(items), recipe
        self._sides: dict[int, Sides] = {}
        what = "passages" if recipe["from"] == "documents" else "train records"
        say(f"retrieval: {len(self._items)} {what} are indexed for {recipe['by']}")
        by = recipe.get("ranked_by", "bm25") if recipe["by"] == "multi-query" else recipe["by"]
        self._index = Index([item.text for item in self._items], by, embed)
        # Number of matches that were dropped because they would leak an answer.
        self.left_out = 0

    def find(self, records: Sequence[Record], queries: Sequence[Sequence[str]]) -> list[list[Item]]:
        """All matches of each record's queries, the best first.

        The record itself and items that would leak its answer are left out.
        """
        flat = [query for several in queries for query in several]
        rankings = iter(self._index.rank_all(flat))
        results = []
        for record, several in zip(records, queries, strict=True):
            ranked = [next(rankings) for _ in several]
            results.append(self._allowed(record, fused(ranked) if len(ranked) > 1 else ranked[0]))
        return results

    def _allowed(self, record: Record, ranking: Sequence[int]) -> list[Item]:
        if self._recipe["from"] == "documents":
            return [self._items[place] for place in ranking[: self._recipe["k"]]]
        sides, items = sides_of(record), []
        for place in ranking:
            if gives_away(sides, self._sides_at(place), self._recipe["jaccard"]):
                self.left_out += 1
                continue
            items.append(self._items[place])
            # Twice as many as needed: the template may be unable to show some of them.
            if len(items) == 2 * self._recipe["k"]:
                break
        return items

    def _sides_at(self, place: int) -> Sides:
        if place not in self._sides:
            record = self._items[place].record
            assert record is not None
            self._sides[place] = sides_of(record)
        return self._sides[place]


def queries_of(records: Sequence[Record], recipe: Mapping[str, Any], rewrite: Rewrite | None) -> list[list[str]]:
    """The search queries of each record: its question, and with multi-query the answering model's
    rewordings."""
    questions = [last_question(record) for record in records]
    if recipe["by"] != "multi-query" or rewrite is None:
        return [[one] for one in questions]
    answers = rewrite([rewrites.prompt(one) for one in questions])
    return [rewrites.wordings(one, answer) for one, answer in zip(questions, answers, strict=True)]


def with_context(record: Record, texts: Sequence[str]) -> Record:
    """The record with numbered passages before its last question, the best first; unchanged without
    passages."""
    if not texts:
        return record
    introduction = INTRODUCTIONS.get(record.get("language") or "", INTRODUCTIONS["en"])
    context = "\n\n".join([introduction, *(f"[{number}] {text}" for number, text in enumerate(texts, start=1))])
    if not record.get("messages"):
        return {**record, "instruction": f"{context}\n\n{record['instruction']}"}
    turns = json.loads(record["messages"])
    last_answer = max(place for place, turn in enumerate(turns) if turn["role"] == "assistant")
    questions = [place for place, turn in enumerate(turns[:last_answer]) if turn["role"] == "user"]
    if not questions:
        return record
    turns[questions[-1]] = {**turns[questions[-1]], "content": f"{context}\n\n{turns[questions[-1]]['content']}"}
    return {**record, "messages": json.dumps(turns, ensure_ascii=False)}


def marks_of(tokenizer: Any) -> list[str]:
    """The texts that the tokenizer maps to special tokens, the longest first."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({*tokenizer.all_special_tokens, *added}, key=lambda mark: (-len(mark), mark))


@dataclass(frozen=True)
class PromptContent:
    """The content of a record's prompt: the record itself, the shots before it, and the retrieved
    names."""

    record: Record
    shots: tuple[Record, ...]
    names: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.names)


class Retrieved:
    """The prompts of a retrieval arm. `room` is the model's window in tokens, less the answer's."""

    def __init__(self, library: Library, form: PromptFormat, recipe: Mapping[str, Any], *, room: int) -> None:
        self._library, self._form, self._recipe, self._room = library, form, recipe, room
        self._found: dict[str, PromptContent] = {}
        self._marks = marks_of(form.tokenizer)

    def look_up(self, records: Sequence[Record], rewrite: Rewrite | None) -> list[Record]:
        """Retrieve the content of every record's prompt; returns rows with the names and the
        queries."""
        queries = queries_of(records, self._recipe, rewrite)
        rows = []
        for record, wordings, items in zip(records, queries, self._library.find(records, queries), strict=True):
            content = self._shown(record, items)
            self._found[record["example_id"]] = content
            rewritten = {"queries": wordings} if len(wordings) > 1 else {}
            rows.append({"example_id": record["example_id"], "retrieved": list(content.names), **rewritten})
        return rows

    def of(self, record: Record) -> PromptContent:
        return self._found[record["example_id"]]

    def _shown(self, record: Record, items: Sequence[Item]) -> PromptContent:
        """The best items that fit; the worst matches are dropped first."""
        marks = self._marks
        if self._recipe["from"] == "documents":
            texts = [(item.name, inert(item.text, marks)) for item in items]
            return self._fitting(record, texts, self._as_context)
        shots = [(item.name, item.record) for item in items if item.record and self._can_show(item, marks)]
        return self._fitting(record, shots[: self._recipe["k"]], self._as_shots)

    def _fitting(
        self, record: Record, candidates: Sequence[tuple[str, Any]], shown: Callable[..., PromptContent]
    ) -> PromptContent:
        for count in range(len(candidates), 0, -1):
            content = shown(record, candidates[:count])
            if max(map(len, self._form.tokenize(content.record, content.shots))) <= self._room:
                return content
        return PromptContent(record, (), ())

    def _as_context(self, record: Record, passages: Sequence[tuple[str, str]]) -> PromptContent:
        return PromptContent(
            with_context(record, [text for _, text in passages]), (), tuple(name for name, _ in passages)
        )

    def _as_shots(self, record: Record, shots: Sequence[tuple[str, Record]]) -> PromptContent:
        """Put the record most similar to the question right before it."""
        nearest_last = tuple(one for _, one in reversed(shots))
        return PromptContent(record, nearest_last, tuple(name for name, _ in shots))

    def _can_show(self, item: Item, marks: Sequence[str]) -> bool:
        """Whether a train record can be a shot: the template shows it and it holds no special
        token."""
        assert item.record is not None
        try:
            return not holds_mark(item.text, marks) and bool(self._form.tokenize(item.record))
        except Unshown:
            return False


def retrieved_for(worker: Worker, form: PromptFormat, train: Sequence[Record], *, room: int) -> Retrieved | None:
    """The retrieval arm of the cell's recipe; None without one.

    Raises:
        UsageError: its documents are missing or hold no text.
        ValueError: its documents have changed meanwhile.
    """
    recipe, spec = worker.spec["recipe"].get("retrieval"), worker.spec.get("retrieval") or {}
    if not recipe:
        return None
    embed = None
    if spec.get("embeddings"):
        from pipelines.retrieval.embedding import Embedder

        embed = Embedder(worker.root / spec["embeddings"], worker.say)
    elif spec.get("vectors"):
        embed = StoredVectors(worker.folder / spec["vectors"])
    if recipe["from"] == "documents":
        items = document_items(spec, size=recipe["passage_chars"], expected=recipe["documents"])
    else:
        items = train_items(train)
    return Retrieved(Library(items, recipe, embed, worker.say), form, recipe, room=room)


def look_up(worker: Worker, retrieved: Retrieved, prompted_model: Any, records: Sequence[Record]) -> None:
    """Retrieve the content of the records' prompts, and store it beside the answers
    (retrieved.jsonl)."""

    def rewrite(prompts: Sequence[str]) -> list[str]:
        from pipelines.evaluate import answering

        worker.say(f"retrieval: the model rewords {len(prompts)} questions")
        token_prompts = [prompted_model.form.prompt(_asking(one)) for one in prompts]
        limit = 2 * worker.spec["batch_tokens"]
        answers = answering.answer_all(prompted_model, token_prompts, rewrites.MAX_TOKENS, max_tokens=limit)
        return [answering.text_of(prompted_model, tokens) for tokens in answers]

    rows = retrieved.look_up(records, rewrite)
    write_jsonl(worker.folder / "retrieved.jsonl", rows)
    counts = [len(row["retrieved"]) for row in rows]
    worker.measure(retrieved=sum(counts) / len(counts) if counts else None)
    worker.say(f"retrieval: {sum(counts)} items are in the prompts of {len(counts)} records")


def _asking(text: str) -> Record:
    """A prompt that belongs to no record."""
    return {"example_id": "rewrite", "instruction": text, "input": "", "output": "-", "messages": None}
