"""The report of many cells in a real browser: filters, chosen columns, figures of each model, hover
texts, print."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from pipelines.compare.drawing import left_out
from pipelines.compare.memory_bars import memory_bars
from pipelines.compare.plots import loss_curves
from pipelines.compare.trade_off import trade_off
from tests.fakes.planted import row
from tests.report_grid import write_grid
from tests.test_compare_report_page import FLAGS, opened

CHROMIUM = shutil.which("chromium")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed; .ci/run installs it")
BOXES = """() => [...document.querySelectorAll("figure svg")].map(svg => [...svg.querySelectorAll("text")].map(one => {
    const box = one.getBoundingClientRect();
    return [one.textContent, box.left, box.top, box.right, box.bottom];
}))"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report of 3 models × 5 methods."""
    return write_grid(tmp_path_factory.mktemp("grid"), 3, 5, curves=1).report.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


def rows_shown(page: Page) -> int:
    return page.locator(".comparison tbody:visible").count()


def choose(page: Page, name: str, value: str) -> None:
    """Tick or untick a value in its open list."""
    box = page.locator(f'#choose input[name="{name}"][value="{value}"]')
    if not box.is_visible():
        page.locator("#choose summary", has_text=name).click()
    box.click()


def overlapping(page: Page) -> list[tuple[str, str]]:
    """Texts of a picture that overlap by more than a pixel."""
    page.eval_on_selector_all("details.group", "all => all.forEach(one => one.open = true)")
    pairs = []
    for texts in page.evaluate(BOXES):
        for one, other in itertools.combinations(texts, 2):
            wide = min(one[3], other[3]) - max(one[1], other[1])
            high = min(one[4], other[4]) - max(one[2], other[2])
            if wide > 1 and high > 1:
                pairs.append((one[0], other[0]))
    return pairs


@in_chromium
def test_rows_are_filtered_counted_and_remembered_in_the_address(browser: Browser, report: str) -> None:
    page, messages = opened(browser, report, 1440, "light")
    status, everything = page.locator("#choose [role=status]"), page.get_by_role("button", name="show all")
    assert (rows_shown(page), status.inner_text(), everything.is_visible()) == (15, "15 of 15 rows shown", False)
    choose(page, "model", "opt-350m")
    choose(page, "method", "full")
    assert (rows_shown(page), status.inner_text()) == (8, "8 of 15 rows shown")
    assert page.locator("#choose summary", has_text="model").inner_text() == "model: 2 of 3"
    assert not page.locator('details.group[data-model="opt-350m"]').is_visible()
    assert page.locator("#figures-shown").inner_text() == "Figures of 2 of 3 models shown."
    answers = page.get_by_role("region", name="Answers to prompt 1")
    assert answers.locator("tr[data-model]:visible").count() == 6, "two rows have no answers"
    assert "opt-350m" not in answers.inner_text() and "6 of 13 cells shown" in answers.inner_text()
    axe_results = Axe().run(page)
    assert axe_results.violations_count == 0, axe_results.generate_report()

    page.reload()
    assert rows_shown(page) == 8 and "#model=" in page.url and "opt-350m" not in page.url
    everything.click()
    assert rows_shown(page) == 15 and page.url == report
    page.evaluate("location.hash = '#status=diverged'")
    page.wait_for_function("document.querySelectorAll('.comparison tbody:not([hidden])').length < 15")
    assert set(page.locator(".comparison tbody:visible td.bad").all_inner_texts()) == {"diverged"}
    assert messages == [] and page.evaluate("localStorage.length + sessionStorage.length") == 0
    page.close()


@in_chromium
def test_columns_are_chosen_by_subject_and_remembered_in_the_address(browser: Browser, report: str) -> None:
    page, _ = opened(browser, report, 1440, "light")
    headings = page.locator(".comparison")
    heading = headings.get_by_role("columnheader", name="device", exact=True)
    assert heading.count() == 0
    choose(page, "columns", "device")
    choose(page, "columns", "chrf")
    choose(page, "columns", "words")
    choose(page, "columns", "finished_at")
    assert page.get_by_role("group", name="outcome").locator('input[value="device"]').is_checked()
    page.reload()
    assert heading.is_visible() and not headings.get_by_role("columnheader", name="chrF").count()
    assert not page.locator(".comparison tr.words:visible").count()
    assert page.get_by_role("cell", name="cuda: NVIDIA L4", exact=True).count() > 0
    assert page.get_by_role("cell", name="2026-11-29 03:12 UTC", exact=True).count() == 15
    page.locator("#choose summary", has_text="columns").click()
    page.get_by_role("button", name="usual").click()
    assert heading.count() == 0 and page.url == report
    page.close()


@in_chromium
def test_without_scripts_everything_is_there(browser: Browser, report: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(600_000)
    page.goto(report)
    assert rows_shown(page) == 15
    assert page.locator(".comparison thead th:visible").count() == page.locator(".comparison thead th").count() > 30
    assert page.locator("details.group[open]").count() == 4
    assert page.locator("#choose input:visible").count() == page.locator("#choose button:visible").count() == 0
    context.close()


@in_chromium
@pytest.mark.parametrize("width", [390, 1440])
def test_headings_and_names_stay_in_sight(browser: Browser, report: str, width: int) -> None:
    page, _ = opened(browser, report, width, "light")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    box = page.locator(".scroll.comparison")
    box.evaluate("box => { box.scrollTop = 400; box.scrollLeft = 200; }")
    corner = "one => one.getBoundingClientRect()"
    around, head = box.evaluate(corner), box.locator("thead th").nth(5).evaluate(corner)
    name = box.locator("tbody th").nth(9).evaluate(corner)
    assert abs(head["top"] - around["top"]) < 2 and abs(name["left"] - around["left"]) < 2
    words = box.locator("tr.words div").nth(9).evaluate(corner)
    assert around["left"] <= words["left"] and words["right"] <= around["right"], "advice is read without scrolling"
    page.close()


@in_chromium
def test_the_pointer_reads_a_marks_numbers_and_no_texts_overlap(browser: Browser, report: str) -> None:
    page, _ = opened(browser, report, 1440, "light")
    mark = page.locator("figure svg use", has=page.locator("title", has_text="smollm2-135m × full")).first
    mark.scroll_into_view_if_needed()
    at = mark.evaluate(
        "one => { const {x, y, width, height} = one.getBoundingClientRect();"
        "const hit = document.elementFromPoint(x + width / 2, y + height / 2); return hit.querySelector('title').textContent }"
    )
    numbers = page.locator('.comparison tbody[data-model="smollm2-135m"][data-method="full"]')
    assert f"peak GB: {numbers.locator('td').nth(8).inner_text()}" in at.split("\n")
    assert overlapping(page) == []
    page.close()


@in_chromium
def test_names_of_close_marks_do_not_overlap(browser: Browser) -> None:
    close = [
        row(
            method=f"lora-r{n}", peak_memory_gb=2 + n % 4 / 50, eval_bits_per_byte=0.9 + n / 500, base_bits_per_byte=1.0
        )
        for n in range(14)
    ]
    far = row(method="full", peak_memory_gb=4.0, eval_bits_per_byte=0.95, base_bits_per_byte=1.0)
    page = browser.new_page()
    page.set_content(f"<figure style='width:400px'>{(trade_off([*close, far]) or b'').decode()}</figure>")
    names = page.locator("svg text", has_text="lora-r").all_inner_texts()
    assert overlapping(page) == [] and 4 < len(names) < len(close), "the others find no room"
    page.close()


@in_chromium
def test_paper_shows_every_models_figures_and_the_whole_table(browser: Browser, report: str) -> None:
    page, _ = opened(browser, report, 1440, "light")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.group[open]").count() == 4
    box = page.locator(".scroll.comparison")
    assert box.evaluate("box => box.scrollHeight <= box.clientHeight")
    assert page.get_by_text("15 of 15 rows shown").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.group[open]").count() == 2
    page.close()


@pytest.mark.slow
@in_chromium
@pytest.mark.parametrize(("models", "methods"), [(1, 1), (1, 5), (10, 10)])
def test_reports_of_every_size_fit_every_window(browser: Browser, tmp_path: Path, models: int, methods: int) -> None:
    report = write_grid(tmp_path, models, methods, curves=models).report
    assert report.stat().st_size < 3e6
    for width, scheme in ((390, "dark"), (1024, "light"), (1440, "light")):
        page, messages = opened(browser, report.as_uri(), width, scheme)
        assert overlapping(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        axe_results = Axe().run(page)
        assert axe_results.violations_count == 0, axe_results.generate_report()
        assert messages == []
        page.close()


def test_every_row_that_ran_out_of_memory_has_a_bar() -> None:
    failed = {"status": "out_of_memory", "trainable_params": None}
    rows = [
        row(method="measured", peak_memory_gb=3.1, memory_budget_gb=3.0, **failed),
        row(method="predicted", estimated_memory_gb=7.5, memory_budget_gb=3.0, **failed),
        row(method="limited", memory_budget_gb=3.0, **failed),
        row(method="unknown", **failed),
    ]
    svg = (memory_bars(rows) or b"").decode()
    assert svg.count("<pattern") >= 1 and "out of memory" in svg
    for one in rows:
        assert f">{one['method']}</text>" in svg and f"<title>tiny × {one['method']}\nstatus: out_of_memory" in svg


def test_a_long_curve_stays_a_small_picture_and_ends_where_it_ends() -> None:
    points = [{"examples": 8 * n, "train_loss": 1.0 + n % 2, "eval_loss": None} for n in range(1, 5001)]
    svg = (loss_curves({"full": points}) or b"").decode()
    assert len(svg) < 60_000
    assert "<title>full\n1.5 nats per token\n40000 examples</title>" in svg, "the mean of as many high as low steps"


def test_a_caption_says_what_its_picture_leaves_out() -> None:
    assert left_out(90, 40) == " 40 of 90 cells are drawn; the numbers below hold all."
    assert left_out(40, 40) == ""
