"""All links and paths on every page resolve, and the index lists every design page."""

import re
from pathlib import Path

import pytest

from pipelines.lake.paths import PROJECT

PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])
DESIGN = PROJECT / "docs" / "design"
FOLDERS = "pipelines|assets|benchmarks|notebooks|tests|docs"
LONGEST_LINE = 100


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """The relative links in `text`, the content of `page`, without an existing file or heading."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        target, _, heading = link.partition("#")
        # The link leads to another site.
        if re.match(r"\w+:", target):
            continue
        file = page.parent / target if target else page
        if not file.exists() or (heading and heading not in anchors(file)):
            broken.append(link)
    return broken


def missing_paths(text: str) -> list[str]:
    """The paths in backticks, from the project's root, that do not exist.

    NAME stands for any name. `PATH` (new) is still to be made.
    """
    text = re.sub(r"`[^`\n]+` \(new\)", "", text)
    named = re.findall(rf"`((?:{FOLDERS})/[^`\s]*)`", without_code(text))
    named += re.findall(r"`([\w.-]+/[\w./-]+\.py)`", without_code(text))
    return sorted({path for path in named if not list(PROJECT.glob(path.replace("NAME", "*")))})


def test_what_leads_nowhere_is_found() -> None:
    page = DESIGN / "README.md"
    text = "[a](../data.md) [b](nowhere.md) [c](#no-such-heading) [d](../data.md#nor-this) [e](https://example.org/)"
    assert broken_links(page, text) == ["nowhere.md", "#no-such-heading", "../data.md#nor-this"]
    named = "`pipelines/lake/paths.py` `tests/none.py` (new) `pipelines/nowhere.py` `runs/run.py` `docs/design/` `tests/none/`"
    assert missing_paths(named) == ["pipelines/nowhere.py", "runs/run.py", "tests/none/"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PROJECT).as_posix())
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not broken_links(page, text)
    assert not missing_paths(text)


def test_the_index_names_every_page_on_the_design() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (DESIGN / "README.md").read_text(encoding="utf-8")))
    assert linked == {page.name for page in DESIGN.glob("*.md")} - {"README.md"}


def test_prose_on_the_design_keeps_to_its_width() -> None:
    for page in DESIGN.glob("*.md"):
        lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        assert not [(page.name, number) for number, line in lines if len(line) > LONGEST_LINE and line[0] != "|"]
