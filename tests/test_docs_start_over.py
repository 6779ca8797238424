"""The commands for starting over in docs/operating.md, run verbatim."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.lake.paths import PROJECT
from tests.asking import Asking, asking, ready
from tests.fakes.behavior import Behavior
from tests.fakes.provider import fake_provider

PAGE = (PROJECT / "docs" / "operating.md").read_text(encoding="utf-8")
KEPT = {"journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm", "preferences.jsonl"}


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asking]:
    with fake_provider(Behavior()) as server:
        ready(server, monkeypatch, Behavior())
        yield asking(tmp_path / "data", server)


def commands() -> str:
    section = PAGE.split("## Starting over\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return block


def test_starting_over_keeps_what_was_paid_for_and_removes_the_rest(ask: Asking) -> None:
    ask.generate()
    paid = ask.charged()
    assert paid > 0
    data = ask.data
    data.preferences.write_text("{}\n", encoding="utf-8")
    for path in (data.cells / "tiny/full/1/a/result.json", data.lake / ".hidden", data.root / "warehouse.123.duckdb",
                 data.report, data.root / "dagster/dagster.yaml", data.models / "tiny/config.json"):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}", encoding="utf-8")
    subprocess.run(["bash", "-euc", commands()], cwd=data.root.parent, check=True)
    assert {path.name for path in data.lake.iterdir()} <= KEPT
    assert data.preferences.exists() and (data.models / "tiny/config.json").exists()
    assert {path.name for path in data.root.iterdir()} == {"lake", "models", "experiments.yaml", "topics.yaml"}
    requests_before = ask.account("anthropic").requests
    again = ask.generate()
    assert again.reused == again.wanted == 12 and ask.account("anthropic").requests == requests_before
    assert ask.charged() == paid


def test_a_page_that_names_the_lake_as_what_to_remove_names_the_journal() -> None:
    for page in (PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")):
        for paragraph in re.split(r"\n\n|\n- ", page.read_text(encoding="utf-8")):
            if re.search(r"[Rr]emove[^.]*`data/lake`|\brm [^\n]*data/lake\b(?!/)", paragraph):
                assert "journal.sqlite" in paragraph, page.name
