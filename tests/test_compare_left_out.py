"""Records that do not fit are counted everywhere; too many rule out a pick, and nearly all fail the
cell."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.compare.decide import Limits, decide
from pipelines.compare.ranking import make_picks
from pipelines.compare.show import render
from pipelines.compare.table import comparison, comparison_rows
from pipelines.evaluate.fitting import fitting_everywhere
from pipelines.lake.files import write_json
from pipelines.runs.worker import Worker
from pipelines.train.trainer import tokenizing
from pipelines.train.trainer.prompts import PromptFormat
from tests.fakes import planted
from tests.fakes.planted import Lake
from tests.in_process import clean_for, trained
from tests.project import TinyProject
from tests.tiny import save_tiny

ASKED = {"prompt": "chat", "template": {}}


@pytest.fixture
def cleaned(project: TinyProject) -> TinyProject:
    project.change(profiles={"local": {"max_train_examples": 20, "max_eval_examples": 12, "training": {"epochs": 0.4}}})
    return clean_for(project)


def lengths(folder: Path, records: Any) -> list[int]:
    """The number of tokens of each record, shortest first."""
    return sorted(tokenizing.tokenize(PromptFormat.of(folder, ASKED), records, sys.maxsize).lengths)


def at_most(project: TinyProject, max_length: int) -> None:
    project.change(profiles={"local": {"training": {"max_length": max_length}}})


def test_a_cell_that_would_learn_from_one_record_of_twenty_fails_and_says_what_would_hold_them(
    cleaned: TinyProject, tiny_folder: Path
) -> None:
    records = cleaned.resolved().plan(cleaned.key("full")).selected.train
    token_counts = lengths(tiny_folder, records)
    at_most(cleaned, token_counts[0])
    attempt = trained(cleaned, "full")
    left = sum(length > token_counts[0] for length in token_counts)
    assert attempt.status == "failed" and left > 18
    message = (
        f"{left} of 20 training records are left out ({left} longer than max_length {token_counts[0]}), "
        "more than 90%: raise max_length"
    )
    assert f"{message} to {token_counts[18]}, which would hold 95% of them" in attempt.result.detail


def test_a_cell_that_left_out_some_says_how_many_of_how_many(
    cleaned: TinyProject, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = cleaned.resolved().plan(cleaned.key("full")).selected.train
    token_counts = lengths(tiny_folder, records)
    at_most(cleaned, token_counts[11])
    attempt = trained(cleaned, "full")
    assert attempt.status == "ok", attempt.result.detail
    left = sum(length > token_counts[11] for length in token_counts)
    measured = attempt.result.measured
    assert (measured["train_records"], measured["train_records_left_out"], measured["train_examples"]) == (
        20,
        left,
        20 - left,
    )
    because = f"({left} longer than max_length {token_counts[11]})"
    assert (
        f"WARNING: {left} of 20 training records are left out {because}; max_length {token_counts[18]}"
        in capsys.readouterr().out
    )
    (row,) = (row for row in comparison_rows(cleaned.resolved()) if row["method"] == "full")
    assert f"{left} of 20 training records were left out {because}" in row["advice"]
    assert f"{left} of 20 training records were left out" in render([row], "text")


# effects on such rows


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """LoRA is best and cheapest, but learned from only half of the records."""
    made = planted.lake(tmp_path)
    made.cell("base", bits=1.0)
    made.cell("full", bits=0.85, peak_memory_gb=4.0, train_records=40, train_records_left_out=2)
    made.cell("lora-r8", bits=0.80, peak_memory_gb=1.0, train_records=40, train_records_left_out=20)
    return made


def test_no_pick_is_a_cell_that_left_out_too_many_records(lake: Lake) -> None:
    result = comparison(lake.resolved())
    decision = decide(result, Limits())
    assert (decision.verdict, decision.method) == ("use", "full")
    assert any(reason.startswith("2 of 40 training records were left out") for reason in decision.reasons)
    assert decision.reasons[-1] == (
        "not used: tiny × lora-r8, with more than 20% of its records left out: 20 of 40 training records were left out "
        "(20 longer than max_length 1024)"
    )
    best = make_picks(result.rows, result.qualities)[0]
    assert (best["method"], best["left_out"]) == ("full", "1 with more than 20% of its records left out, 1 missing")
    assert "2 of 40 training records were left out" in best["reason"]


def test_where_all_left_out_too_many_nothing_is_used_and_that_is_said(tmp_path: Path) -> None:
    made = planted.lake(tmp_path)
    made.cell("base", bits=1.0)
    # As older code measured it.
    made.cell("full", bits=0.9, truncated_share=0.5)
    made.evaluated(made.trained("lora-r8"), eval_records=30, eval_records_left_out=10, losses=planted.losses(0.8))
    made.cell("qlora-r8", bits=0.9, train_records=10, train_records_left_out=3, unshown_share=0.3)
    result = comparison(made.resolved())
    decision = decide(result, Limits())
    assert decision.verdict == "nothing fits"
    reasons = "\n".join(decision.reasons)
    assert "50% of the training records were left out" in reasons
    assert "10 of 40 evaluation records were left out" in reasons
    assert "3 of 10 training records were left out (3 that the chat template cannot show)" in reasons
    assert {pick["verdict"] for pick in make_picks(result.rows, result.qualities)} == {"nothing to pick"}


# evaluation


def test_a_model_that_reads_next_to_no_evaluation_record_costs_the_others_none(
    cleaned: TinyProject, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny(tmp_path / "other")
    records = cleaned.resolved().selected.eval
    token_counts = lengths(tiny_folder, records)

    def fitting_records(*, own: Path, most: int) -> int:
        readers = [("tiny", tiny_folder, 10_000), ("other", other, most)]
        tokenizers = [
            {"model": name, "folder": str(folder), "max_length": size, **ASKED} for name, folder, size in readers
        ]
        spec = {
            "root": str(tmp_path),
            "weights": str(own),
            "tokenizers_to_fit": tokenizers,
            "recipe": {"kind": "none", **ASKED},
        }
        write_json(tmp_path / "spec.json", spec)
        return len(fitting_everywhere(Worker(tmp_path), records))

    few = sum(length <= token_counts[0] for length in token_counts)
    # All records except those longer than the model's window.
    every = fitting_records(own=tiny_folder, most=10_000)
    assert few == 1 and every > 6 and fitting_records(own=tiny_folder, most=token_counts[0]) == every
    assert "other: can read 1 of 12 evaluation records; measured without it" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=f"other can read 1 of 12 evaluation records, with max_length {token_counts[0]}; more than 90%"
    ):
        fitting_records(own=other, most=token_counts[0])
    half = sum(length <= token_counts[5] for length in token_counts)
    assert fitting_records(own=other, most=token_counts[5]) == half
    assert f"WARNING: {12 - half} of 12 evaluation records are left out" in capsys.readouterr().out


def test_the_length_that_holds_most_is_one_of_the_records_own() -> None:
    made = tokenizing.TokenizedRecords([], 40, 39, [], 160, list(range(1, 41)))
    assert made.length_to_hold_most == math.ceil(0.95 * 40)
