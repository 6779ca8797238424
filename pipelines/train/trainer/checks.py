"""Checks of the tokens before the first step: wrong labels raise no error by themselves, they only
train a worse model."""

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
    """Raises ValueError if the tokenizer's special tokens differ from those in experiments.yaml.

    `bos` is the token in front (`none`: no token), and `end` the one that ends an answer. Some
    tokenizers changed them between revisions.
    """
    actual = {
        "bos": form.tokenizer.decode(form.prefix) if form.prefix else "none",
        "end": form.tokenizer.decode([form.end_of_answer]),
    }
    for name, token in actual.items():
        if record.get(name) not in (None, token):
            raise ValueError(
                f"{name}: the tokenizer has {token!r}, experiments.yaml says {record[name]!r} for this model: "
                f"pin the revision whose tokenizer has that, or correct the model's {name}"
            )


def end_stops_generation(form: PromptFormat, record: Mapping[str, str | None]) -> None:
    """Raises ValueError if nothing would stop generation at the token that the chat template puts
    after an answer.

    The tokenizer's EOS, the generation configuration or the model's record must name that token.
    """
    end, known = form.end_of_answer, form.generation_stops
    if end in known or record.get("end") == form.tokenizer.decode([end]):
        return
    others = ", ".join(repr(form.tokenizer.decode([token])) for token in sorted(known))
    raise ValueError(
        f"the chat template ends an answer in {form.tokenizer.decode([end])!r}, generation stops at {others}: if the "
        f"template is right, set end: {form.tokenizer.decode([end])!r} for the model in experiments.yaml; "
        "else use prompt: alpaca"
    )


def something_is_shown(train: TokenizedRecords, held_out: TokenizedRecords) -> None:
    """Raises ValueError if the model's template can show no training record, or no evaluation
    record."""
    for what, side in (("training", train), ("evaluation", held_out)):
        if side.records and len(side.unshown) == side.records:
            raise ValueError(
                f"the model's chat template can show none of the {side.records} {what} records; the first: "
                f"{side.unshown[0]}. Other arguments of the template (`template:` of the model) or prompt: alpaca may help"
            )


def enough_is_left(tokenized: TokenizedRecords, what: str, *, max_length: int) -> None:
    """Raises ValueError if nearly all records of a side are left out: the rest does not represent
    the data.

    `max_length` is the setting; the model may read less.
    """
    if not is_nearly_all(tokenized.left_out, tokenized.records):
        return
    length = tokenized.length_to_hold_most
    if len(tokenized.unshown) > tokenized.left_out / 2:
        advice = f"the first that the template cannot show: {tokenized.unshown[0]}"
    elif tokenized.limit < max_length:
        advice = (
            f"this model reads {tokenized.limit} tokens, {HELD:.0%} of the records have up to {length}: "
            "bring shorter records, or use a model that reads more"
        )
    else:
        advice = f"raise max_length to {length}, which would hold {HELD:.0%} of them, or bring shorter records"
    raise ValueError(f"{tokenized.left_out_in_words(what)}, more than {NEARLY_ALL:.0%}: {advice}")


def tokens_are_sound(train: Sequence[Tokenized], held_out: Sequence[Tokenized], form: PromptFormat) -> None:
    """Raises ValueError if no example is left, or with the id of a record whose tokens are wrong.

    A record is wrong if its BOS is missing or doubled, its end is not learned, or a label is not
    the token at its place.
    """
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
    # A chat's own text may begin with a BOS.
    twice = form.style != "chat" and ids[front : front + 1] == form.prefix[:1]
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
    """Raises ValueError with the record's id if the learned text is not exactly that of its
    answers.

    White space does not count, since some tokenizers do not preserve it.
    """
    for record in records:
        try:
            examples = form.tokenize(record)
        # `tokenize` leaves such a record out and counts it.
        except Unshown:
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
                    f"record {record['example_id']}: what is learned is not its answer but {learned[:80]!r}; the "
                    "tokenizer's chat template puts the answer at an unexpected place: try prompt: alpaca for this model"
                )
            learned = learned[place + len(expected) :]
        if learned:
            raise ValueError(
                f"record {record['example_id']}: what is learned goes on behind its answer: {learned[:80]!r}"
            )


# A token may hold up to this many characters of the tags around reasoning beside those of the
# answer.
STRAY = 16


def _answers(record: Mapping[str, Any], form: PromptFormat) -> Iterator[tuple[str, int]]:
    """The learned texts without the tags around reasoning, and how many characters of the tags may
    precede each."""
    if form.style != "chat":
        yield from ((answer, 0) for _, answer, is_answer in alpaca_turns(record) if is_answer)
        return
    for turn in conversation(record):
        if turn["role"] == "assistant" and is_learned(turn):
            pieces = [piece for piece in re.split(r"</?think>", turn["content"]) if piece.strip()]
            yield from ((piece, STRAY if len(pieces) > 1 else 0) for piece in pieces)


def loss_is_sane(loss: float, *, vocabulary: int) -> None:
    """Raises ValueError if the loss before the first step (nats per completion token) is
    implausible.

    It is if it is clearly worse than guessing among the `vocabulary` (ln V), or close to zero.
    """
    guessing = math.log(vocabulary)
    if loss > 1.25 * guessing + 1:
        raise ValueError(
            f"the loss before the first step is {loss:.2f} nats per completion token; guessing among {vocabulary:,} "
            f"tokens would give {guessing:.2f}. The prompt format, the tokenizer or the BOS token is not this model's: "
            "look at `featherweight train MODEL METHOD --dry-run`, and at prompt: in experiments.yaml"
        )
    if loss < 0.001:
        raise ValueError(
            f"the loss before the first step is {loss:.5f} nats per completion token, so there is nothing to learn: "
            "the prompts contain the answers, or the model was trained on the held-out records"
        )


# A loss is clearly higher than another if it exceeds it by this share of it and by this many nats.
RISE_SHARE, RISE_NATS = 0.1, 0.5


def is_clearly_worse(first: float, last: float, *, vocabulary: int) -> bool:
    """Whether the held-out loss `last` (nats per token) is clearly higher than before training or
    than random guessing.

    This alone does not prove divergence: overfitting raises the held-out loss, too.
    """
    return any(last > loss + max(RISE_SHARE * loss, RISE_NATS) for loss in (first, math.log(vocabulary)))
