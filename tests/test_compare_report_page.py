"""The report in a real browser.

It fits phones, passes axe-core in light and dark, sorts by keyboard, and runs only its own script.
"""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from pipelines.compare.ranking import make_picks
from pipelines.compare.report import Content, write_report
from pipelines.compare.table import comparison
from pipelines.compare.tables import all_tables
from pipelines.compare.task_metrics import add_metrics
from pipelines.evaluate.metrics import Scores
from tests.fakes import planted
from tests.fakes.planted import answer, losses
from tests.test_compare_show import ANSI, HOSTILE

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed; .ci/run installs it")
KOREAN = "한국어로 소설 한 권을 추천해 주세요."


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report with every section: picks, curves, ranks, history, hostile, long and
    Korean answers."""
    lake = planted.lake(
        tmp_path_factory.mktemp("report"),
        methods={"lora-r64": {"kind": "lora", "rank": 64, "dropout": 0.1}},
        profiles={
            "local": {
                "methods": ["base", "full", "lora-r8", "lora-r64", "qlora-r8"],
                "evaluation": {"metrics": ["exact_match", {"regex": "[가-힣]", "name": "says-hangul"}]},
            }
        },
    )
    curve = [{"examples": n, "elapsed_seconds": n, "train_loss": 2 / n, "eval_loss": 2.1 / n} for n in (4, 8, 12)]
    hostile = "\n".join(HOSTILE.values()) + ANSI
    for bits in (0.90, 0.99):
        for method in ("base", "full", "lora-r8", "lora-r64"):
            # Percent of the processors that other programs used.
            busy = 70.0 if method == "full" else 1.0
            attempt = lake.trained(method, curve=curve, budget=3.0, train_seconds=bits * 100, other_cpu_pct=busy)
            texts = [answer("y", answer=hostile, prompt=hostile), answer("z", prompt=KOREAN, answer=KOREAN * 400)]
            values = losses(bits, own=method)
            lake.evaluated(attempt, answers=texts, eval_bits_per_byte=bits, eval_records=12, losses=values)
    lake.trained("qlora-r8", "out_of_memory", phase="probe", detail=hostile, budget=3.0, peak_memory_gb=3.1)
    result, evaluation = comparison(lake.resolved()), lake.project.settings.evaluation
    scores = Scores(evaluation.metrics)
    add_metrics(lake.resolved(), result.rows, [], scores)
    picks = make_picks(result.rows, result.qualities)
    tables = all_tables(
        lake.data, lake.project.experiments, result.rows, evaluation=evaluation, picks=picks, scores=scores
    )
    write_report(
        lake.project, Content.of(result.rows, tables), published=datetime.now(UTC) - timedelta(days=3, hours=1)
    )
    return Path(lake.data.report).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


def opened(browser: Browser, address: str, width: int, scheme: str) -> tuple[Page, list[str]]:
    """The page, and its error messages and network requests while it was loaded."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # pyright: ignore[reportArgumentType]
    page.set_default_timeout(600_000)
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: messages.append(dialog.message))
    page.on("request", lambda request: messages.append(request.url) if request.url != address else None)
    page.goto(address)
    return page, messages


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1024, "light")])
def test_axe_finds_nothing_and_the_page_fits(browser: Browser, report: str, width: int, scheme: str) -> None:
    page, messages = opened(browser, report, width, scheme)
    page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
    axe_results = Axe().run(page)
    assert axe_results.violations_count == 0, axe_results.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("figure").count() >= 6
    assert page.locator("section.part .scroll", has_text="says_hangul").count() > 0
    assert page.locator("svg text").first.evaluate("one => one.getBoundingClientRect().height") > 8
    assert page.locator("td[lang=ko]").first.evaluate("one => getComputedStyle(one).fontFamily.includes('KR')")
    assert page.locator(".stamp dd").first.inner_text().endswith(" – 3 days old")
    assert messages == []
    page.close()


def test_a_heading_sorts_by_keyboard_and_says_so(browser: Browser, report: str) -> None:
    page, _ = opened(browser, report, 1280, "light")
    head = page.locator(".comparison th", has_text="peak GB")
    methods = lambda: page.locator(".comparison tbody th .method").all_inner_texts()  # noqa: E731
    as_given = methods()
    orders = []
    for _ in range(3):
        head.get_by_role("button").press("Enter")
        orders.append((head.get_attribute("aria-sort"), methods()))
    assert [state for state, _ in orders] == ["ascending", "descending", "none"]
    assert orders[1][1][0] == "qlora-r8", "it had the most"
    assert [order[-1] for _, order in orders[:2]] == ["base", "base"], "unmeasured values come last in both directions"
    assert orders[2][1] == as_given == ["base", "full", "lora-r8", "lora-r64", "qlora-r8"]
    page.close()
