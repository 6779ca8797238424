"""Conversations as text: through a tokenizer's own chat template, or as Alpaca blocks.

Both give, for every answer of a record, the prompt that inference sends and the text with the
answer after it.
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
# The templates' switches for thinking, which are off unless the model's record says otherwise.
THINKING = ("enable_thinking", "thinking")
# The function that templates call for today's date.
DAY = "strftime_now"
# Every rendering sets these names, so a model's record may not use them as arguments.
GIVEN = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token")
)
# A tag of transformers that plain Jinja does not know.
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_THOUGHT = re.compile(r"\A(\s*<think>\s*)(.*?)(\s*</think>\s*)(.+)\Z", re.DOTALL)


class Unshown(ValueError):
    """The model's template cannot show a record as inference would see it: that record is left out,
    not the cell."""


Span = tuple[int, int]


@dataclass(frozen=True)
class Shown:
    """One answer as text.

    `text` holds the prompt (its first `prompt_length` characters) and the answer with its end
    token. `content_spans` are the places of the record's own words in it, without the template's
    additions.
    """

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
    """Stanford Alpaca's plain text, with an EOS token after every answer."""

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
    """A tokenizer's chat template with `arguments` from the model's record, which the template must
    know.

    The argument `strftime_now`, such as "2025-07-08", replaces today's date in templates that write
    it. `stops` are the tokens that end generation, EOS included.

    Raises:
        ValueError: there is no template, it knows no such argument, or it does not show an answer
            as it was written.
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
                f"template: {DAY}: the chat template asks for the day in a way that allows no fixed day: leave it out"
            )

        # Thinking is off. A variable that the template sets itself is a switch only if a value of
        # it makes a difference.
        own = {name for name in THINKING if name in sets and name not in _tested(parsed)}
        switches = [name for name in THINKING if name in known and (name not in own or self._is_switch(name))]
        self.arguments = {**dict.fromkeys(switches, False), **arguments}

    def _is_switch(self, name: str) -> bool:
        """Whether a variable that the template also sets is an argument.

        It is if its two values give different texts, and one of them is the text without the
        variable.
        """
        messages: list[Message] = [{"role": "user", "content": "a"}]
        shown = []
        with suppress(*_REFUSALS):
            shown = [self._apply(messages, [], ask=True, extra=extra) for extra in ({}, {name: True}, {name: False})]
        return bool(shown) and shown[1] != shown[2] and shown[0] in shown[1:]

    def prompt(self, record: Mapping[str, Any], shots: Shots) -> str:
        """The prompt that inference sends for the record's last answer."""
        return self._render(with_shots(conversation(record)[:-1], shots), tools_of(record), ask=True)

    def answers(self, record: Mapping[str, Any], shots: Shots) -> Iterator[Shown]:
        """The record's own answers, without those of the shots.

        Raises:
            Unshown: the template refuses the record, or does not show an answer after the prompt
                that inference sends.
        """
        messages, tools = with_shots(conversation(record), shots), tools_of(record)
        own = sum(message["role"] == "assistant" for message in with_shots([], shots))
        places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        for place in places[own:]:
            yield self._answer(messages[: place + 1], tools, place)

    def _answer(self, messages: list[Message], tools: list[Any], place: int) -> Shown:
        # The prompt, and the answer as the template shows it after that prompt.
        prompt = self._render(messages[:-1], tools, ask=True)
        tail = self._behind(messages, tools, prompt)
        if tail is None and prompt.rstrip().endswith("<think>"):
            # Inference always opens a block of reasoning (DeepSeek-R1). An answer without reasoning
            # closes it, if the template shows that.
            closed = {**messages[-1], "content": f"<think>\n\n</think>\n\n{messages[-1]['content']}"}
            messages = [*messages[:-1], closed]
            tail = self._behind(messages, tools, prompt)
        answer = messages[-1]
        if tail is None:
            full_text = self._render(messages, tools, ask=False)
            raise Unshown(
                f"the template does not show answer {place + 1} after the prompt that inference sends, which ends in "
                f"{prompt[-40:]!r}: it continues with {_where_it_parts(prompt, full_text)!r}"
            )

        # Tool calls and their results must be visible.
        calls = bool(answer.get("tool_calls"))
        if calls:
            self._require_calls(answer, prompt, tail, tools)
        if calls_tools(messages[:-1]):
            _require_results(messages[:-1], prompt)

        # The places of the record's own words, and the end of the answer.
        inside = self._inside(messages, tools, prompt, tail) if answer["content"] or not calls else []
        spans = tuple((len(prompt) + start, len(prompt) + end) for start, end in inside)
        stop = self._stop(tail, 0 if calls else inside[-1][1], calls=calls)
        text = prompt + (tail[:stop] if stop else tail.rstrip() + self.end)
        return Shown(text, len(prompt), spans, is_learned(answer), place, calls)

    def _behind(self, messages: list[Message], tools: list[Any], prompt: str) -> str | None:
        """The text that the template shows after `prompt`: the answer and what follows it.

        None if the template shows the answer after another text.
        """
        full_text = self._render(messages, tools, ask=False)
        if full_text.startswith(prompt):
            return full_text[len(prompt) :]
        if (tail := self._behind_closed(messages, tools, prompt, full_text)) is not None:
            return tail
        # Mistral's template writes the system prompt into the last question, and omits it after the
        # answer. Then the answer reads as it does after the question alone, if that ends as the
        # prompt does.
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
            bool(separator)
            and prompt.endswith(question + opening)
            and full_text.endswith(short_text[len(short_prompt) :])
        )
        return short_text[len(short_prompt) :] if same_frame else None

    def _behind_closed(self, messages: list[Message], tools: list[Any], prompt: str, full_text: str) -> str | None:
        """The same for templates that turn thinking off by an empty block of reasoning in the
        prompt (Gemma 4, MiniCPM).

        The full text lacks that block. The result is the text from the answer's turn on, without
        the header if the block already holds it.
        """
        off = any(self.arguments.get(name) is False for name in THINKING)
        answer = messages[-1]["content"]
        if not off or not answer or _THOUGHT.match(answer) or prompt.rstrip().endswith("<think>"):
            return None
        before = self._render(messages[:-1], tools, ask=False)
        marked = self._render([*messages[:-1], {**messages[-1], "content": MARKER}], tools, ask=False)
        # They differ before the answer's turn.
        if not (prompt.startswith(before) and marked.startswith(before)):
            return None
        start = len(before) + _same(prompt[len(before) :], marked[len(before) :])
        place = marked.find(MARKER, start)
        if place < 0 or not full_text.startswith(marked[:place]):
            return None
        block, header = prompt[start:], marked[start:place]
        has_header = block.endswith(header) or (header.strip() and block.rstrip().endswith(header.strip()))
        return ("" if has_header else header) + full_text[place:]

    def _inside(self, messages: list[Message], tools: list[Any], prompt: str, tail: str) -> list[Span]:
        """The places of the answer in `tail`, found by rendering markers in its place.

        Raises:
            Unshown: the template changes the answer's text.
        """
        # Markers for the reasoning, if there is any, and for the answer.
        content = messages[-1]["content"]
        thought = _THOUGHT.match(content)
        pieces = [piece for piece in (thought[2], thought[4]) if piece] if thought else [content]
        markers = [THOUGHT_MARKER, MARKER][-len(pieces) :]
        marked = thought[1] + (THOUGHT_MARKER if thought[2] else "") + thought[3] + MARKER if thought else MARKER
        shown = self._behind([*messages[:-1], {**messages[-1], "content": marked}], tools, prompt)

        # Put the texts back in place of the markers: the result must be the tail itself.
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
        """Check that the template shows every call and every declared tool.

        Training learns calls in the model's own spelling. No measure that compares models counts
        them.

        Raises:
            Unshown: a call, a name or value of its arguments, or a declared tool is missing.
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
        """The place in `tail` after the token that ends the answer; None if the template writes no
        special token.

        That is the template's end token, else the first special token. A call may hold special
        tokens of its own: for it any token that ends generation counts, else the last special
        token.
        """
        matches = list(self._specials.finditer(tail, after))
        end_tokens = self._stops | {self.end} if calls else {self.end}
        if ends := next((match.end() for match in matches if match[0] in end_tokens), None):
            return ends
        return matches[-1 if calls else 0].end() if matches else None

    @cached_property
    def end(self) -> str:
        """The special token that the template writes after an answer; EOS if it writes none.

        Of several tokens it is one that follows every answer (Phi-3's <|end|>), not only the last,
        and preferably one that ends generation.
        """
        question = [{"role": "user", "content": "a"}]
        answered = [*question, {"role": "assistant", "content": MARKER}]
        _, separator, after = self._render(answered, [], ask=False).rpartition(MARKER)
        if not separator:
            raise ValueError(
                "the chat template does not show the answer as it was written; prompt: alpaca asks without a template"
            )
        ends = [match[0] for match in self._specials.finditer(after)]
        # A template may refuse a second question.
        with suppress(Unshown):
            between = self._render([*answered, *question], [], ask=True).rpartition(MARKER)[2]
            ends = [token for token in ends if token in between] or ends
        return next((token for token in ends if token in self._stops), ends[0] if ends else self._tokenizer.eos_token)

    @property
    def first_question(self) -> str:
        """The prompt for a single question: a conversation's opening occurs in it once, a turn's
        opening twice."""
        return self._render([{"role": "user", "content": "a"}], [], ask=True)

    @cached_property
    def tells_the_day(self) -> bool:
        """Whether the template writes today's date, so that prompts change from day to day."""
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
        """A pattern of all special tokens and all tokens that end generation.

        It includes special tokens without a named role, which `all_special_tokens` omits.
        """
        tokens = {str(token) for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        ordered = sorted({*tokens, *self._tokenizer.all_special_tokens, *self._stops}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")

    @cached_property
    def _refuses_system(self) -> bool:
        """Whether the template cannot show a system prompt: it refuses one (Gemma's) or omits
        it."""
        messages = [{"role": "system", "content": MARKER}, {"role": "user", "content": "a"}]
        try:
            return MARKER not in self._apply(messages, [], ask=True)
        except _REFUSALS:
            return True

    def _render(self, messages: Sequence[Message], tools: list[Any], *, ask: bool) -> str:
        """The messages as text. For a template without system prompts these move to the start of
        the first question.

        Raises:
            Unshown: the template refuses the messages.
        """
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
        # A template that joins a call's arguments to its text needs them as JSON (DeepSeek-V3).
        except TypeError:
            if not any(message.get("tool_calls") for message in shown):
                raise
            return self._tokenizer.apply_chat_template([_with_json(message) for message in shown], **options)

    def _on(self, day: date | None, tools: list[Any]) -> dict[str, str]:
        """The template to render as if it were that day; without a day, nothing.

        A macro replaces the function that returns the day, since transformers passes no functions
        to templates.
        """
        if day is None:
            return {}
        words = {form: day.strftime(form) for form in self._day_forms}
        macro = f"{{% macro {DAY}(form) %}}{{{{ {json.dumps(words)}[form] }}}}{{% endmacro %}}\n"
        return {"chat_template": macro + self._tokenizer.get_chat_template(tools=tools or None)}


# The errors by which a template may fail.
_REFUSALS = (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError)


# Two moments that differ in every part that a template may write.
MOMENTS = (datetime(2001, 2, 3, 4, 5, 6), datetime(2014, 5, 16, 17, 18, 19))


def _parsed(tokenizer: Any) -> nodes.Template:
    # One template, or several by name, such as one for tools.
    template = tokenizer.chat_template
    source = _GENERATION.sub(
        "", "\n".join(template.values()) if isinstance(template, dict) else tokenizer.get_chat_template()
    )
    return ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(source)


def _refuse_unknown(arguments: Iterable[str], known: set[str], sets: set[str]) -> None:
    # A fixed day does no harm to a template that writes none.
    if unknown := sorted(set(arguments) - known - {DAY}):
        raise ValueError(
            f"template: {', '.join(unknown)}: the model's chat template knows no such argument; it knows "
            f"{', '.join(sorted(known - (sets - set(THINKING)))) or 'none'}"
        )


def _tested(parsed: nodes.Template) -> set[str]:
    """The variables that a template tests, for example whether they are defined."""
    return {test.node.name for test in parsed.find_all(nodes.Test) if isinstance(test.node, nodes.Name)}


def _day_forms(parsed: nodes.Template) -> tuple[list[str], bool]:
    """The date formats in the template's calls, and whether it also asks for the day in ways that
    cannot be parsed."""
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
    """Role, content and the fields of calls, without this project's own fields."""
    names = ("role", "content", "tool_calls", "tool_call_id", "name")
    return {name: message[name] for name in names if name in message}


def _with_json(message: Message) -> Message:
    """The message with its calls' arguments as JSON strings."""
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
    """The names, strings, numbers and other values in a call's arguments, as JSON writes them."""
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
    """Whether `text` contains `words`: as they are, as JSON writes them, or true, false and null as
    in Python."""
    python = {"true": "True", "false": "False", "null": "None"}.get(words, words)
    ways = (words, python, json.dumps(words)[1:-1], json.dumps(words, ensure_ascii=False)[1:-1])
    return any(way in text for way in ways)


def _same(one: str, other: str) -> int:
    """The length of the common prefix of both texts, without a tag that is only partly common."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    open_tag = re.search(r"[<\[][^<\[>\]]*\Z", one[:length])
    return open_tag.start() if open_tag else length


def _where_it_parts(prompt: str, full_text: str) -> str:
    """The first 40 characters of the full text from where it differs from the prompt."""
    prefix = _same(prompt, full_text)
    return full_text[prefix : prefix + 40]
