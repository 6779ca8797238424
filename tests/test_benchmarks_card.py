"""The program for a card (benchmarks/card).

A check that hangs or dies is reported and costs only itself, verdicts name the measured values, and
a dry run of the whole program succeeds.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from benchmarks.card import command, grid, runner, verdicts
from benchmarks.card.bench import DRY
from benchmarks.card.checks import CHECKS, Check, named
from benchmarks.card.verdicts import CheckResult, finding
from pipelines.lake.files import read_jsonl
from tests.test_project_faults import until

EXPECTS = {"met": "that it is met", "unjudged": "what a card alone says"}


def fake(name: str, *, seconds: float = 3600.0) -> Check:
    return Check(name, f"tests.fakes.checks:{name}", seconds, "a fake", EXPECTS)


def reported(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def run_all(tmp_path: Path, *checks: Check, seconds: float = 7200, report: command.Report | None = None) -> int:
    report = report or command.Report("A card", None)
    return command.run(checks, report, tmp_path, tmp_path, ends=time.monotonic() + seconds, dry=False)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"a": 1}\n', {"a": 1}),
        # A kill cut the line off; even a line that reads well may lack a digit.
        ('{"a": 1}', None),
        ('{"a": 1\n', None),
        ("[1]\n", None),
        ("Loading weights: 100%\n", None),
    ],
)
def test_a_line_is_read_whole_or_not_at_all(text: str, line: Any) -> None:
    assert verdicts.parse(text) == line


@pytest.mark.parametrize(
    ("agrees", "error", "verdict"),
    [
        ({"met": True, "unjudged": None}, None, "as expected"),
        ({"met": True, "unjudged": False}, None, "otherwise"),
        ({"unjudged": None}, None, "not run"),
        ({}, None, "not run"),
        ({"met": True, "unjudged": True}, "killed at its limit of 60 s", "failed"),
    ],
)
def test_a_check_s_verdict(agrees: dict[str, bool | None], error: str | None, verdict: str) -> None:
    seen = CheckResult(fake("good"), {name: finding(name, "so", one) for name, one in agrees.items()}, error=error)
    summary = seen.summary()
    assert (seen.verdict, summary["verdict"]) == (verdict, verdict)
    assert [one["expected"] for one in summary["expectations"]] == list(EXPECTS.values())
    words = {True: "as expected", False: "otherwise", None: "not run"}
    assert [one["verdict"] for one in summary["expectations"]] == [words[agrees.get(name)] for name in EXPECTS]
    assert [one["seen"] for one in summary["expectations"]] == ["so" if name in agrees else None for name in EXPECTS]


def test_every_line_bears_the_device_and_the_last_one_sums_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_all(tmp_path, fake("good"), fake("otherwise")) == 0
    lines = reported(capsys)
    assert {(line["benchmark"], line["device"]) for line in lines} == {("card", "A card")}
    assert lines[0] == {
        "benchmark": "card",
        "check": "good",
        "device": "A card",
        "figure": 1.5,
        "dry": False,
        "loss": "nan",
    }
    assert [one["verdict"] for one in lines[-1]["summary"]] == ["as expected", "otherwise"]
    assert lines[-1]["verdicts"] == {"as expected": 1, "otherwise": 1, "not run": 0, "failed": 0}


def test_a_check_that_hangs_is_killed_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Seconds by which the runner's clock is ahead: the limit is over as soon as the check hangs.
    ahead = [0.0]
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead[0]))

    class Report(command.Report):
        def line(self, line: dict[str, Any], *, check: str | None = None) -> None:
            super().line(line, check=check)
            ahead[0] += 3600.0 if check == "hangs" and "finding" in line else 0.0

    assert run_all(tmp_path, fake("hangs", seconds=3600), fake("good"), report=Report("A card", None)) == 3
    hung, good = reported(capsys)[-1]["summary"]
    assert (hung["verdict"], hung["error"]) == ("failed", "killed at its limit of 3600 s")
    assert hung["expectations"][0] == {"expected": EXPECTS["met"], "seen": "before it hung", "verdict": "as expected"}
    until(lambda: is_gone(int((tmp_path / "pid").read_text())), "the process that was left")
    assert good["verdict"] == "as expected"


@pytest.mark.parametrize(
    ("name", "words"),
    [("dies", "ended by signal 9"), ("raises", "exit code 1: ")],
)
def test_a_check_that_dies_is_reported(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_all(tmp_path, fake(name)) == 3
    (summary,) = reported(capsys)[-1]["summary"]
    assert summary["verdict"] == "failed" and summary["error"].startswith(words)
    assert name == "dies" or summary["error"].endswith("CUDA error: an illegal memory access was encountered")


def test_a_process_that_a_check_leaves_behind_delays_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_all(tmp_path, fake("leaves_one_behind")) == 0
    (summary,) = reported(capsys)[-1]["summary"]
    assert summary["verdict"] == "as expected"
    until(lambda: is_gone(int((tmp_path / "pid").read_text())), "the process that was left")


def test_what_no_longer_fits_is_not_begun_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_all(tmp_path, fake("good", seconds=10_000), fake("otherwise", seconds=600), seconds=1200) == 0
    lines = reported(capsys)
    assert lines[0]["verdict"] == "not run" and "limit of 10000" in lines[0]["why"]
    assert [one["verdict"] for one in lines[-1]["summary"]] == ["not run", "otherwise"]


def test_an_interrupted_run_still_sums_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = runner.run

    def interrupted(check: Check, *args: Any, **options: Any) -> Any:
        if check.name == "otherwise":
            raise KeyboardInterrupt
        return plain(check, *args, **options)

    monkeypatch.setattr(runner, "run", interrupted)
    assert run_all(tmp_path, fake("good"), fake("otherwise"), fake("dies")) == command.INTERRUPTED
    summary = reported(capsys)[-1]["summary"]
    assert [(one["verdict"], one.get("why")) for one in summary] == [
        ("as expected", None), ("not run", "interrupted"), ("not run", "interrupted"),
    ]  # fmt: skip


def test_without_a_card_it_says_so_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "LOOK", replace(command.LOOK, runs="tests.fakes.checks:no_card"))
    assert command.main([]) == 3
    (line,) = reported(capsys)
    assert line["device"] is None and "--dry" in line["detail"] and line["listed"] == "Tesla T4"


def test_with_a_card_lines_are_kept_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "LOOK", replace(command.LOOK, runs="tests.fakes.checks:a_card"))
    monkeypatch.setattr(command, "named", lambda _names: [fake("good")])
    assert command.main(["--seconds", "7200", "--out", str(tmp_path / "kept")]) == 0
    lines = reported(capsys)
    assert lines == read_jsonl(tmp_path / "kept" / "results.jsonl") and lines[0]["device"] == "A card"
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"results.jsonl", "device.log", "good.log"}


def test_names_are_checked_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--only", "heads"]) == 2
    assert command.main(["--only", "rest,head", "--list"]) == 0
    listed = reported(capsys)
    assert [one["check"] for one in listed] == ["head", "rest"] == [check.name for check in named("rest,head")]
    assert listed[0]["expects"] == list(named("head")[0].expects.values())
    assert grid.names("lora-r8,gpt2-large") == [("gpt2-large", "lora-r8")]
    assert grid.names("gemma-2b-it/full,gpt2-large/full") == [("gpt2-large", "full"), ("gemma-2b-it", "full")]
    assert command.main(["--grid", "--only", "base"]) == 2


def test_the_checks_fit_into_the_run() -> None:
    """Only the last check may be cut short."""
    seconds = [check.seconds for check in CHECKS]
    assert sum(seconds[:-1]) + command.AT_LEAST * seconds[-1] + command.LAST <= command.SECONDS


def test_a_dry_run_in_processes_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dry", "--only", "head", "--seconds", "1800", "--out", str(tmp_path)]
    assert command.main(arguments) == 0, (tmp_path / "head.log").read_text()
    lines = reported(capsys)
    assert {line["device"] for line in lines} == {DRY}
    (summary,) = lines[-1]["summary"]
    verdict = {one["expected"]: one["verdict"] for one in summary["expectations"]}
    assert list(verdict.values()) == ["as expected", "not run", "not run"]


@pytest.mark.slow
def test_a_dry_run_of_all_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--dry", "--seconds", "1800", "--out", str(tmp_path)])
    summary = reported(capsys)[-1]["summary"]
    assert [one["check"] for one in summary] == [check.name for check in CHECKS]
    assert [one.get("error") for one in summary] == [None] * len(CHECKS)


@pytest.mark.slow
def test_a_dry_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = "gpt2-large/lora-r8,opt-1.3b/full,gemma-2b-it/qlora-r8"
    assert command.main(["--grid", "--dry", "--only", cells, "--out", str(tmp_path)]) == 0
    lines = reported(capsys)
    rows = [line for line in lines if "method" in line and "by" not in line]
    assert [f"{row['model']}/{row['method']}" for row in rows] == cells.split(",")
    assert [row["status"] for row in rows] == ["ok"] * 3, [row["detail"] for row in rows]
    assert all(row["predicted_gb"] and row["tflops"] and row["mfu"] is None for row in rows)
