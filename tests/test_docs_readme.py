"""README stays true, short, and the same in both languages: its table was measured, and it explains
every status."""

import re

from pipelines.lake.paths import PROJECT
from pipelines.runs.status import Status
from pipelines.settings import experiments as configuration
from tests.fakes.planted import row
from tests.screenshots import with_table

README = (PROJECT / "README.md").read_text(encoding="utf-8")
KOREAN = (PROJECT / "README.ko.md").read_text(encoding="utf-8")


def test_every_status_is_explained() -> None:
    status = (PROJECT / "docs" / "table.md").read_text(encoding="utf-8").split("\n## Status\n")[1].split("\n## ")[0]
    explained = [
        name for row in re.findall(r"^\| (`.*?) \|", status, re.MULTILINE) for name in re.findall("`(.*?)`", row)
    ]
    assert sorted(explained) == sorted(Status.__args__)


def test_it_is_short() -> None:
    for page in (README, KOREAN):
        assert len(page.splitlines()) <= 150
    prose = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    assert not [line for line in prose.splitlines() if len(line) > 100 and not line.startswith(("|", "!["))]


def test_both_languages_show_the_same() -> None:
    """Compares headings, code without comments, numbers of tables, backticks, links and
    pictures."""
    assert facts(README) == facts(KOREAN)
    assert "[한국어](README.ko.md)" in README and "[English](README.md)" in KOREAN


def facts(page: str) -> dict[str, list[str]]:
    blocks = re.findall(r"^```(.*?)^```", page, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\|.*\|$", prose, re.MULTILINE)
    return {
        "headings": re.findall(r"^#+ ", prose, re.MULTILINE),
        "code": [re.sub(r" +# .*$", "", block, flags=re.MULTILINE) for block in blocks],
        "tables": [" ".join(re.findall(r"-?\d+(?:\.\d+)?", re.sub(r"`.*?`|\(.*?\)", "", row))) for row in rows],
        "measured": rows[:7],
        "backticks": sorted(re.findall(r"`[^`]+`", prose)),
        "links": re.findall(r"\]\(((?!README)[^)]+)\)", prose),
        "addresses": re.findall(r"https?://[\w.]+(?::\d+)?", prose),
    }


def test_it_shows_a_table_that_was_measured() -> None:
    rows = re.findall(r"^\| smollm2-135m \| (\S+) \| ok \|", README, re.MULTILINE)
    assert rows == configuration.load(PROJECT / "experiments.yaml").profile("local").methods


def test_its_table_is_the_one_that_make_screenshots_writes() -> None:
    rows = [row(model="smollm2-135m", method="lora-r8", eval_bits_per_byte=1.25), row(model="a|b")]
    old, new = README.splitlines(), with_table(README, rows).splitlines()
    start = next(number for number, line in enumerate(old) if line.startswith("|"))
    end = next(number for number in range(start, len(old)) if not old[number].startswith("|"))
    assert new[: start + 2] == old[: start + 2], "its columns are these"
    assert new[start + 2].startswith("| smollm2-135m | lora-r8 | ok | 1.2500 |") and "a\\|b" in new[start + 3]
    assert new[start + 4 :] == old[end:]
