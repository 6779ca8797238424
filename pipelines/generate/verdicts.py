"""Shared by all judges: data between marks, lenient reading of replies, and repeated requests.

A judge without schemas nearly keeps the form: a number as text, an extra key, prose around the
JSON. A reply that can mean only one thing is read. The rest is unreadable. It was paid for, so it
is sent again only on request.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from pipelines.generate.answers import text_of
from pipelines.generate.journal import Journal, Request
from pipelines.lake.files import stable_hash

V = TypeVar("V")
# Reads the verdict in a JSON object.
Read = Callable[[Mapping[str, Any]], V | None]
ASK_AGAIN = "`featherweight judge --again`"
# Added to the replicate of a request each time that it is repeated.
AGAIN = 1000
# Places of one reply where JSON is tried.
MOST_OBJECTS = 50
SAMPLE_CHARS = 120
WORDS = {"true": True, "yes": True, "false": False, "no": False}
GRADE = re.compile(r"([1-9]\d*)(?:\.0+)?")
TRICKS = re.compile(
    # ANSI escape sequences.
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b."
    # Characters without width, direction marks, tags.
    r"|[\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\u00ad\U000e0000-\U000e007f]"
    # Control characters.
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
# Markup and its replacement.
MARKDOWN = (
    # Fences.
    (re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE), ""),
    # Links and pictures: only their text stays.
    (re.compile(r"!?\[([^\]\n]*)\]\([^)\n]*\)"), r"\1"),
    # Headings, quotations, bullets.
    (re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|>[ \t]?|[-*+][ \t]+)", re.MULTILINE), ""),
    # Rules.
    (re.compile(r"^[ \t]*(?:[-*_][ \t]*){3,}$", re.MULTILINE), ""),
    # Bold, strikethrough, code.
    (re.compile(r"(\*\*|__|~~|`)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    # HTML.
    (re.compile(r"</?[a-zA-Z][^<>\n]{0,200}>"), ""),
)


# --- the texts that a judge sees


def without_tricks(text: str) -> str:
    """Only the words of `text`: no terminal codes, nothing invisible, no Markdown or HTML, few
    empty lines."""
    text = TRICKS.sub("", unicodedata.normalize("NFC", text))
    for pattern, replacement in MARKDOWN:
        text = pattern.sub(replacement, text)
    return re.sub(r"[ \t]+", " ", re.sub(r"\s*\n\s*\n\s*", "\n\n", text)).strip()


def cut(text: str, limit: int) -> str:
    """At most `limit` characters of `text`; a mark shows that there were more."""
    return text if len(text) <= limit else text[:limit] + " […]"


def code_of(purpose: str, texts: Sequence[str]) -> str:
    """The code in the marks around `texts`: a hash of their content, so equal requests have equal
    keys.

    No text can contain its own hash, so none can end its own mark.
    """
    return stable_hash([purpose, *texts])


# --- the replies of a judge


def verdict_in(response: str, parse: Read[V]) -> V | None:
    """The verdict in a judge's reply; None if it holds none, or two that differ."""
    try:
        text = text_of(response)
    except (ValueError, RecursionError):
        return None
    verdicts = [verdict for value in _objects(text) if (verdict := parse(value)) is not None]
    return verdicts[0] if verdicts and all(verdict == verdicts[0] for verdict in verdicts) else None


def _objects(text: str) -> Iterator[Mapping[str, Any]]:
    """The JSON objects in `text`, also inside prose or Markdown; objects inside other objects are
    left out."""
    decoder = json.JSONDecoder(object_pairs_hook=_unambiguous)
    place = text.find("{")
    for _ in range(MOST_OBJECTS):
        if place < 0:
            return
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
        else:
            yield value
        place = text.find("{", place)


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields and fields[name] != value:
            raise ValueError(f"{name} occurs twice")
        fields[name] = value
    return fields


def truth(value: Any) -> bool | None:
    """A boolean, also as a word; None for anything else."""
    return value if isinstance(value, bool) else WORDS.get(value.strip().lower()) if isinstance(value, str) else None


def grade(value: Any, highest: int) -> int | None:
    """A whole number from 1 to `highest`, also as 4.0, "4" or "4/5" (of `highest`); None for
    anything else."""
    if isinstance(value, bool):
        return None
    text = str(value).strip() if isinstance(value, int | float | str) else ""
    match = GRADE.fullmatch(re.sub(rf"\s*/\s*{highest}$", "", text))
    return int(match[1]) if match and int(match[1]) <= highest else None


# --- replies in the journal, and repeated requests


@dataclass(frozen=True)
class Reply(Generic[V]):
    """The state of a question to a judge.

    `request` is the request that counts, `following` the one that would repeat it. `verdict` is its
    readable verdict, `unreadable` the text of a reply without one.
    """

    request: Request
    following: Request
    verdict: V | None = None
    unreadable: str | None = None

    @property
    def answered(self) -> bool:
        return self.verdict is not None or self.unreadable is not None


def reply_to(journal: Journal, first: Request, parse: Read[V], *, earlier: Request | None = None) -> Reply[V]:
    """The first readable reply to `first` or one of its repeats, else the state of the last repeat.

    `earlier`: the request in the form of older code. Its answer counts as long as `first` was never
    sent.
    """
    if earlier and (row := journal.row(earlier.key)) and row["status"] == "answered" and not journal.row(first.key):
        return _reply(earlier, first, row["response"], parse)
    reply = Reply[V](first, first)
    request = first
    while row := journal.row(request.key):
        following = replace(request, replicate=request.replicate + AGAIN)
        if row["status"] != "answered":
            return Reply(request, following)
        reply = _reply(request, following, row["response"], parse)
        if reply.verdict is not None:
            return reply
        request = following
    return reply


def _reply(request: Request, following: Request, response: str, parse: Read[V]) -> Reply[V]:
    verdict = verdict_in(response, parse)
    return Reply(request, following, verdict, None if verdict is not None else _reply_text(response))


def _reply_text(response: str) -> str:
    try:
        return text_of(response)
    except (ValueError, RecursionError):
        return ""


def to_ask(replies: Sequence[Reply[Any]], *, again: bool) -> list[Request]:
    """The requests that count, each once; with `again`, unreadable ones are replaced by their
    repeats."""
    requests = [one.following if again and one.unreadable is not None else one.request for one in replies]
    return list({request.key: request for request in requests}.values())


def unreadable_in(replies: Sequence[Reply[Any]]) -> dict[str, Any]:
    """The number of distinct requests answered without a readable verdict, and one such answer.

    The keys are fields of `ProviderResult`.
    """
    texts = {one.request.key: one.unreadable for one in replies if one.unreadable is not None}
    return {"unreadable": len(texts), "unreadable_sample": next(iter(texts.values()), None)}


def on_one_line(text: str) -> str:
    """`text` for a terminal: one line, cut, without terminal codes, invisible characters and
    direction marks."""
    return cut(" ".join(TRICKS.sub("", " ".join(text.split())).split()), SAMPLE_CHARS)
