"""How a conversation reads as text: through a tokenizer's own chat template, or as Alpaca's blocks.

Both give, for every answer of a record, the text that inference sends and the text that shows the answer behind it.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from typing import Any

from jinja2 import meta, nodes
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipelines.train.trainer.conversations import (
    Message,
    Shots,
    alpaca_shots,
    alpaca_turns,
    calls_tools,
    conversation,
    is_learned,
    tools_of,
    with_shots,
    without_system,
)

MARKER, THOUGHT_MARKER = "ANSWERED7F3A", "THOUGHT7F3A"
THINKING = (
    "enable_thinking",
    "thinking",
)  # the switches that templates know; off unless the model's record says otherwise
DAY = "strftime_now"  # what templates call to learn what day it is
# what every rendering is given, so that no argument of a model's record may have these names
GIVEN = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token")
)
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # a tag of transformers' own
_THOUGHT = re.compile(r"\A(\s*<think>\s*)(.*?)(\s*</think>\s*)(.+)\Z", re.DOTALL)


class Unshown(ValueError):
    """A record that a model's template cannot show as it would be asked and answered; it costs that record, not the cell."""


Span = tuple[int, int]


@dataclass(frozen=True)
class Shown:
    """One answer as text. `text` begins with the prompt, `asked` characters long, and goes on to the end of the answer, the token
    that ends it included; `said` are the places of what the record itself says there, without what the template adds."""

    text: str
    prompt_length: int
    content_spans: tuple[Span, ...]
    learned: bool
    turn: int
    calls: bool = False

    @property
    def prompt(self) -> str:
        return self.text[: self.prompt_length]


class AlpacaBlocks:
    """Stanford Alpaca's plain text, an EOS token behind every answer."""

    arguments: Mapping[str, Any] = {}
    tells_the_day = False

    def __init__(self, tokenizer: Any) -> None:
        self._end = tokenizer.eos_token

    @property
    def end(self) -> str:
        """The token that ends an answer."""
        return self._end

    def answers(self, record: Mapping[str, Any], shots: Shots) -> Iterator[Shown]:
        if record.get("messages") and calls_tools(conversation(record)):
            raise Unshown("it calls tools, which Alpaca's format cannot show")
        before = alpaca_shots(shots)
        for turn, (question, answer, learned) in enumerate(alpaca_turns(record)):
            prompt = before + question
            text = prompt + answer + self._end
            yield Shown(text, len(prompt), ((len(prompt), len(prompt + answer)),), learned, turn)
            before = f"{text}\n\n"

    def prompt(self, record: Mapping[str, Any], shots: Shots) -> str:
        *_, last = self.answers(record, shots)
        return last.prompt


class ChatTemplate:
    """A tokenizer's chat template with `arguments`, of which the model's record may name any that the template knows. The
    argument `strftime_now`, such as "2025-07-08", stands for today's date in templates that write it. `stops` are the tokens that
    end generation, EOS and others.

    Raises:
        ValueError: there is no template, it knows no such argument, or it does not show an answer as it was written.
    """

    def __init__(self, tokenizer: Any, arguments: Mapping[str, Any], stops: Sequence[str]) -> None:
        if not tokenizer.chat_template:
            raise ValueError("prompt: chat needs a tokenizer with a chat template; use prompt: alpaca for this model")
        self._tokenizer, self._stops = tokenizer, frozenset(stops)
        parsed = _parsed(tokenizer)
        known = meta.find_undeclared_variables(parsed) - GIVEN - {"raise_exception"}
        sets = {name.name for name in parsed.find_all(nodes.Name) if name.ctx == "store"}
        _refuse_unknown(arguments, known, sets)
        self.arguments = dict(arguments)
        self._day_forms, self._is_odd_about_days = _day_forms(parsed)
        self._day = _day(arguments[DAY]) if DAY in arguments else None
        if self._day and self._is_odd_about_days:
            raise ValueError(
                f"template: {DAY}: the chat template asks for the day in a way that cannot be fixed: leave it out"
            )
        own = {name for name in THINKING if name in sets and name not in _tested(parsed)}
        switches = [name for name in THINKING if name in known and (name not in own or self._is_switch(name))]
        self.arguments = {**dict.fromkeys(switches, False), **arguments}

    def _is_switch(self, name: str) -> bool:
        """Whether a variable that the template also sets is one that it takes: without it, it reads as with one of its values."""
        messages: list[Message] = [{"role": "user", "content": "a"}]
        shown = []
        with suppress(*_REFUSALS):
            shown = [self._apply(messages, [], ask=True, extra=extra) for extra in ({}, {name: True}, {name: False})]
        return bool(shown) and shown[1] != shown[2] and shown[0] in shown[1:]

    def prompt(self, record: Mapping[str, Any], shots: Shots) -> str:
        """What inference sends for the record's last answer."""
        return self._render(with_shots(conversation(record)[:-1], shots), tools_of(record), ask=True)

    def answers(self, record: Mapping[str, Any], shots: Shots) -> Iterator[Shown]:
        """The record's own answers, those of the shots left out.

        Raises:
            Unshown: the template refuses the record, or shows an answer otherwise than behind the prompt that inference sends.
        """
        messages, tools = with_shots(conversation(record), shots), tools_of(record)
        own = sum(message["role"] == "assistant" for message in with_shots([], shots))
        places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        for place in places[own:]:
            yield self._answer(messages[: place + 1], tools, place)

    def _answer(self, messages: list[Message], tools: list[Any], place: int) -> Shown:
        prompt = self._render(messages[:-1], tools, ask=True)
        tail = self._behind(messages, tools, prompt)
        if tail is None and prompt.rstrip().endswith("<think>"):
            # inference always opens a block of reasoning (DeepSeek-R1): an answer without any closes it, if the template shows that
            closed = {**messages[-1], "content": f"<think>\n\n</think>\n\n{messages[-1]['content']}"}
            messages = [*messages[:-1], closed]
            tail = self._behind(messages, tools, prompt)
        answer = messages[-1]
        if tail is None:
            whole = self._render(messages, tools, ask=False)
            raise Unshown(
                f"the template shows answer {place + 1} otherwise than behind what inference sends, which ends in "
                f"{prompt[-40:]!r}: it goes on {_where_it_parts(prompt, whole)!r}"
            )
        calls = bool(answer.get("tool_calls"))
        if calls:
            self._require_calls(answer, prompt, tail, tools)
        if calls_tools(messages[:-1]):
            _require_results(messages[:-1], prompt)
        inside = self._inside(messages, tools, prompt, tail) if answer["content"] or not calls else []
        spans = tuple((len(prompt) + start, len(prompt) + end) for start, end in inside)
        stop = self._stop(tail, 0 if calls else inside[-1][1], calls=calls)
        text = prompt + (tail[:stop] if stop else tail.rstrip() + self.end)
        return Shown(text, len(prompt), spans, is_learned(answer), place, calls)

    def _behind(self, messages: list[Message], tools: list[Any], prompt: str) -> str | None:
        """What the template shows behind `prompt`, the answer and what follows it; None where it shows it behind something else."""
        whole = self._render(messages, tools, ask=False)
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        if (tail := self._behind_closed(messages, tools, prompt, whole)) is not None:
            return tail
        # Mistral's writes a system prompt into the question that is asked, and nowhere once that was answered: the answer is then
        # shown as it is behind the question alone, where that ends as the prompt does
        if tools or messages[-2]["role"] != "user":
            return None
        question = messages[-2]["content"].strip()
        short_prompt, short_text = (
            self._render(messages[-2:-1], [], ask=True),
            self._render(messages[-2:], [], ask=False),
        )
        if not question or not short_text.startswith(short_prompt):
            return None
        _, separator, opening = short_prompt.rpartition(question)
        same_frame = (
            bool(separator) and prompt.endswith(question + opening) and whole.endswith(short_text[len(short_prompt) :])
        )
        return short_text[len(short_prompt) :] if same_frame else None

    def _behind_closed(self, messages: list[Message], tools: list[Any], prompt: str, whole: str) -> str | None:
        """The same where thinking is off and inference is therefore sent an empty block of reasoning, which the whole does not show
        (Gemma 4, MiniCPM): what it shows from the answer's turn on, without what the block already holds."""
        off = any(self.arguments.get(name) is False for name in THINKING)
        answer = messages[-1]["content"]
        if not off or not answer or _THOUGHT.match(answer) or prompt.rstrip().endswith("<think>"):
            return None
        before = self._render(messages[:-1], tools, ask=False)
        marked = self._render([*messages[:-1], {**messages[-1], "content": MARKER}], tools, ask=False)
        if not (prompt.startswith(before) and marked.startswith(before)):  # they part before the answer's turn
            return None
        start = len(before) + _same(prompt[len(before) :], marked[len(before) :])
        place = marked.find(MARKER, start)
        if place < 0 or not whole.startswith(marked[:place]):
            return None
        block, header = prompt[start:], marked[start:place]
        has_header = block.endswith(header) or (header.strip() and block.rstrip().endswith(header.strip()))
        return ("" if has_header else header) + whole[place:]

    def _inside(self, messages: list[Message], tools: list[Any], prompt: str, tail: str) -> list[Span]:
        """Where the answer stands in `tail`: found by rendering it with markers in its place.

        Raises:
            Unshown: it does not stand there as it was written.
        """
        content = messages[-1]["content"]
        thought = _THOUGHT.match(content)
        pieces = [piece for piece in (thought[2], thought[4]) if piece] if thought else [content]
        markers = [THOUGHT_MARKER, MARKER][-len(pieces) :]
        marked = thought[1] + (THOUGHT_MARKER if thought[2] else "") + thought[3] + MARKER if thought else MARKER
        shown = self._behind([*messages[:-1], {**messages[-1], "content": marked}], tools, prompt)
        spans, expected = [], shown or ""
        for marker, piece in zip(markers, pieces, strict=True):
            place = expected.find(marker)
            if place < 0:
                what = "the reasoning in an answer" if marker is THOUGHT_MARKER else "the answer"
                raise Unshown(f"the template does not show {what} as it was written; prompt: alpaca asks without one")
            expected = expected.replace(marker, piece, 1)
            spans.append((place, place + len(piece)))
        if expected != tail:
            raise Unshown(f"the template does not show the answer as it was written, but as {tail[:60]!r}")
        return spans

    def _require_calls(self, answer: Message, prompt: str, tail: str, tools: list[Any]) -> None:
        """Calls are learned in the model's own spelling, and count in no measure that compares models.

        Raises:
            Unshown: a call, a name or value of its arguments, or a declared tool is missing in what the template shows.
        """
        names = Counter(call["function"]["name"] for call in answer["tool_calls"])
        for call in answer["tool_calls"]:
            named, arguments = call["function"]["name"], call["function"]["arguments"]
            if missing := next((word for word in _words_of(arguments) if not _stands_in(word, tail)), None):
                raise Unshown(f"the template does not show the call of {named!r}: {missing!r:.60} is missing")
            if tail.count(named) < names[named]:
                raise Unshown(f"the template does not show the call of {named!r}, or not each of {names[named]}")
        for tool in tools:
            if not _stands_in(tool["function"].get("name", ""), prompt):
                raise Unshown(f"the template does not show the declared tool {tool['function'].get('name')!r}")

    def _stop(self, tail: str, after: int, *, calls: bool) -> int | None:
        """The place in `tail` behind the token that ends the answer: the template's end, or what else ends generation; of a call,
        which may hold special tokens of its own, the last where none is known to. None where the template writes none."""
        matches = list(self._specials.finditer(tail, after))
        end_tokens = self._stops | {self.end} if calls else {self.end}
        if ends := next((match.end() for match in matches if match[0] in end_tokens), None):
            return ends
        return matches[-1 if calls else 0].end() if matches else None

    @cached_property
    def end(self) -> str:
        """The token that the template writes behind an answer, EOS where it writes none: one that ends generation, and of several
        what stands behind every answer (Phi-3's <|end|>), not behind the last alone."""
        question = [{"role": "user", "content": "a"}]
        answered = [*question, {"role": "assistant", "content": MARKER}]
        _, separator, after = self._render(answered, [], ask=False).rpartition(MARKER)
        if not separator:
            raise ValueError(
                "the chat template does not show the answer as it was written; prompt: alpaca asks without a template"
            )
        ends = [match[0] for match in self._specials.finditer(after)]
        with suppress(Unshown):  # it may refuse a second question
            between = self._render([*answered, *question], [], ask=True).rpartition(MARKER)[2]
            ends = [token for token in ends if token in between] or ends
        return next((token for token in ends if token in self._stops), ends[0] if ends else self._tokenizer.eos_token)

    @property
    def first_question(self) -> str:
        """What inference sends for a question: what begins a conversation stands there once, what opens a turn twice."""
        return self._render([{"role": "user", "content": "a"}], [], ask=True)

    @cached_property
    def tells_the_day(self) -> bool:
        """Whether it writes today's date, so that what inference sends changes from day to day."""
        if self._day or self._is_odd_about_days or not self._day_forms:
            return self._is_odd_about_days
        question: Message = {"role": "user", "content": "a"}
        tool = {
            "type": "function",
            "function": {"name": "a", "description": "a", "parameters": {"type": "object", "properties": {}}},
        }
        for messages in ([question], [{"role": "system", "content": "a"}, question]):
            for tools in ([], [tool]):
                with suppress(*_REFUSALS):
                    if len({self._apply(messages, tools, ask=True, day=moment) for moment in MOMENTS}) > 1:
                        return True
        return False

    @cached_property
    def _specials(self) -> re.Pattern[str]:
        """Every special token, also those without a named role, which `all_special_tokens` leaves out, and what ends generation."""
        tokens = {str(token) for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        ordered = sorted({*tokens, *self._tokenizer.all_special_tokens, *self._stops}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")

    @cached_property
    def _refuses_system(self) -> bool:
        """Whether the template has no place for a system prompt: it refuses one (Gemma's), or leaves it out."""
        messages = [{"role": "system", "content": MARKER}, {"role": "user", "content": "a"}]
        try:
            return MARKER not in self._apply(messages, [], ask=True)
        except _REFUSALS:
            return True

    def _render(self, messages: Sequence[Message], tools: list[Any], *, ask: bool) -> str:
        """A template that has no place for system prompts gets them at the head of the first question."""
        if messages[0]["role"] == "system" and self._refuses_system:
            messages = without_system(messages)
        try:
            return self._apply(messages, tools, ask=ask)
        except _REFUSALS as error:
            raise Unshown(
                f"the model's chat template refuses it: {error}; prompt: alpaca asks without a template"
            ) from None

    def _apply(
        self,
        messages: Sequence[Message],
        tools: list[Any],
        *,
        ask: bool,
        day: date | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        arguments = {**self.arguments, **(extra or {})}
        shown = [_for_template(message) for message in messages]
        options = {
            "tokenize": False,
            "add_generation_prompt": ask,
            **({"tools": tools} if tools else {}),
            **{name: value for name, value in arguments.items() if name != DAY},
            **self._on(day or self._day, tools),
        }
        try:
            return self._tokenizer.apply_chat_template(shown, **options)
        except TypeError:  # a template that joins a call's arguments to its text wants them as JSON (DeepSeek-V3)
            if not any(message.get("tool_calls") for message in shown):
                raise
            return self._tokenizer.apply_chat_template([_with_json(message) for message in shown], **options)

    def _on(self, day: date | None, tools: list[Any]) -> dict[str, str]:
        """The template to render as if it were that day. It gets a macro by the name of the function that tells it the day, since
        transformers passes no functions on."""
        if day is None:
            return {}
        words = {form: day.strftime(form) for form in self._day_forms}
        macro = f"{{% macro {DAY}(form) %}}{{{{ {json.dumps(words)}[form] }}}}{{% endmacro %}}\n"
        return {"chat_template": macro + self._tokenizer.get_chat_template(tools=tools or None)}


_REFUSALS = (
    TemplateError,
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
)  # a template may fail in many ways


MOMENTS = (
    datetime(2001, 2, 3, 4, 5, 6),
    datetime(2014, 5, 16, 17, 18, 19),
)  # alike in nothing that a template may write


def _parsed(tokenizer: Any) -> nodes.Template:
    template = tokenizer.chat_template  # one, or several by name, such as one for tools
    source = _GENERATION.sub(
        "", "\n".join(template.values()) if isinstance(template, dict) else tokenizer.get_chat_template()
    )
    return ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(source)


def _refuse_unknown(arguments: Iterable[str], known: set[str], sets: set[str]) -> None:
    if unknown := sorted(set(arguments) - known - {DAY}):  # a day changes nothing where it is not asked for
        raise ValueError(
            f"template: {', '.join(unknown)}: the model's chat template knows no such argument; it knows "
            f"{', '.join(sorted(known - (sets - set(THINKING)))) or 'none'}"
        )


def _tested(parsed: nodes.Template) -> set[str]:
    """The variables that a template asks something of, such as whether they are defined."""
    return {test.node.name for test in parsed.find_all(nodes.Test) if isinstance(test.node, nodes.Name)}


def _day_forms(parsed: nodes.Template) -> tuple[list[str], bool]:
    """The forms in which the template asks for the day, and whether it also does so in ways that cannot be read off it."""
    calls = [call for call in parsed.find_all(nodes.Call) if getattr(call.node, "name", None) == DAY]
    plain = [
        call for call in calls if len(call.args) == 1 and isinstance(call.args[0], nodes.Const) and not call.kwargs
    ]
    tests = [test for test in parsed.find_all(nodes.Test) if getattr(test.node, "name", None) == DAY]
    named = [name for name in parsed.find_all(nodes.Name) if name.name == DAY]
    forms = [call.args[0].value for call in plain if isinstance(call.args[0], nodes.Const)]
    return forms, len(plain) < len(calls) or len(named) > len(calls) + len(tests)


def _day(text: Any) -> date:
    try:
        return date.fromisoformat(text)
    except (TypeError, ValueError):
        raise ValueError(f'template: {DAY}: got {text!r}; expected a day, such as "2025-07-08"') from None


def _for_template(message: Message) -> Message:
    """Role and content, and what belongs to calls; nothing of ours."""
    names = ("role", "content", "tool_calls", "tool_call_id", "name")
    return {name: message[name] for name in names if name in message}


def _with_json(message: Message) -> Message:
    """The message with its calls' arguments as JSON texts."""
    if not message.get("tool_calls"):
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    serialized = [
        {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)} for function in functions
    ]
    calls = [{**call, "function": function} for call, function in zip(message["tool_calls"], serialized, strict=True)]
    return {**message, "tool_calls": calls}


def _require_results(messages: Sequence[Message], prompt: str) -> None:
    for message in messages:
        if message["role"] == "tool" and not _stands_in(message["content"], prompt):
            raise Unshown(f"the template does not show the result of a call: {message['content'][:60]!r} is missing")


def _words_of(value: Any) -> Iterator[str]:
    """The names, texts, numbers and other values in a call's arguments, as JSON has them."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield str(name)
            yield from _words_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from _words_of(item)
    elif isinstance(value, str):
        yield value.strip()
    else:
        yield json.dumps(value)


def _stands_in(words: str, text: str) -> bool:
    """As they are, as JSON writes them, or, of true, false and null, as Python does."""
    python = {"true": "True", "false": "False", "null": "None"}.get(words, words)
    ways = (words, python, json.dumps(words)[1:-1], json.dumps(words, ensure_ascii=False)[1:-1])
    return any(way in text for way in ways)


def _same(one: str, other: str) -> int:
    """The length of the common beginning of both texts, without a tag that is only partly common."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    open_tag = re.search(r"[<\[][^<\[>\]]*\Z", one[:length])
    return open_tag.start() if open_tag else length


def _where_it_parts(prompt: str, whole: str) -> str:
    """What the whole rendering has from where it differs from the prompt."""
    same = _same(prompt, whole)
    return whole[same : same + 40]
