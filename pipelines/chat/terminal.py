"""Chat in the terminal: a prompt, then the answers in columns if the window is wide enough, else
one after the other.

Without a terminal, each line of the input is a prompt. The answers are printed as text, or as one
line of JSON per prompt.
"""

import json
import shutil
import signal
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from threading import Event as Flag
from typing import Any, Literal, TextIO

from pipelines.chat.conversation import Conversation
from pipelines.chat.engine import Engine, Event
from pipelines.chat.settings import check_prompt
from pipelines.errors import UsageError
from pipelines.records.foreign_text import plain
from pipelines.runs import devices

# Minimum width of a column in characters; narrower ones read worse than stacked answers.
MIN_COLUMN = 34
GAP = 3
REDRAW_SECONDS = 0.1
MAX_CHARS = 200_000
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"
HELP = "/new starts over, /quit leaves; Ctrl-C stops an answer, Ctrl-D leaves"
Format = Literal["text", "json"]


@dataclass
class AnswerView:
    """The state of one answer on the screen."""

    name: str
    text: str = ""
    status: str = ""
    failed: bool = False
    last: Event | None = None

    def take(self, event: Event) -> None:
        """Apply an event."""
        self.last = event
        if event.kind == "text":
            self.text, self.status = self.text + event.text, ""
        elif event.kind == "done":
            self.text = event.text or self.text
            self.status = in_words(event)
        elif event.kind == "error":
            self.status, self.failed = f"no answer: {event.text}", True
        else:
            self.status = f"{event.text} …"


def in_words(event: Event) -> str:
    """The line under an answer: its speed, and why it ended if not by itself."""
    speed = event.tokens_per_second
    parts = [f"{event.tokens} tokens, {speed:.1f} tokens/s" if speed else f"{event.tokens} tokens"]
    why = {"limit": "cut at --max-new-tokens", "window": "cut at the model's window", "stopped": "stopped"}.get(
        event.ended
    )
    return ", ".join(filter(None, [*parts, why]))


@dataclass
class Terminal:
    """A conversation with a user at the terminal, or with piped input."""

    engine: Engine
    conversation: Conversation
    # If set, answer even during a measurement.
    beside: Flag = field(default_factory=Flag)
    format: Format = "text"
    out: TextIO = field(default_factory=lambda: sys.stdout)
    _failures: int = 0

    def run(self) -> int:
        """Run until the input ends; returns the exit code, 3 if a cell could not answer."""
        is_typed = sys.stdin.isatty() and self.format == "text"
        try:
            if is_typed and not self._may_begin():
                return 0
            for prompt in _typed(self.out) if is_typed else _piped():
                if not self._is_command(prompt, is_typed) and prompt.strip():
                    self._ask(prompt)
        except _QuitError:
            pass
        finally:
            self.engine.close()
        return 3 if self._failures else 0

    def _may_begin(self) -> bool:
        """Print the members; during a measurement ask the user what to do. False means quit."""
        names = [member.label for member in self.conversation.members]
        self.out.write(f"{' | '.join(names)}\n{HELP}\n")
        user = None if self.beside.is_set() else devices.holder(devices.watched_locks())
        if user is None:
            return True
        self.out.write(f"\n{user} uses the device; answers would disturb its measurement.\n")
        with suppress(EOFError, KeyboardInterrupt):
            chosen = input("[w]ait for it, answer [n]ow anyway, or [q]uit? ").strip().lower()
            if chosen.startswith("n"):
                self.beside.set()
            return not chosen.startswith("q")
        return False

    def _is_command(self, prompt: str, is_typed: bool) -> bool:
        word = prompt.strip().lower()
        if word in ("/quit", "/exit"):
            raise _QuitError
        if word == "/new":
            self.conversation.start_over()
            self.out.write("a new conversation\n" if is_typed else "")
            return True
        if is_typed and word.startswith("/") and " " not in word:
            self.out.write(f"{word}: no such command. {HELP}\n")
            return True
        return False

    def _ask(self, prompt: str) -> None:
        try:
            check_prompt(prompt)
        except UsageError as error:
            if self.format == "json" or not self.out.isatty():
                raise
            self.out.write(f"{error}\n")
            return
        shown = [AnswerView(member.label) for member in self.conversation.members]
        with _interruptible() as stop:
            events = self.engine.ask(self.conversation, prompt, stop=stop, beside=self.beside)
            if self.format == "json":
                self._as_json(prompt, shown, events)
            elif self.out.isatty() and (width := _column(len(shown))):
                _Columns(self.out, width).show(shown, events)
            else:
                self._stacked(shown, events)
        self._failures += sum(one.failed for one in shown)

    def _stacked(self, shown: Sequence[AnswerView], events: Iterator[Event]) -> None:
        """Print the answers one below the other, in the order of computation, as they arrive."""
        before: int | None = None
        for event in events:
            one = shown[event.slot]
            if event.slot != before:
                self.out.write(f"\n{one.name}\n")
                before = event.slot
            earlier = one.text
            one.take(event)
            if event.kind == "text":
                self.out.write(_clean(event.text))
            elif event.kind == "done":
                more = (
                    event.text[len(earlier) :]
                    if event.text.startswith(earlier)
                    else f"\n{event.text}"
                    if event.text
                    else ""
                )
                self.out.write(f"{_clean(more)}\n[{one.status}]\n")
            elif event.kind == "error" or self.out.isatty():
                self.out.write(f"[{_clean(one.status)}]\n")
            elif event.kind == "waiting":
                print(event.text, file=sys.stderr, flush=True)
            self.out.flush()

    def _as_json(self, prompt: str, shown: Sequence[AnswerView], events: Iterator[Event]) -> None:
        for event in events:
            shown[event.slot].take(event)
            if event.kind == "waiting":
                print(event.text, file=sys.stderr, flush=True)
        pairs = zip(self.conversation.members, shown, strict=True)
        row = {
            "prompt": prompt,
            "turn": self.conversation.turns,
            "answers": [
                {
                    "model": member.key.model,
                    "method": member.key.method,
                    "seed": member.key.seed,
                    "run_id": member.run_id or None,
                    **_numbers(one),
                }
                for member, one in pairs
            ],
        }
        self.out.write(json.dumps(row, ensure_ascii=True) + "\n")
        self.out.flush()


def _numbers(one: AnswerView) -> dict[str, Any]:
    event = one.last
    if event is None or event.kind != "done":
        error = event.text if event else "not asked"
        return dict.fromkeys(("answer", "tokens", "seconds", "tokens_per_second", "ended")) | {"error": error}
    return {
        "answer": one.text,
        "tokens": event.tokens,
        "seconds": event.seconds,
        "tokens_per_second": event.tokens_per_second,
        "ended": event.ended,
        "error": None,
    }


class _QuitError(Exception):
    """The user typed /quit."""


def _typed(out: TextIO) -> Iterator[str]:
    with suppress(ImportError):
        # With readline, input() handles the arrow keys.
        import readline  # noqa: F401
    while True:
        try:
            yield input("\n> ")
        except EOFError:
            out.write("\n")
            return
        except KeyboardInterrupt:
            out.write(f"\n{HELP}\n")


def _piped() -> Iterator[str]:
    """The input's lines. Invalid bytes are replaced."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    for line in sys.stdin:
        yield line.rstrip("\r\n")


@contextmanager
def _interruptible() -> Iterator[Flag]:
    """Inside the context, the first Ctrl-C sets the flag and the second one interrupts."""
    stop = Flag()

    def on_interrupt(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _column(count: int) -> int:
    """The width of each of `count` columns; 0 if they would be too narrow."""
    width = (shutil.get_terminal_size().columns - 1 - GAP * (count - 1)) // count
    return width if count > 1 and width >= MIN_COLUMN else 0


class _Columns:
    """Answers in columns. While they arrive, the last lines that fit the window are redrawn; at the
    end, all lines."""

    def __init__(self, out: TextIO, width: int) -> None:
        self._out, self._width, self._drawn = out, width, 0

    def show(self, shown: Sequence[AnswerView], events: Iterator[Event]) -> None:
        last = 0.0
        for event in events:
            shown[event.slot].take(event)
            if event.kind != "text" or time.monotonic() - last > REDRAW_SECONDS:
                last = time.monotonic()
                self._draw(shown, whole=False)
        self._draw(shown, whole=True)

    def _draw(self, shown: Sequence[AnswerView], *, whole: bool) -> None:
        texts = [wrapped(_clean(one.text), self._width) for one in shown]
        height = max(map(len, texts))
        if not whole:
            room = max(1, shutil.get_terminal_size().lines - 5)
            texts = [lines[max(0, height - room) :] for lines in texts]
        heads = [[_cut(one.name, self._width)] for one in shown]
        ends = [wrapped(f"[{_clean(one.status)}]", self._width) if one.status else [] for one in shown]
        lines = [*(f"{BOLD}{row}{PLAIN}" for row in self._rows(heads)), *self._rows(texts), *self._rows(ends)]
        up = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        self._out.write(up + "".join(f"{line}\n" for line in lines))
        self._out.flush()
        self._drawn = len(lines)

    def _rows(self, columns: Sequence[Sequence[str]]) -> list[str]:
        rows = zip_longest(*columns, fillvalue="")
        return [(" " * GAP).join(_padded(cell, self._width) for cell in row).rstrip() for row in rows]


def _clean(text: str) -> str:
    """A model's text, made safe for the terminal."""
    return plain(text, MAX_CHARS).replace("\t", "    ")


def width_of(text: str) -> int:
    """Width of the text in terminal columns."""
    return sum(_width(sign) for sign in text)


def _width(sign: str) -> int:
    if unicodedata.combining(sign):
        return 0
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1


def _padded(text: str, width: int) -> str:
    return text + " " * (width - width_of(text))


def _cut(text: str, width: int) -> str:
    return text if width_of(text) <= width else wrapped(text, width - 1)[0] + "…"


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, broken at spaces if possible."""
    return [line for paragraph in text.split("\n") for line in _lines(paragraph, width)]


def _lines(paragraph: str, width: int) -> Iterator[str]:
    # `space` is the index after the last space in `line`.
    line, used, space = "", 0, -1
    for sign in paragraph:
        if used + _width(sign) > width:
            head, line = (line[:space].rstrip(), line[space:]) if space > 0 else (line, "")
            yield head
            line, used, space = line.lstrip(), width_of(line.lstrip()), -1
        line, used = line + sign, used + _width(sign)
        space = len(line) if sign == " " else space
    yield line
