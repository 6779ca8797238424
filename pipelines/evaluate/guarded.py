"""A separate process that applies a user's patterns and schemas to a model's answers.

`python -m pipelines.evaluate.guarded` reads a job from standard input and writes its verdicts.
Some patterns and schemas never finish on some texts, so each check has a limit of CPU time.
A signal enforces the limit; signals work only in the main thread of a process.
"""

import json
import re
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# After this many timeouts of one metric, its remaining answers are not tried.
MAX_TIMEOUTS = 3
# Longer integers are read as floats, since Python refuses to parse several thousand digits.
MAX_DIGITS = 1000
Check = Callable[[str], bool]


class TooLongError(BaseException):
    """The time limit was reached. A BaseException, so that no library catches it."""


def json_value(answer: str) -> Any:
    """Parse the whole answer as one JSON value, without surrounding white space.

    If the answer is one fenced block (```json … ```), the content of the block is parsed.

    Raises:
        ValueError: not JSON (RFC 8259), which excludes NaN and Infinity.
    """
    text = answer.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text.partition("\n")[2].removesuffix("```")
    try:
        return json.loads(text, parse_constant=_refuse, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


def verdicts(
    metrics: Sequence[Mapping[str, str]], answers: Sequence[str], *, seconds: float
) -> dict[str, list[bool | None]]:
    """Whether each answer passes, by metric name; None if undecided within `seconds` of CPU
    time."""
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
            # The signal may have fired before `_limited` could stop the timer.
            signal.setitimer(signal.ITIMER_PROF, 0)
            stopped += 1
            passes.append(None)
        except Exception:
            # An odd value in an odd schema: the verdict is unknown, not negative.
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
