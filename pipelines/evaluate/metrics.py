"""Task metrics: whether an answer equals or contains the reference, or has a machine-readable form.

They need only the stored answers, so a new metric does not run a model again. Every answer is
normalized to Unicode NFC first, since a model may write Hangul as separate letters.

| metric | an answer passes where |
| --- | --- |
| exact_match | it equals the reference, ignoring case and spaces; punctuation counts |
| contains | it contains the reference, ignoring case and spaces; punctuation counts |
| json_valid | all of it is one JSON value, or one fenced block that holds one (guarded.py) |
| json_schema | it is such a value and fits the schema |
| regex | the pattern is found anywhere in it (`re.search`); nothing is normalized but NFC |
"""

import json
import subprocess
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from pipelines.evaluate.guarded import json_value
from pipelines.evaluate.statistics import wilson
from pipelines.lake.paths import PROJECT
from pipelines.records.foreign_text import one_line
from pipelines.runs.process import child_environment
from pipelines.settings.column_names import column_name
from pipelines.settings.metrics import Metric

Row = Mapping[str, Any]
Verdicts = dict[str, bool | None]
GUARDED = "pipelines.evaluate.guarded"
# CPU time for one answer and one pattern or schema.
SECONDS = 1.0
# Wall-clock time for all answers together.
MAX_SECONDS = 1800.0


def normal(text: str) -> str:
    """The text for exact_match and contains: NFC, case folded, white space collapsed and
    stripped."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split())


def exact_match(answer: str, reference: str) -> bool | None:
    """None without a reference."""
    expected = normal(reference)
    return normal(answer) == expected if expected else None


def contains(answer: str, reference: str) -> bool | None:
    """None without a reference."""
    expected = normal(reference)
    return expected in normal(answer) if expected else None


def json_valid(answer: str, _reference: str) -> bool:
    try:
        json_value(answer)
    except ValueError:
        return False
    return True


PLAIN = {"exact_match": exact_match, "contains": contains, "json_valid": json_valid}


class Scores:
    """Verdicts of the metrics on answers. The guarded process checks each distinct answer once."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics
        self._guarded = [metric for metric in metrics if metric.kind not in PLAIN]
        # Verdicts of the guarded metrics by answer.
        self._known: dict[str, Verdicts] = {}
        # The last error line of the guarded process.
        self._failure = ""

    def of(self, rows: Sequence[Row]) -> list[Verdicts]:
        """The metrics' columns of each row: whether its answer passes, None if undecided."""
        answers = [unicodedata.normalize("NFC", _text(row, "answer")) for row in rows]
        self._ask(answers)
        return [
            {column_name("metric", one.column): self._verdict(one, row, answer) for one in self._metrics}
            for row, answer in zip(rows, answers, strict=True)
        ]

    def added_to(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """The rows with the metrics' columns."""
        return [{**row, **verdicts} for row, verdicts in zip(rows, self.of(rows), strict=True)]

    def cell_columns(self, seeds: Sequence[Sequence[Row]]) -> dict[str, Any]:
        """A cell's columns from the answers of each seed: shares with 95 % intervals.

        The sample size is that of one seed. A share is empty if any answer is undecided;
        `metrics_because` gives the reason.
        """
        scored = [verdicts for answers in seeds for verdicts in self.of(answers)]
        columns: dict[str, Any] = {}
        lacking = []
        for metric in self._metrics if scored else ():
            column = column_name("metric", metric.column)
            passes = [one[column] for one in scored]
            if missing := passes.count(None):
                lacking.append(f"{metric.column}: {missing} of {len(passes)} answers {self._why(metric)}")
            else:
                columns |= _share(column, [bool(one) for one in passes], max(1, round(len(passes) / len(seeds))))
        return {**columns, **({"metrics_because": "; ".join(lacking)} if lacking else {})}

    def _verdict(self, metric: Metric, row: Row, answer: str) -> bool | None:
        if check := PLAIN.get(metric.kind):
            return check(answer, _text(row, "reference"))
        return self._known[answer][metric.column]

    def _ask(self, answers: Iterable[str]) -> None:
        """Send the answers without a verdict to the guarded process."""
        new = [answer for answer in dict.fromkeys(answers) if answer not in self._known]
        if not self._guarded or not new:
            return
        try:
            verdicts = _guarded_verdicts(self._guarded, new)
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            self._failure = _last_line(error)
            verdicts = {metric.column: [None] * len(new) for metric in self._guarded}
        for place, answer in enumerate(new):
            self._known[answer] = {metric.column: verdicts[metric.column][place] for metric in self._guarded}

    def _why(self, metric: Metric) -> str:
        if metric.kind in PLAIN:
            return "have no reference to be compared with; take these records out, or the metric"
        if self._failure:
            return f"could not be told, since the process that checks them failed ({self._failure}); compare again"
        part = "pattern" if metric.kind == "regex" else "schema"
        return (
            f"could not be told within {SECONDS:g} s of the processor; make the {part} simpler, or take the metric out"
        )


def _text(row: Row, name: str) -> str:
    """The field's text; empty if a damaged file holds no text there."""
    return text if isinstance(text := row.get(name), str) else ""


def _guarded_verdicts(metrics: Sequence[Metric], answers: Sequence[str]) -> dict[str, list[bool | None]]:
    """Verdicts by metric name, from a process that can time out on a runaway pattern."""
    specs = [
        {"name": one.column, **({"regex": one.regex} if one.regex is not None else {"schema": one.schema_text})}
        for one in metrics
    ]
    done = subprocess.run(
        [sys.executable, "-m", GUARDED],
        input=json.dumps({"metrics": specs, "answers": list(answers), "seconds": SECONDS}),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=child_environment(),
        cwd=PROJECT,
        timeout=MAX_SECONDS,
        check=True,
    )
    return json.loads(done.stdout)


def _last_line(error: Exception) -> str:
    """The last line on the process's standard error, else the error itself."""
    complaints = getattr(error, "stderr", None)
    lines = complaints.strip().splitlines() if isinstance(complaints, str) else []
    return one_line(lines[-1] if lines else str(error), 200)


def _share(column: str, hits: Sequence[bool], sample: int) -> dict[str, Any]:
    """Share and interval. Seeds answer the same prompts, so more seeds do not enlarge the
    sample."""
    share = fmean(hits)
    low, high = wilson(round(share * sample), sample) or (None, None)
    return {column: share, f"{column}_low": low, f"{column}_high": high}
