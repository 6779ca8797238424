"""The expectations of each check against its observations.

A check's process prints a line of JSON for each measurement, and one `finding` for each
expectation: its short name, the observation in words, and whether it is as expected (null: this
device cannot tell).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.card.checks import Check

Line = dict[str, Any]
Verdict = Literal["as expected", "otherwise", "not run", "failed"]
WORDS: dict[bool | None, Verdict] = {True: "as expected", False: "otherwise", None: "not run"}


def finding(name: str, seen: str, agrees: bool | None) -> Line:
    """A check's report on the expectation `name`."""
    return {"finding": name, "seen": seen, "agrees": agrees}


def parse(text: str) -> Line | None:
    """A line that a check printed; None for other output, and for a line that a kill cut off."""
    if not (text.startswith("{") and text.endswith("\n")):
        return None
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


@dataclass(frozen=True)
class CheckResult:
    """The result of a check: its findings by name, `error` where its process did not end well, or
    `why` where it never began."""

    check: Check
    findings: Mapping[str, Line] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None
    why: str | None = None

    @property
    def verdict(self) -> Verdict:
        """An error counts most, then any unmet expectation. "not run" remains where this device
        could judge no expectation."""
        if self.error is not None:
            return "failed"
        verdicts = [self._word(name) for name in self.check.expects]
        if "otherwise" in verdicts:
            return "otherwise"
        return "as expected" if "as expected" in verdicts else "not run"

    def _word(self, name: str) -> Verdict:
        return WORDS[self.findings[name]["agrees"]] if name in self.findings else "not run"

    def summary(self) -> Line:
        """The check's part of the summary."""
        expectations = [
            {"expected": words, "seen": self.findings.get(name, {}).get("seen"), "verdict": self._word(name)}
            for name, words in self.check.expects.items()
        ]
        reasons = {"error": self.error, "why": self.why}
        return {
            "check": self.check.name,
            "verdict": self.verdict,
            **{name: text for name, text in reasons.items() if text is not None},
            "seconds": round(self.seconds, 1),
            "expectations": expectations,
        }


def summary(results: Sequence[CheckResult], *, seconds: float) -> Line:
    """The last line of a run."""
    counts = {
        word: sum(one.verdict == word for one in results) for word in ("as expected", "otherwise", "not run", "failed")
    }
    return {"summary": [one.summary() for one in results], "verdicts": counts, "seconds": round(seconds, 1)}
