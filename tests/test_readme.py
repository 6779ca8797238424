"""README and docs stay true: their links lead somewhere, every status is explained, the table was measured."""

import re

from pipelines.lake.paths import PROJECT
from pipelines.runs.status import Status
from pipelines.settings import experiments as configuration
from tests.fakes.planted import row
from tests.screenshots import with_table

PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in [PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")]
}
README, ALL = PAGES["README.md"], "\n".join(PAGES.values())


def test_its_links_lead_to_files_and_headings() -> None:
    for page, text in PAGES.items():
        folder = PROJECT if page == "README.md" else PROJECT / "docs"
        for link in re.findall(r"\]\(([^)#\s]*(?:#[^)\s]*)?)\)", text):
            target, _, heading = link.partition("#")
            there = folder / target if target else folder / page
            assert target.startswith("http") or there.exists(), (page, link)
            if heading:
                headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
                assert heading in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, (page, link)


def test_it_explains_every_status() -> None:
    for status in Status.__args__:
        assert f"`{status}`" in README


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
