"""Patterns and schemas that a user wrote, put to answers that a model wrote, in a process of their own:
`python -m pipelines.evaluate.guarded` reads questions from its input and writes its verdicts.

Some patterns take time without end on some texts, and so may a schema. Here each answer has a second of the processor. Then a
signal ends the search, which works in the main thread of a process alone.
"""

import json
import re
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MAX_TIMEOUTS = 3  # answers of one metric that took longer; the rest is not tried
MAX_DIGITS = 1000  # of a whole number; Python refuses to read some thousands
Check = Callable[[str], bool]


class TooLongError(BaseException):
    """Time is up. No library catches it on its way."""


def json_value(answer: str) -> Any:
    """The JSON value that the whole answer is, white space around it aside. An answer that is one fenced block (```json … ```) is
    what stands in the block.

    Raises:
        ValueError: no JSON (RFC 8259); NaN and Infinity are none.
    """
    text = answer.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text.partition("\n")[2].removesuffix("```")
    try:
        return json.loads(text, parse_constant=_refuse, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


def verdicts(
    metrics: Sequence[Mapping[str, str]], answers: Sequence[str], *, seconds: float
) -> dict[str, list[bool | None]]:
    """For each metric, by name, whether each answer passes; None where that could not be told, of one in `seconds` at most."""
    return {metric["name"]: _each(_check(metric), answers, seconds) for metric in metrics}


def _each(check: Check, answers: Sequence[str], seconds: float) -> list[bool | None]:
    passes: list[bool | None] = []
    stopped = 0
    for answer in answers:
        if stopped == MAX_TIMEOUTS:
            passes.append(None)
            continue
        try:
            passes.append(_limited(check, answer, seconds))
        except TooLongError:
            signal.setitimer(signal.ITIMER_PROF, 0)  # it may have struck before the timer was taken back
            stopped += 1
            passes.append(None)
        except Exception:  # an odd value in an odd schema; what cannot be told is not made a no
            passes.append(None)
    return passes


def _limited(check: Check, answer: str, seconds: float) -> bool:
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds, seconds)
        return check(answer)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _check(metric: Mapping[str, str]) -> Check:
    if "regex" in metric:
        with warnings.catch_warnings(action="ignore"):
            pattern = re.compile(metric["regex"])
        return lambda answer: pattern.search(answer) is not None
    from pipelines.settings.json_schemas import validator

    checker = validator(json.loads(metric["schema"]))

    def fits(answer: str) -> bool:
        try:
            value = json_value(answer)
        except ValueError:
            return False
        return checker.is_valid(value)

    return fits


def _time_is_up(*_: Any) -> None:
    raise TooLongError


def main() -> None:
    from pipelines.runs.process import die_with_parent

    die_with_parent()
    signal.signal(signal.SIGPROF, _time_is_up)
    job = json.load(sys.stdin)
    json.dump(verdicts(job["metrics"], job["answers"], seconds=job["seconds"]), sys.stdout)


if __name__ == "__main__":
    main()
