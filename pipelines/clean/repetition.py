"""Answers that got stuck: the same text again and again, with nothing in between.

Text that comes back after other text (a refrain, a formula, a tag) is no loop. Code, tables and
lists of numbers repeat by nature, so they count only if the same lines or statements occur many
times.
"""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from pipelines.clean.exchange import Exchange
from pipelines.clean.prose import FENCED, TABLE_LINE, TAG, is_code_line, sentences
from pipelines.clean.shingles import Hashes, code_points, mixed

# Only the end of a longer answer is judged: loops do not stop.
JUDGED_CHARS = 20_000
# Below this share of repeated 8-grams there is no loop.
CANDIDATE_SHARE = 0.12
# A unit this often in a row that repeats at least STUCK_CHARS is a loop, if it reaches the end of
# the answer.
STUCK_TIMES = 5
STUCK_CHARS = 60
# The same for a line of code, unless it is data or the question asks for repetition.
CODE_TIMES = 4
# Repeats from which a refrain is a loop.
VERSE_TIMES = 8
_VERSE = re.compile(
    r"\bsong|\blyric|\bpoem|\brhyme|\bverse|\bchorus|\brefrain|노래|가사|동요|민요|시를|시 한|후렴", re.IGNORECASE
)
# Repeats from which several lines that are not code (a plan, a drill) are a loop.
LINES_TIMES = 6
# Share of an answer's characters that repeated lines must have to be a loop.
LINES_SHARE = 0.2
# Repeats from which even a requested loop is stuck; the second number is for a single character.
ASKED_TIMES, ASKED_SIGNS = 40, 200
# Questions that ask for repetition.
ASKED_FOR = re.compile(
    r"\brepeat|\b(?:two|three|four|five|six|seven|eight|nine|ten|twenty|\d+) (?:\w+ )?(?:rows|lines|items|copies|"
    r"records|elements)\b|\btimes\b|\bover and over|\bagain and again|\bchant|\brefrain|\bchorus|\bsong|\blyric|"
    r"\bpoem|"
    r"\bpattern|\brhyme|\bmantra|"
    r"\bduplicat|\bloop|\bonomatop|\bsequence|\bbinary|\bdigits?\b|\boutput\b|\bsounds?\b|\bnoise|\bscream|\blaugh|"
    r"\bprint|\blist items?\b|반복|번 (?:말|써|적|출력)|되풀이|"
    r"후렴|노래|가사|동요|민요|시를|구호|의성어|의태어|출력",
    re.IGNORECASE,
)
DATA_LINE = re.compile(r"^[\s\d.,;:|/+*=()\[\]{}\"'-]*$|^\s*(?:[#.XxOo_ *|+-]\s?)+$")


@dataclass(frozen=True)
class Loop:
    """A stretch of text in which one unit follows itself.

    `times`: how often the unit occurs. `repeated`: characters that repeat the text right before
    them. `total`: characters of the whole text.
    """

    unit: str
    times: float
    repeated: int
    total: int
    reaches_end: bool

    @property
    def share(self) -> float:
        return self.repeated / self.total if self.total else 0.0


def judge(exchange: Exchange, *, max_share: float) -> str | None:
    """What repeats if the answer is stuck, else None. A share `max_share` of the answer may repeat
    the text right before it."""
    # First repeated lines, also of code, and repeated sentences, also with other text in between.
    text = exchange.answer[-JUDGED_CHARS:]
    if detail := _stuck_lines(exchange, text):
        return detail
    answer_prose = _prose(text)
    if detail := _stuck_sentences(exchange, text):
        return detail
    if detail := _repeated_sentence(exchange, text):
        return detail

    # Then any unit of prose. Refrains, requested repetition, ornaments and data may repeat.
    loop = longest_loop(answer_prose)
    if loop is None:
        return None
    unit = loop.unit.strip()
    if _may_repeat(exchange.question, unit, loop):
        return None
    if not any(map(str.isalpha, unit)) and not _is_one_sign(unit, loop) and not _is_one_number(unit, loop):
        return None

    # The answer is stuck if too much of it is a loop, or if a loop runs to its end.
    over_share = loop.share > max_share and loop.repeated >= MIN_REPEATED
    stuck = loop.times >= STUCK_TIMES and loop.repeated >= STUCK_CHARS and loop.reaches_end
    if over_share or stuck:
        return f"{100 * loop.share:.0f} % of the answer repeats what stands right before it: {unit[:60]!r} {loop.times:.0f} times"
    return None


# Fewer repeated characters are no loop.
MIN_REPEATED = 24


def _may_repeat(question: str, unit: str, loop: Loop) -> bool:
    """Whether the question asks for verse or repetition, and the loop is no longer than that
    explains."""
    if _VERSE.search(question):
        return loop.times < VERSE_TIMES
    few = loop.times < ASKED_TIMES or (len(unit) == 1 and loop.times < ASKED_SIGNS)
    return few and bool(ASKED_FOR.search(question))


def _is_one_sign(unit: str, loop: Loop) -> bool:
    """Whether the loop is a single character, but not a rule or an ornament."""
    return len(set(unit)) == 1 and unit[0] not in "-=_*#.~ ─━" and loop.repeated >= MIN_REPEATED


def _is_one_number(unit: str, loop: Loop) -> bool:
    """Whether the loop is one number to the end. It has at least three different digits: rows of
    zeros and ones are data."""
    return (
        len(set(re.sub(r"\D", "", unit))) >= 3
        and loop.times >= STUCK_TIMES + 3
        and loop.share >= ALL_BUT
        and loop.reaches_end
    )


def _prose(text: str) -> str:
    """The answer's prose with single spaces, without numbers and bullets at the start of lines."""
    text = FENCED.sub("\n", text)
    if "<" in text:
        text = TAG.sub(" ", text)
    lines = [line for line in text.split("\n") if not (is_code_line(line) or TABLE_LINE.search(line))]
    return " ".join(" ".join(re.sub(r"^\s*(?:\(?\d{1,4}[.):]|[-*•])\s*", "", line) for line in lines).lower().split())


def longest_loop(text: str) -> Loop | None:
    """The loop of `text` with the most repeated characters; None if no unit follows itself.

    Only the commonest distances between a piece of GRAM characters and its last occurrence are
    tried as periods.
    """
    signs = code_points([text])[0]
    # Repeated characters, period and end of the best loop.
    best: tuple[int, int, int] | None = None
    for period in _likely_periods(signs):
        run, end = _longest_run(signs[period:] == signs[:-period])
        if run + 1 >= period and (best is None or run > best[0]):
            best = (run, period, end + period)
    return _loop(text, *best) if best else None


GRAM = 8
PERIODS = 6


def _likely_periods(signs: Hashes) -> list[int]:
    """The commonest distances between pieces of the text and their last occurrence, the commonest
    first."""
    if len(signs) < GRAM:
        return []
    grams = signs
    for width in (1, 2, 4):
        grams = mixed(grams[:-width]) + grams[width:]
    order = np.argsort(grams, kind="stable")
    same = grams[order[1:]] == grams[order[:-1]]
    distances = (order[1:] - order[:-1])[same]
    values, counts = np.unique(distances, return_counts=True)
    return values[np.argsort(-counts, kind="stable")][:PERIODS].tolist()


def _loop(text: str, run: int, period: int, end: int) -> Loop:
    unit = text[max(0, end - run - period) : end - run]
    return Loop(unit, 1 + run / period, run, len(text), reaches_end=end >= len(text) - period)


def _longest_run(same: np.ndarray) -> tuple[int, int]:
    """The length of the longest run of True, and the index after it."""
    breaks = np.flatnonzero(~same)
    edges = np.concatenate([[-1], breaks, [len(same)]])
    lengths = np.diff(edges) - 1
    at = int(np.argmax(lengths))
    return int(lengths[at]), int(edges[at + 1])


def _stuck_sentences(exchange: Exchange, text: str) -> str | None:
    """The sentence that follows itself with only its first word changed: and we …, so we …, thus we
    …."""
    if ASKED_FOR.search(exchange.question):
        return None
    times, last = 1, ""
    for sentence in sentences(text):
        rest = sentence.partition(" ")[2]
        times = times + 1 if rest == last and len(rest) >= SENTENCE_CHARS else 1
        if times >= STUCK_TIMES:
            return f"the same sentence {times} times in a row but for its first word: {rest[:60]!r}"
        last = rest
    return None


SENTENCE_CHARS = 10


def _repeated_sentence(exchange: Exchange, text: str) -> str | None:
    """The sentence that makes up most of an answer, also with other text in between: the same under
    every heading."""
    if ASKED_FOR.search(exchange.question) or exchange.is_code:
        return None
    answer_sentences = sentences(exchange.answer_prose)
    line, times = Counter(answer_sentences).most_common(1)[0] if answer_sentences else ("", 0)
    if (
        times >= AGAIN_TIMES
        and len(line) >= AGAIN_CHARS
        and times * len(line) >= MOST * sum(map(len, answer_sentences))
    ):
        return f"the same sentence {times} times: {line[:60]!r}"
    return None


AGAIN_TIMES, AGAIN_CHARS, MOST, ALL_BUT = 4, 30, 0.5, 0.7


def _stuck_lines(exchange: Exchange, text: str) -> str | None:
    """The lines that follow themselves although they are not data and the question asks for no
    repetition."""
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line]
    if len(lines) < CODE_TIMES or ASKED_FOR.search(exchange.question):
        return None
    codes = {line: number for number, line in enumerate(dict.fromkeys(lines))}
    signs = np.array([codes[line] for line in lines])
    for period in range(1, min(12, len(signs) // CODE_TIMES) + 1):
        run, end = _longest_run(signs[period:] == signs[:-period])
        unit = lines[end - run : end - run + period]
        times = 1 + run / period
        weight = sum(len(line) for line in unit)
        much = weight * (times - 1) >= max(STUCK_CHARS, LINES_SHARE * sum(map(len, lines)))
        least = CODE_TIMES if all(map(is_code_line, unit)) or len(unit) == 1 else LINES_TIMES
        if times >= least and much and not all(map(_is_data, unit)):
            return f"the same lines stand there {times:.0f} times: {' '.join(unit)[:60]!r}"
    return None


def _is_data(line: str) -> bool:
    """Whether a line is a row of numbers or symbols, or markup that repeats by nature (list items,
    cells, closing tags)."""
    return bool(DATA_LINE.match(line)) or line.startswith(("<", "|", "}", "]", ")", "\\"))
