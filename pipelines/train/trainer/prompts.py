"""Records as tokens: the prompt as inference sends it, the answer to learn after it, and which
tokens count."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelines.train.trainer.conversations import Shots
from pipelines.train.trainer.examples import IGNORE, Tokenized
from pipelines.train.trainer.templates import AlpacaBlocks, ChatTemplate, Shown, Unshown

DAY_BY_DAY = (
    "its chat template writes today's date, so that prompts change from day to day; "
    'models.{}.template: {{strftime_now: "2025-07-08"}} fixes the day'
)


class PromptFormat:
    """The prompt format of one model: its chat template with `template` as arguments, or Alpaca's
    plain text.

    `stops` are the token ids at which its generation configuration ends.

    Raises:
        ValueError: the tokenizer has no EOS or no offsets, or its chat template is missing or knows
            no such argument.
    """

    def __init__(
        self, tokenizer: Any, style: str, template: Mapping[str, Any] | None = None, stops: Sequence[int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.style = style
        self._stops = list(stops)
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token, so an answer's end cannot be learned")
        if not tokenizer.is_fast:
            raise ValueError(
                "the tokenizer gives no positions of its tokens in a text: expected a fast one (tokenizer.json)"
            )
        ends = [tokenizer.eos_token, *(tokenizer.decode([stop]) for stop in self._stops)]
        self._text = ChatTemplate(tokenizer, template or {}, ends) if style == "chat" else AlpacaBlocks(tokenizer)

    @classmethod
    def of(cls, folder: Path, recipe: Mapping[str, Any]) -> "PromptFormat":
        """The format of the model in `folder`, with the recipe's `prompt` and the arguments of its
        `template`."""
        from pipelines.train.trainer import loading

        tokenizer = loading.load_tokenizer(folder)
        return cls(tokenizer, recipe["prompt"], recipe.get("template"), loading.stops_of(folder))

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The chat template's arguments: those of the model's record, and thinking off if the
        template has the switch."""
        return self._text.arguments

    @property
    def tells_the_day(self) -> bool:
        """Whether the chat template writes today's date, so that prompts change from day to day."""
        return self._text.tells_the_day

    def prompt(self, record: Mapping[str, Any], shots: Shots = ()) -> list[int]:
        """The prompt's token ids. `shots` are records that precede it with their answers, in the
        same format."""
        return [*self._front, *self._ids(self._text.prompt(record, shots))]

    def prompt_text(self, record: Mapping[str, Any]) -> str:
        """The prompt as text, without the tokens that the tokenizer itself puts in front."""
        return self._text.prompt(record, ())

    def tokenize(self, record: Mapping[str, Any], shots: Shots = ()) -> list[Tokenized]:
        """The record as examples.

        It is one example, unless the template rewrites earlier turns: then each answer makes its
        own, so that training shows it after the prompt that inference would send. Nothing is cut;
        the caller counts and drops what does not fit. `shots` are records that precede it with
        their answers; they are neither learned nor scored.

        Raises:
            Unshown: the template cannot show the record.
        """
        try:
            answers = list(self._text.answers(record, shots))
            learned = [answer for answer in answers if answer.learned]
            if len(learned) == 1:
                return [self._single(record, learned[0])]
            if _goes_on(answers) and (joined := self._joined(record, learned)):
                return [joined]
            return [self._single(record, answer, turn=answer.turn) for answer in learned]
        except Unshown as error:
            raise Unshown(f"record {record['example_id']}: {error}") from None

    def _single(self, record: Mapping[str, Any], answer: Shown, *, turn: int | None = None) -> Tokenized:
        """An example of one answer: the prompt's own tokens, then the rest of those of the full
        text.

        If a token would span the two, the text after the prompt is tokenized by itself.
        """
        prompt, encoded = self._encoded(answer.prompt), self._encoded(answer.text)
        split = encoded.ids[: len(prompt.ids)] != prompt.ids
        if split:
            encoded = self._split(prompt, answer, encoded)
        return self._example(record, encoded, [(len(prompt.ids), answer)], turn=turn, split=int(split))

    def _split(self, prompt: "_Encoded", answer: Shown, whole: "_Encoded") -> "_Encoded":
        """The prompt's tokens and those of the rest, which together decode to the full text."""
        rest, expected = answer.text[answer.prompt_length :], self.tokenizer.decode(whole.ids)
        # A lead in front of the rest keeps SentencePiece from adding a space of its own.
        for lead in ("", "\n", " ", "a", "."):
            front, encoded = self._ids(lead), self._encoded(lead + rest)
            shift, first = answer.prompt_length - len(lead), len(front)
            joined = _Encoded(
                prompt.ids + encoded.ids[first:],
                prompt.spans + [(start + shift, end + shift) for start, end in encoded.spans[first:]],
            )
            if encoded.ids[:first] == front and self.tokenizer.decode(joined.ids) == expected:
                return joined
        raise Unshown(f"the tokens of its prompt and its answer do not decode to the full text: {answer.text[-60:]!r}")

    def _joined(self, record: Mapping[str, Any], learned: Sequence[Shown]) -> Tokenized | None:
        """One example with every answer after its prompt, token for token; None if a token would
        span a prompt's end."""
        encoded = self._encoded(learned[-1].text)
        # No token spans a special one, so only the tokens after a prompt's last special token need
        # a comparison.
        marks = {start: i for i, (start, _) in enumerate(encoded.spans) if encoded.ids[i] in self._special_ids}
        starts, answers = sorted(marks), []
        for answer in learned:
            behind = bisect_left(starts, answer.prompt_length)
            start = starts[behind - 1] if behind else 0
            prompt_ids, first = self._ids(answer.prompt[start:]), marks[start] if behind else 0
            if encoded.ids[first : first + len(prompt_ids)] != prompt_ids:
                return None
            answers.append((first + len(prompt_ids), answer))
        return self._example(record, encoded, answers)

    def _example(
        self,
        record: Mapping[str, Any],
        encoded: "_Encoded",
        answers: Sequence[tuple[int, Shown]],
        *,
        turn: int | None = None,
        split: int = 0,
    ) -> Tokenized:
        """Labels, scores and byte counts of the answers, each with the place of its first token.

        Raises:
            Unshown: an answer has no token, or does not end in its end token alone.
        """
        ids = encoded.ids
        labels, scored, size = [IGNORE] * len(ids), [False] * len(ids), 0
        for first, answer in answers:
            last = encoded.ending(len(answer.text))
            self._require_end(ids[last], answer)
            labels[first : last + 1] = ids[first : last + 1]
            if self.end_of_answer in ids[first:last]:
                raise Unshown(f"answer {answer.turn + 1} holds the token that ends an answer")
            for place in range(first, last):
                scored[place] = any(_overlap(encoded.spans[place], span) for span in answer.content_spans)
            if answer.content_spans and not any(scored[first:last]):
                raise Unshown(f"answer {answer.turn + 1} becomes no token")
            size += sum(len(answer.text[begin:stop].encode()) for begin, stop in answer.content_spans)
        front = self._front
        return Tokenized(
            example_id=record["example_id"],
            input_ids=[*front, *ids],
            labels=[IGNORE] * len(front) + labels,
            scored=[False] * len(front) + scored,
            completion_bytes=size,
            turn=turn,
            split=split,
        )

    def _require_end(self, token: int, answer: Shown) -> None:
        """Raises Unshown if the answer does not end in the token that stops generation.

        A tool call may end in another token that stops generation.
        """
        if token != self.end_of_answer and not (answer.calls and token in self.ends):
            raise Unshown(
                f"answer {answer.turn + 1} ends in {self.tokenizer.decode([token])!r}, others in {self._text.end!r}"
            )

    @property
    def stop_tokens(self) -> list[int]:
        """The tokens that end an answer: the one that training teaches, and EOS."""
        return sorted({self.end_of_answer, self.tokenizer.eos_token_id})

    @property
    def ends(self) -> set[int]:
        """The tokens that end an answer or a call: the one that training teaches, and those that
        end generation anyway."""
        return {self.end_of_answer, *self.generation_stops}

    @property
    def generation_stops(self) -> set[int]:
        """The tokens that end generation for any template: EOS, and those of the generation
        configuration."""
        return {self.tokenizer.eos_token_id, *self._stops}

    @cached_property
    def end_of_answer(self) -> int:
        """The token that training teaches as an answer's end.

        It is the special token that the template writes after an answer (<end_of_turn> for Gemma),
        or EOS without one.
        """
        return self.tokenizer.convert_tokens_to_ids(self._text.end)

    @cached_property
    def prefix(self) -> list[int]:
        """The BOS in front of every example, or nothing.

        A chat template writes it; in front of Alpaca's text the tokenizer does. A BOS that opens
        every turn (SmolLM2's <|im_start|>) does not count.
        """
        if isinstance(self._text, AlpacaBlocks):
            return self.own_bos
        ids, bos = self._ids(self._text.first_question), self.tokenizer.bos_token_id
        return ids[:1] if bos is not None and ids[:1] == [bos] and ids.count(bos) == 1 else []

    @cached_property
    def own_bos(self) -> list[int]:
        """The tokens that the tokenizer itself puts in front: OPT's </s>, Gemma's and Llama's BOS,
        none for GPT-2."""
        bare, full = self.tokenizer("a", add_special_tokens=False).input_ids, self.tokenizer("a").input_ids
        front = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        return full[:front]

    @property
    def _front(self) -> list[int]:
        """The tokens to add in front of an example's text; none for a chat template, which writes
        its own BOS."""
        return [] if self.style == "chat" else self.own_bos

    @cached_property
    def _special_ids(self) -> set[int]:
        added = self.tokenizer.added_tokens_decoder.items()
        return {*self.tokenizer.all_special_ids, *(token for token, entry in added if entry.special)}

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _encoded(self, text: str) -> "_Encoded":
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return _Encoded(encoded.input_ids, encoded.offset_mapping)


def _overlap(token: tuple[int, int], span: tuple[int, int]) -> bool:
    """Whether a token covers a part of the span. Some tokenizers give a token an empty span at its
    end."""
    (start, end), (begin, stop) = token, span
    return begin < start <= stop if start == end else start < stop and begin < end


def _goes_on(answers: Sequence[Shown]) -> bool:
    """Whether every prompt continues the previous answer as shown, so that the template rewrites no
    earlier turn."""
    return all(after.prompt.startswith(before.text) for before, after in pairwise(answers))


@dataclass(frozen=True)
class _Encoded:
    """The tokens of a text, and the place of each in it."""

    ids: list[int]
    spans: list[tuple[int, int]]

    def ending(self, place: int) -> int:
        """The last token that begins before `place`."""
        return max(i for i, (start, _) in enumerate(self.spans) if start < place)
