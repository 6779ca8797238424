"""Model output is shown as text everywhere: terminal, Markdown, report, Dagster; and numbers
survive."""

import csv
import io
import json
import re
import unicodedata
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from pipelines.compare import estimates
from pipelines.compare.report import Content, write_report
from pipelines.compare.show import BY_IMPORTANCE, SHOWN, cell_text, escape_markdown, render
from pipelines.compare.table import Row, comparison_rows
from pipelines.plan import show as plans
from pipelines.records.foreign_text import plain
from tests.fakes import planted
from tests.fakes.planted import answer, row

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "end of the cell": "</td></tr></table><h1>mine</h1>",
    "handler": "\"><img src=x onerror='alert(1)'>",
    "image": "![x](https://evil.example/x.png)",
    "link": "[click](javascript:alert(1))",
    "autolink": "<https://evil.example>",
    "reference": "[a]: https://evil.example",
    "pipes": "a | b || c |",
    "code": "``` `` ` x",
    "entities": "&lt;b&gt; &amp; &#60;script&#62; &copy",
    "backslashes": "\\| \\<b\\> \\\\",
    "emphasis": "**bold** _it_ *x* ~~gone~~",
    "heading": "# big",
    "template": "{{ 7 * 7 }} {% set x %} {# c #} ${x}",
    "comment": "<!-- --><![CDATA[x]]>",
    "korean": "안녕 <b>하세요</b>",
}
ANSI = "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b1m \u202eesrever\u2069 \x00 \x08 \r"
BLOCKS = ("td", "th", "li", "p", "h3", "tr")
PLAIN_TAGS = {"table", "thead", "tbody", "tr", "th", "td", "ul", "li", "p"}
PAGE_TAGS = PLAIN_TAGS | {
    "html", "head", "meta", "title", "style", "script", "body", "main", "h1", "h2", "h3", "div", "span", "b", "figure",
    "figcaption", "details", "summary", "caption", "dl", "dt", "dd", "fieldset", "legend", "label", "input", "button", "code",
    "svg", "g", "path", "defs", "use", "text", "clippath", "rect",
}  # fmt: skip

hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


class Page(HTMLParser):
    """A browser's view of some HTML: elements with their attributes, and the text of each cell and
    list item."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.comments: list[str] = []
        self.blocks: list[str] = []
        self.inside = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in BLOCKS:
            self.blocks.append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in BLOCKS

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.blocks[-1] += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def unknown_decl(self, data: str) -> None:
        self.comments.append(data)

    @property
    def texts(self) -> list[str]:
        return [block.strip() for block in self.blocks]

    @property
    def loads(self) -> list[str]:
        """Every address or code that the page would load, follow or run."""
        return [
            value for _, name, value in self.attributes if name in ("src", "href", "srcset") or name.startswith("on")
        ]


def markdown(text: str) -> Page:
    return Page(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))


def columns(line: str) -> int:
    """The number of terminal columns of the line."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def controls(text: str) -> list[str]:
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\t"]


# Markdown


@hostile
def test_markdown_shows_a_text_as_itself(text: str) -> None:
    page = markdown(f"before {escape_markdown(text)} after")
    assert page.tags == {"p"}
    assert page.texts == [f"before {text} after"]


@hostile
def test_a_markdown_table_keeps_its_shape_and_shows_the_text(text: str) -> None:
    page = markdown(render([row(model=text, advice=text), row(method="lora-r8")], "markdown"))
    assert page.tags <= PLAIN_TAGS
    assert len([block for block in page.blocks if not block.strip()]) == 3, "a heading and two rows"
    assert page.texts[page.texts.index("full") - 1] == text.strip()
    assert f"{text} × full: {text}".strip() in page.texts


def test_a_markdown_note_is_one_item_however_many_lines_it_has(text: str = "one\n\n- two\n# three\n| four |") -> None:
    page = markdown(render([row(advice=text)], "markdown"))
    assert page.tags <= PLAIN_TAGS
    assert page.texts[-1] == "tiny × full: one  - two # three | four |"


# the terminal


@hostile
def test_the_text_table_shows_a_text_as_itself(text: str) -> None:
    shown = render([row(model=text, advice=text)], "text").splitlines()
    assert shown[2].startswith(f"{text}  full ")
    assert f"{text} × full: {text}".rstrip() in shown


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_no_control_code_reaches_a_terminal(form: str) -> None:
    failed = row(status="failed", advice=ANSI, status_detail=ANSI)
    shown = render([failed], form)  # type: ignore[arg-type]
    assert controls(shown) == []
    assert "31mred" in shown.replace("\\", "")


def test_a_text_of_many_lines_cannot_fake_a_row() -> None:
    fake = "x\nother  lora-r8  ok\ny"
    shown = render([row(advice=fake, status="failed", status_detail=fake)], "text")
    assert not [line for line in shown.splitlines() if line.startswith("other")]


def test_korean_takes_two_columns() -> None:
    shown = render([row(model="한국어-모델"), row(model="tiny"), row(model="ａＢ")], "text").splitlines()
    heading, rule, *lines = shown[:5]
    places = [columns(line[: line.index("full")]) for line in lines]
    assert places == [columns(heading[: heading.index("method")])] * 3
    assert rule.startswith("─" * 11 + "  ")


def test_numbers_stand_right_aligned_under_their_heading() -> None:
    shown = render([row(train_seconds=5.0), row(train_seconds=12345.0), row()], "text").splitlines()
    end = shown[0].index("train s") + len("train s")
    assert [line[:end].split("  ")[-1].strip() for line in shown[2:5]] == ["5", "12,345", "–"]


@pytest.mark.parametrize("room", [60, 80, 100, 120, 400])
def test_a_terminal_gets_the_columns_that_fit_and_the_names_of_the_others(room: int) -> None:
    measured = {"eval_bits_per_byte": 1.5, "peak_memory_gb": 1.73, "train_seconds": 14.0, "chrf": 14.9}
    rows = [row(model="한국어-모델", advice="ㄱ나다 " * 60, **measured), row(model="tiny", method="lora-r8")]
    everything = render(rows, "text").splitlines()[0].split("  ")
    heading, _, first, *rest = render(rows, "text", room=room).splitlines()
    assert max(columns(line) for line in [heading, first, *rest]) <= room
    assert all(name in heading for name in ("model", "method", "status", "bits/byte"))
    left = next(
        (line for line in " ".join(" ".join(rest).split()).split(f"left out to fit {room} columns: ")[1:]), ""
    ).partition(";")[0]
    named = [name.strip() for name in left.split(",") if name.strip()]
    shown = [name.strip() for name in heading.split("  ") if name.strip()]
    assert sorted([*shown, *named]) == sorted(name.strip() for name in everything if name.strip())
    assert named if room < 400 else not named
    assert ("from" in shown) == ("to" in shown), "an interval has two ends"


def test_every_column_of_a_table_that_is_fitted_has_an_importance() -> None:
    for shown, by_importance in ((SHOWN, BY_IMPORTANCE), (plans.COLUMNS, plans.BY_IMPORTANCE)):
        assert sorted(column.name for column in shown) == sorted(name for group in by_importance for name in group)
    named = [name for group in estimates.BY_IMPORTANCE for name in group]
    assert sorted(column.name for column in estimates.COLUMNS) == sorted(named)


def test_columns_that_hold_nothing_give_way_first() -> None:
    heading = render([row(chrf=14.9, is_stale=None)], "text", room=40).splitlines()[0]
    assert "chrF" in heading and "peak GB" not in heading


def test_what_was_not_measured_is_a_dash_and_no_zero() -> None:
    assert [cell_text(None, 2), cell_text(0.0, 2), cell_text(False, None), cell_text(True, 0)] == [
        "–",
        "0.00",
        "no",
        "yes",
    ]


# size


def test_a_long_text_is_cut_and_says_so() -> None:
    assert plain("x" * 2000) == "x" * 2000
    assert plain("x" * 2001) == "x" * 2000 + " … (2,001 characters in all)"


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_ten_megabytes_of_text_stay_a_line(form: str) -> None:
    shown = render([row(advice="<b>" * 3_500_000)], form)  # type: ignore[arg-type]
    assert len(shown) < 5000
    assert "10,500,000 characters in all" in shown


# JSON and CSV

ROUND = [*HOSTILE.values(), 'quotes "x", commas', "lines\n\nand \r\n returns", "  spaces  ", "", "줄\u2028바꿈", ANSI]


@pytest.mark.parametrize("text", ROUND, ids=range(len(ROUND)))
def test_json_round_trip(text: str) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    planted_row = row(advice=text, train_loss=0.1 + 0.2, trainable_params=134_515_008, is_pareto=True)
    (record,) = json.loads(render([planted_row | {"finished_at": at}], "json"))
    assert datetime.fromisoformat(record.pop("finished_at")) == at
    assert record == {name: value for name, value in planted_row.items() if name != "finished_at"}


@pytest.mark.parametrize("text", [text for text in ROUND if "\0" not in text], ids=range(len(ROUND) - 1))
def test_csv_round_trip(text: str) -> None:
    planted_rows = [row(advice=text, train_loss=0.1 + 0.2, trainable_params=134_515_008), row(model_note=text)]
    records = list(csv.DictReader(io.StringIO(render(planted_rows, "csv"), newline="")))
    assert [list(one) for one in records] == [list(one) for one in planted_rows]
    for one, expected in zip(records, planted_rows, strict=True):
        assert one == {name: "" if value is None else str(value) for name, value in expected.items()}
    assert float(records[0]["train_loss"]) == 0.1 + 0.2


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n", "＝"])
def test_no_text_of_csv_is_computed_by_a_spreadsheet(sign: str) -> None:
    text = f"{sign}HYPERLINK(A1)"
    shown = render([row(advice=text, status_detail=f"5 {text}", delta_base=-0.25)], "csv")
    (record,) = csv.DictReader(io.StringIO(shown, newline=""))
    assert (record["advice"], record["status_detail"]) == (f"'{text}", f"5 {text}")
    assert record["delta_base"] == "-0.25", "a number stays one"


def test_no_rows_are_shown_as_no_rows() -> None:
    assert json.loads(render([], "json")) == []
    assert list(csv.DictReader(io.StringIO(render([], "csv")))) == []
    assert render([], "text").splitlines()[0].split()[:3] == ["model", "method", "status"]
    assert markdown(render([], "markdown")).texts.count("bits/byte") == 1


# the report


def report(folder: Path, rows: list[Row], answers: list[Row]) -> tuple[Page, str]:
    lake = planted.lake(folder)
    write_report(lake.project, Content(rows, answers=answers))
    html = lake.data.report.read_text(encoding="utf-8")
    return Page(html), html


def test_the_report_shows_hostile_text_as_text_and_runs_nothing(tmp_path: Path) -> None:
    rows = [
        row(method=f"m{i}", run_id=f"run-{i}", status="failed", advice=text, status_detail=text, model_note=text)
        for i, text in enumerate(HOSTILE.values())
    ]
    answers = [
        answer(f"e{i}", run_id=f"run-{i}", prompt=text, reference=text, answer=text)
        for i, text in enumerate(HOSTILE.values())
    ]
    # The page shows six prompts at a time.
    for start in range(0, len(HOSTILE), 6):
        page, html = report(tmp_path, rows, answers[start:])
        assert page.tags <= PAGE_TAGS
        assert page.comments == []
        assert page.loads == []
        assert html.count("<script") == 1, "our own, which the page's policy allows by its hash"
        assert all(page.texts.count(text) >= 3 for text in list(HOSTILE.values())[start : start + 6])
        assert all(f"{text} ({text})" in page.texts for text in HOSTILE.values()), "advice and detail, below the row"
        assert set(HOSTILE.values()) <= set(page.texts), "each is a model's note too"


def test_the_report_loads_nothing_from_anywhere(tmp_path: Path) -> None:
    lake = planted.lake(tmp_path)
    curve = [{"examples": n, "elapsed_seconds": n, "train_loss": 1.0, "eval_loss": 1.0} for n in (4, 8)]
    lake.evaluated(lake.trained("full", curve=curve), answers=[answer()])
    write_report(lake.project, Content(comparison_rows(lake.resolved())))
    html = lake.data.report.read_text(encoding="utf-8")
    page = Page(html)
    assert page.loads == []
    assert html.count("<figure") == html.count("<svg") == 4, "trade-off, memory, curves, lengths of the examples"
    assert set(re.findall(r"""(?:url\(|href=")(.)""", html)) == {"#"}
    assert "default-src 'none'" in html
    assert "@import" not in html
    assert "script-src 'sha256-" in html and "unsafe-eval" not in html


def test_the_report_has_no_control_codes(tmp_path: Path) -> None:
    failed = row(status="failed", advice=ANSI, status_detail=ANSI)
    _, html = report(tmp_path, [failed], [answer(run_id="run-1", prompt=ANSI, reference=ANSI, answer=ANSI)])
    assert controls(html) == []


def test_ten_megabytes_of_answer_stay_a_small_page(tmp_path: Path) -> None:
    huge = "<td>" * 2_500_000
    page, html = report(tmp_path, [row()], [answer(run_id="run-1", answer=huge, prompt=huge, reference=huge)])
    assert len(html) < 200_000
    assert page.texts.count(f"{huge[:2000]} … (10,000,000 characters in all)") == 2


def test_an_answers_own_lines_are_kept_in_the_report(tmp_path: Path) -> None:
    page, _ = report(tmp_path, [row()], [answer(run_id="run-1", answer="첫 줄\n둘째 줄\n\tx")])
    assert "첫 줄\n둘째 줄\n\tx" in page.texts


def test_a_report_before_anything_was_trained_says_missing(tmp_path: Path) -> None:
    lake = planted.lake(tmp_path)
    write_report(lake.project, Content(comparison_rows(lake.resolved())))
    page = Page(lake.data.report.read_text(encoding="utf-8"))
    assert page.texts.count("missing") == 4
    assert "svg" in page.tags, "the lengths of the examples are known already"


def test_every_row_of_a_real_lake_is_in_the_report(tmp_path: Path) -> None:
    lake = planted.lake(tmp_path)
    lake.cell("full", bits=0.8123)
    lake.trained("lora-r8", "out_of_memory", phase="train", detail="tried 9 GB")
    write_report(lake.project, Content(comparison_rows(lake.resolved())))
    page = Page(lake.data.report.read_text(encoding="utf-8"))
    for text in ("0.8123", "out_of_memory", "full", "lora-r8", *(column.heading for column in SHOWN)):
        assert text in page.texts


# Dagster's metadata


@hostile
def test_metadata_tables_show_a_text_as_itself(text: str) -> None:
    from assets.metadata import table

    page = markdown(str(table([{"model": "tiny", "answer": text, "loss": None}], ["model", "answer", "loss"]).value))
    assert page.tags <= PLAIN_TAGS
    assert page.texts[-3:] == ["tiny", text.strip(), "–"]


def test_metadata_tables_stay_small_and_without_control_codes() -> None:
    from assets.metadata import table

    shown = str(
        table([{"answer": "x" * 10_000_000}, {"answer": ANSI}, {"answer": "a\n\n# b\n| c |"}], ["answer"]).value
    )
    assert len(shown) < 5000
    assert controls(shown) == []
    page = markdown(shown)
    assert page.tags <= PLAIN_TAGS
    assert page.texts[-1] == "a  # b | c |"
