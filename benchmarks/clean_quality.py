"""Precision and recall of every cleaning rule on records labelled by hand (`benchmarks/labelled/`),
with 95 % intervals (Wilson). Public instruction files beside the checkout are cleaned, too.

- Precision of a rule: the share of its dropped records that have its label.
- Recall of a rule: the share of records with its label that it dropped.

A labelled duplicate counts as found if it was dropped, or if it is the only one of its cluster that
stays.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.clean.clean import clean, examples, rejects
from pipelines.clean.read import file_records, named_files
from pipelines.errors import WorkError
from pipelines.evaluate.statistics import wilson
from pipelines.lake.paths import PROJECT, DataRoot
from pipelines.records.reading import RawRecord
from pipelines.settings.cleaning import Cleaning
from pipelines.settings.sources import FileSource

LABELLED = Path(__file__).parent / "labelled" / "records.jsonl"
PUBLIC = PROJECT.parent / "shared" / "real"
DUPLICATES = frozenset(("exact_duplicate", "near_duplicate", "contamination"))
SCORED = (
    "encoding", "empty", "repetition", "placeholder", "refusal", "prompt_echo", "personal_data", "wrong_language", "not_text",
    "tool_calls", "labelled_undesirable", "duplicate",
)  # fmt: skip
Labelled = dict[str, Any]


@dataclass(frozen=True)
class Judgement:
    """The expected and the actual outcome of one record: `keep`, or a reason. All kinds of
    duplicates count as one reason."""

    record: Labelled
    expected: str
    outcome: str
    detail: str = ""

    @property
    def right(self) -> bool:
        return self.expected == self.outcome


def measure() -> Iterator[dict[str, Any]]:
    rows = labelled()
    for half in dict.fromkeys(row["half"] for row in rows):
        judged = judge([row for row in rows if row["half"] == half])
        for rule in SCORED:
            yield {"benchmark": "clean-quality", "half": half, **scores(judged, rule)}
        yield {"benchmark": "clean-quality", "half": half, **good_dropped(judged)}
    for path in sorted(PUBLIC.glob("*.json*")) if PUBLIC.is_dir() else ():
        yield {"benchmark": "clean-quality, a public file", **_public(path)}


def labelled() -> list[Labelled]:
    # Not splitlines(): a text may hold U+2028 or U+0085
    return [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").split("\n") if line]


def judge(rows: Sequence[Labelled]) -> list[Judgement]:
    """Clean the records together, each set as one source, and compare every outcome with its
    label."""
    sources = [RawRecord(row["id"].rsplit("-", 1)[0], row["record"], call_key=row["id"]) for row in rows]
    with TemporaryDirectory() as folder:
        result = clean(DataRoot(Path(folder)), sources, Cleaning())
        dropped, remaining = rejects(result), examples(result)
    ids = {row["record_id"]: row["call_key"] for row in dropped + remaining}
    clusters = {row["id"]: row.get("of", row["id"]) for row in rows}
    staying = Counter(clusters[row["call_key"]] for row in remaining)
    rejected = {row["call_key"]: row for row in dropped}
    return [_judged(row, rejected.get(row["id"]), ids, clusters, staying) for row in rows]


def _judged(
    row: Labelled, reject: dict[str, Any] | None, ids: dict[str, str], clusters: dict[str, str], staying: Counter[str]
) -> Judgement:
    cluster = clusters[row["id"]]
    outcome = reject["reason"] if reject else "keep"
    expected = "duplicate" if row["label"] in DUPLICATES else row["label"]
    twin = ids.get(reject["twin"], "") if reject and outcome in DUPLICATES else ""
    # Duplicates across two sets are a coincidence that no label can reflect
    if twin and _set_of(twin) != _set_of(row["id"]):
        outcome = expected
    elif outcome in DUPLICATES:
        # Any one of a cluster may stay, so the original may be dropped instead of its duplicate
        same_cluster = clusters.get(twin) == cluster
        outcome = expected if same_cluster and expected == "keep" else "duplicate"
    elif expected == "duplicate" and outcome == "keep" and staying[cluster] == 1:
        outcome = "duplicate"
    return Judgement(row, expected, outcome, (reject or {}).get("detail") or "")


def _set_of(name: str) -> str:
    return name.rsplit("-", 1)[0]


def scores(judged: Sequence[Judgement], rule: str) -> dict[str, Any]:
    """Precision and recall of a rule, each with its interval."""
    positives = [each for each in judged if each.expected == rule]
    dropped = [each for each in judged if each.outcome == rule]
    right = sum(each.right for each in positives)
    return {
        "rule": rule,
        "positives": len(positives),
        "dropped": len(dropped),
        **_share("precision", right, len(dropped)),
        **_share("recall", right, len(positives)),
    }


def good_dropped(judged: Sequence[Judgement]) -> dict[str, Any]:
    """The share of good records that were dropped."""
    good = [each for each in judged if each.expected == "keep"]
    dropped = [each for each in good if not each.right]
    reasons = dict(Counter(each.outcome for each in dropped))
    return {
        "good_records": len(good),
        "dropped": len(dropped),
        "by": reasons,
        **_share("dropped_share", len(dropped), len(good)),
    }


def _share(name: str, part: int, whole: int) -> dict[str, Any]:
    if not whole:
        return {name: None}
    low, high = wilson(part, whole) or (0.0, 1.0)
    return {name: round(part / whole, 4), f"{name}_low": round(low, 4), f"{name}_high": round(high, 4)}


def _public(path: Path) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        try:
            result = clean(DataRoot(Path(folder)), file_records(named_files([FileSource(path=str(path))])), Cleaning())
        except WorkError as error:
            return {"file": path.name, "nothing_left": str(error).splitlines()[1:3]}
    return {"file": path.name, "read": result.read, "accepted": result.accepted, "reasons": result.reasons}


def by_rule(judged: Sequence[Judgement]) -> dict[str, list[Judgement]]:
    """The wrongly judged records, by the rule that was wrong."""
    wrong: dict[str, list[Judgement]] = defaultdict(list)
    for each in judged:
        if not each.right:
            wrong[each.outcome if each.expected == "keep" else each.expected].append(each)
    return wrong
