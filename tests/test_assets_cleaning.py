"""The cleaning page of a run: rejected records and reasons at a glance, and checks that stop
harmful training data."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest

from assets import cleaning as checks
from assets.cleaning import sft_examples
from assets.generating import corpus_records, generated_records, local_records
from pipelines.clean.clean import current
from pipelines.cli import main
from pipelines.lake.files import write_json
from tests.project import TinyProject
from tests.sft_records import GOOD, story

ALL_CHECKS = [
    checks.every_record_is_accounted_for, checks.train_and_eval_do_not_overlap, checks.enough_examples,
    checks.reject_share_per_source, checks.language_mix,
]  # fmt: skip
HOSTILE = "<img src=x onerror=alert(1)> | ![x](http://evil) \x1b[31m"


@pytest.fixture
def instance(project: TinyProject) -> Iterator[dg.DagsterInstance]:
    home = project.data.root / "dagster"
    home.mkdir(parents=True)
    with dg.DagsterInstance.local_temp(str(home)) as made:
        yield made


def materialized(instance: dg.DagsterInstance) -> tuple[dict[str, Any], dict[str, dg.AssetCheckEvaluation]]:
    """The page's metadata, and the checks by name."""
    assets: list[Any] = [corpus_records, local_records, generated_records, sft_examples, *ALL_CHECKS]
    result = dg.materialize(assets, selection=[sft_examples], instance=instance, raise_on_error=False)
    (event,) = result.asset_materializations_for_node("sft_examples")
    shown = {name: value.value for name, value in event.metadata.items()}
    return shown, {check.check_name: check for check in result.get_asset_check_evaluations()}


def own_data(project: TinyProject, folder: Path, values: list[Any], **cleaning: Any) -> None:
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, values)), encoding="utf-8")
    project.change(sources={"files": [str(folder / "mine.jsonl")]}, cleaning=cleaning)


def mixed(count: int) -> list[dict[str, Any]]:
    return [story(i, korean=i % 2 == 1) for i in range(count)]


def test_the_page_says_what_was_dropped_and_why(
    project: TinyProject, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    bad = [{**GOOD, "output": f"{number} {HOSTILE}"[:18]} for number in range(12)] + [{"a": HOSTILE}] * 3
    own_data(project, tmp_path, mixed(60) + bad, min_output_chars=20)
    page, _ = materialized(instance)
    assert page["what was dropped"] == "15 of 75: 12 too_short, 3 schema"
    assert list(page)[:2] == ["what was dropped", "why"], "first of all"
    assert page["why"].splitlines()[2:] == [
        f"| too\\_short | 12 | 16.0% | {'█' * 10} |",
        f"| schema | 3 | 4.0% | {'█' * 3} |",
    ]
    for picture in ("records dropped, by reason", "how long the examples are"):
        assert "data:image/png;base64," in page[picture]
    rejects = page["sample rejects"].splitlines()[2:]
    assert len(rejects) == 10 and sum("schema" in row for row in rejects) == 3
    assert not re.search(r"(?<!\\)<img|!\[x", page["sample rejects"]) and "\x1b" not in page["sample rejects"]
    assert page["read"] == page["accepted"] + page["rejected"] == 75
    assert "mine.jsonl | – | too\\_short | 12 | 0.16" in page["by source"]
    assert "| eval | en |" in page["languages"]


def test_the_page_says_what_is_not_used_and_what_to_look_at(
    project: TinyProject, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    own_data(project, tmp_path, [{**value, "stars": 5} for value in mixed(8)] + [{"a": HOSTILE}] * 100)
    page, _ = materialized(instance)
    assert "| mine.jsonl | field stars | 8 |" in page["not used or changed"]
    lines = page["warnings"].splitlines()
    assert lines[0] == "| to look at |" and "8 of 108 accepted" in lines[2] and "100 × schema" in lines[3]
    assert not re.search(r"(?<!\\)<img|!\[x", page["warnings"]) and "\x1b" not in page["warnings"]


def test_every_check_passes_on_the_corpus(project: TinyProject, instance: dg.DagsterInstance) -> None:
    _, checks = materialized(instance)
    assert {name: check.passed for name, check in checks.items()} == dict.fromkeys(
        ["every_record_is_accounted_for", "train_and_eval_do_not_overlap", "enough_examples", "reject_share_per_source",
         "language_mix"], True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("check", "blocks", "values", "settings"),
    [
        ("enough_examples", True, mixed(60), {"min_eval_examples": 30}),
        ("enough_examples", True, mixed(60), {"min_train_examples": 61}),
        ("reject_share_per_source", False, mixed(60) + [{"a": i} for i in range(61)], {}),
        ("reject_share_per_source", False, mixed(60), {"reject_share": [0.1, 0.9]}),
        ("language_mix", False, [story(i) for i in range(60)], {}),
    ],
)  # fmt: skip
def test_a_check_fails_outside_of_its_range(
    project: TinyProject,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    check: str,
    blocks: bool,
    values: Any,
    settings: Any,
) -> None:
    own_data(project, tmp_path, values, **settings)
    _, checks = materialized(instance)
    assert [name for name, evaluation in checks.items() if not evaluation.passed] == [check]
    assert (checks[check].severity == dg.AssetCheckSeverity.ERROR) == checks[check].blocking == blocks


def test_checks_see_what_lies_in_the_lake(project: TinyProject, instance: dg.DagsterInstance) -> None:
    materialized(instance)
    result = current(project.data)
    assert result is not None
    examples = result.folder / "examples.parquet"
    # Remove one example, and put one question on both sides.
    with duckdb.connect() as db:
        db.execute(f"CREATE TABLE e AS FROM '{examples}' LIMIT (SELECT count(*) - 1 FROM '{examples}')")
        db.execute("UPDATE e SET instruction = 'the same', input = '', messages = NULL")
        db.execute(f"COPY e TO '{examples}' (FORMAT parquet)")
    results: list[Any] = [checks.every_record_is_accounted_for(), checks.train_and_eval_do_not_overlap()]
    assert [check.passed for check in results] == [False, False]


def test_the_warehouse_holds_the_summary_and_the_twins(project: TinyProject) -> None:
    write_json(project.data.root / "corpus.json", [*mixed(40), {**story(0), "output": story(0)["output"] + "!"}])
    assert main(["clean"]) == 0 and main(["compare"]) == 0
    with duckdb.connect(str(project.data.warehouse), read_only=True) as db:
        assert db.execute("FROM cleaning_summary ORDER BY records").fetchall() == [
            ("corpus", None, "near_duplicate", 1, 1 / 41),
            ("corpus", None, "accepted", 40, 40 / 41),
        ]
        (row,) = db.execute("""
            SELECT reason, similarity > 0.85, twin IN (SELECT record_id FROM sft_examples), call_key FROM sft_rejects
        """).fetchall()
        assert row == ("near_duplicate", True, True, None)
    page = project.data.report.read_text(encoding="utf-8")
    assert "What was dropped in cleaning" in page and re.search(r"near_duplicate</t[hd]>\s*<td[^>]*>\s*1\s*</td>", page)
