"""What must hold of the tokens before the first step; a model trained on wrong labels would only look worse."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.train.left_out import HELD, NEARLY_ALL, is_nearly_all
from pipelines.train.trainer.conversations import alpaca_turns, conversation, is_learned
from pipelines.train.trainer.examples import IGNORE, Tokenized
from pipelines.train.trainer.prompts import PromptFormat
from pipelines.train.trainer.templates import Unshown
from pipelines.train.trainer.tokenizing import TokenizedRecords


def tokenizer_is_as_recorded(form: PromptFormat, record: Mapping[str, str | None]) -> None:
    """Raises ValueError where the tokenizer puts another token in front (`bos`; `none`: no token) or ends an answer with another
    one (`end`) than experiments.yaml says of the model; some tokenizers changed this between revisions."""
    actual = {
        "bos": form.tokenizer.decode(form.prefix) if form.prefix else "none",
        "end": form.tokenizer.decode([form.end_of_answer]),
    }
    for name, token in actual.items():
        if record.get(name) not in (None, token):
            raise ValueError(
                f"{name}: the tokenizer has {token!r}, experiments.yaml says {record[name]!r} of this model: pin the revision "
                f"whose tokenizer has that, or mend {name} of the model"
            )


def end_stops_generation(form: PromptFormat, record: Mapping[str, str | None]) -> None:
    """Raises ValueError where neither the tokenizer's EOS, nor the generation configuration, nor the model's record names the token
    that the chat template puts behind an answer: a model that learned to end in it would not be stopped by it."""
    end, known = form.end_of_answer, form.generation_stops
    if end in known or record.get("end") == form.tokenizer.decode([end]):
        return
    others = ", ".join(repr(form.tokenizer.decode([token])) for token in sorted(known))
    raise ValueError(
        f"the chat template ends an answer in {form.tokenizer.decode([end])!r}, generation stops at {others}: if the template is "
        f"right, say end: {form.tokenizer.decode([end])!r} of the model in experiments.yaml; else use prompt: alpaca"
    )


def something_is_shown(train: TokenizedRecords, held_out: TokenizedRecords) -> None:
    """Raises ValueError where the model's template can show none of the records of a side."""
    for what, side in (("training", train), ("evaluation", held_out)):
        if side.records and len(side.unshown) == side.records:
            raise ValueError(
                f"none of the {side.records} {what} records can be shown by the model's chat template; the first: "
                f"{side.unshown[0]}. Other arguments of the template (`template:` of the model) or prompt: alpaca may do"
            )


def enough_is_left(tokenized: TokenizedRecords, what: str, *, max_length: int) -> None:
    """Raises ValueError where nearly all records of a side are left out: what is left says nothing of the data. `max_length` is the
    setting; the model may read less."""
    if not is_nearly_all(tokenized.left_out, tokenized.records):
        return
    length = tokenized.length_to_hold_most
    if len(tokenized.unshown) > tokenized.left_out / 2:
        advice = f"the first that the template cannot show: {tokenized.unshown[0]}"
    elif tokenized.limit < max_length:
        advice = (
            f"this model reads {tokenized.limit} tokens, {HELD:.0%} of the records have up to {length}: "
            "bring shorter records, or take a model that reads more"
        )
    else:
        advice = f"raise max_length to {length}, which would hold {HELD:.0%} of them, or bring shorter records"
    raise ValueError(f"{tokenized.left_out_in_words(what)}, more than {NEARLY_ALL:.0%}: {advice}")


def tokens_are_sound(train: Sequence[Tokenized], held_out: Sequence[Tokenized], form: PromptFormat) -> None:
    """Raises ValueError with the record's id: nothing left, a BOS missing or doubled, an end that is not learned, a label that
    is not the token at its place."""
    if not train:
        raise ValueError("no training record fits max_length: raise max_length, or bring shorter records")
    if not held_out:
        raise ValueError("no evaluation record fits max_length: raise max_length, or bring shorter records")
    ends = form.ends
    for example in (*train, *held_out):
        if fault := _fault(example, form, ends):
            raise ValueError(f"record {example.example_id} {fault}")


def _fault(example: Tokenized, form: PromptFormat, ends: set[int]) -> str | None:
    """What is wrong with the example's tokens, if anything."""
    ids, labels = example.input_ids, example.labels
    front = len(form.prefix)
    twice = form.style != "chat" and ids[front : front + 1] == form.prefix[:1]  # a chat's own text may begin with one
    if form.prefix and (ids[:front] != form.prefix or twice):
        return f"must start with exactly one {form.tokenizer.decode(form.prefix)!r}: {ids[:3]}"
    if labels[0] != IGNORE:
        return "learns its first token, which no prompt precedes"
    if example.learned < 2 or labels[-1] == IGNORE:
        return f"does not learn its answer up to the end: {example.learned} tokens learned"
    if labels[-1] not in ends:
        return f"ends in {form.tokenizer.decode(labels[-1:])!r}, which does not end an answer; expected one of {sorted(ends)}"
    if any(label not in (IGNORE, token) for token, label in zip(ids, labels, strict=True)):
        return "has a label that is not the token at its own place; the model shifts them itself"
    return None


def labels_are_the_answers(records: Sequence[Mapping[str, Any]], form: PromptFormat) -> None:
    """Raises ValueError with the record's id where what is learned is not the answers' text and nothing else (white space
    apart, which some tokenizers do not give back)."""
    for record in records:
        try:
            examples = form.tokenize(record)
        except Unshown:  # it is left out, and counted
            continue
        scored_tokens = [
            [token for token, scored in zip(example.input_ids, example.scored, strict=True) if scored]
            for example in examples
        ]
        learned = "".join("".join(map(form.tokenizer.decode, scored_tokens)).split())
        for answer, stray in _answers(record, form):
            expected = "".join(
                form.tokenizer.decode(form.tokenizer(answer, add_special_tokens=False).input_ids).split()
            )
            place = learned.find(expected)
            if not 0 <= place <= stray:
                raise ValueError(
                    f"record {record['example_id']}: what is learned is not its answer but {learned[:80]!r}; the tokenizer's "
                    "chat template marks the answer's place otherwise than expected: try prompt: alpaca for this model"
                )
            learned = learned[place + len(expected) :]
        if learned:
            raise ValueError(
                f"record {record['example_id']}: what is learned goes on behind its answer: {learned[:80]!r}"
            )


STRAY = 16  # signs of the tags around reasoning, which a token may hold beside an answer's own


def _answers(record: Mapping[str, Any], form: PromptFormat) -> Iterator[tuple[str, int]]:
    """The texts that are learned, without the tags around reasoning, and how much of those may stand in front of each."""
    if form.style != "chat":
        yield from ((answer, 0) for _, answer, is_answer in alpaca_turns(record) if is_answer)
        return
    for turn in conversation(record):
        if turn["role"] == "assistant" and is_learned(turn):
            pieces = [piece for piece in re.split(r"</?think>", turn["content"]) if piece.strip()]
            yield from ((piece, STRAY if len(pieces) > 1 else 0) for piece in pieces)


def loss_is_sane(loss: float, *, vocabulary: int) -> None:
    """Raises ValueError where the loss before the first step (nats per completion token) cannot be that of a language model
    asked in its own format: clearly worse than guessing among the `vocabulary` (ln V), or next to nothing."""
    guessing = math.log(vocabulary)
    if loss > 1.25 * guessing + 1:
        raise ValueError(
            f"the loss before the first step is {loss:.2f} nats per completion token; guessing among {vocabulary:,} tokens would "
            f"give {guessing:.2f}. The prompt format, the tokenizer or the BOS token is not this model's: look at "
            "`featherweight train MODEL METHOD --dry-run`, and at prompt: in experiments.yaml"
        )
    if loss < 0.001:
        raise ValueError(
            f"the loss before the first step is {loss:.5f} nats per completion token, so there is nothing to learn: the answers "
            "stand in the prompts, or the model was trained on the held-out records"
        )


RISE_SHARE, RISE_NATS = 0.1, 0.5  # a loss is clearly higher than another by this share of it and by this much


def is_clearly_worse(first: float, last: float, *, vocabulary: int) -> bool:
    """Whether the held-out loss `last` (nats per token) is clearly higher than before training, or than that of guessing at
    random among the `vocabulary`. That alone is no divergence: a model that overfits raises it, too."""
    return any(last > loss + max(RISE_SHARE * loss, RISE_NATS) for loss in (first, math.log(vocabulary)))
