"""The head of the report: its time of publication and its sources."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.stamp import moment, stamp

WHEN = datetime(2026, 3, 28, 23, 30, tzinfo=UTC)


def row(**known: Any) -> dict[str, Any]:
    return {**COMPARISON.empty(), "status": "ok", **known}


@pytest.fixture
def in_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("UTC", "2026-03-28 23:30 UTC"),
        ("Asia/Seoul", "2026-03-28 23:30 UTC (2026-03-29 08:30 KST)"),
        ("America/New_York", "2026-03-28 23:30 UTC (2026-03-28 19:30 EDT)"),
    ],
)
@pytest.mark.usefixtures("in_zone")
def test_a_moment_is_told_in_utc_and_in_local_time(zone: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TZ", zone)
    time.tzset()
    assert moment(WHEN) == expected


def test_it_names_what_the_rows_were_made_from() -> None:
    rows = [
        row(device="A", train_records=1606, data_fingerprint="0123456789abcdef", code_version="c1", is_stale=True),
        row(device="B", train_records=1606, data_fingerprint="fedcba9876543210", code_version="c1"),
        row(status="missing"),
    ]
    head = stamp(rows, "local", WHEN)
    assert head["device"] == "A, B" and head["training records"] == "1,606" and head["code version"] == "c1"
    assert head["data fingerprint"] == "0123456789ab, fedcba987654"
    assert head["cells"] == "3, 2 ok, 1 stale" and head["profile"] == "local"


def test_a_teacher_is_no_cell() -> None:
    rows = [row(method="lora-r8", device="A"), row(method="teacher+bm25", device="an-api-model"), row(method="teacher")]
    head = stamp(rows, "local", WHEN)
    assert head["cells"] == "1, 1 ok" and head["device"] == "A"


def test_what_nobody_measured_is_a_dash_and_many_values_are_counted() -> None:
    assert stamp([], "local", WHEN)["device"] == "–"
    assert stamp([row(device=name) for name in "ABCDE"], "gpu", WHEN)["device"] == "A, B, C and 2 more"
