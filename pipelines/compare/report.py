"""data/report/index.html: the comparison as one self-contained page that loads nothing and runs
only our own script."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from pipelines.clean import summary
from pipelines.clean.clean import current as current_examples
from pipelines.compare import beyond, covers, disturbed, figures, outside, pieces, rates
from pipelines.compare.columns.evaluation import EVALUATION_ANSWERS
from pipelines.compare.columns.examples import SFT_REJECTS
from pipelines.compare.columns.nights import NIGHTS
from pipelines.compare.report_table import below, report_table, value_text
from pipelines.compare.show import full_name
from pipelines.compare.stamp import moment, stamp
from pipelines.lake.files import write_text
from pipelines.project import Project

Row = dict[str, Any]
PROMPTS_SHOWN = 6
# Answers shown for one prompt.
ANSWERS_SHOWN = 100
# Answers are cut at ANSWER_CHARS characters, and at SHORT_ANSWER_CHARS if a prompt has more than
# MANY_ANSWERS of them.
MANY_ANSWERS, ANSWER_CHARS, SHORT_ANSWER_CHARS = 24, 2000, 400
REJECTS_SHOWN = 10
# Only this many of the newest nights are shown.
NIGHTS_SHOWN = 14
NIGHT_COLUMNS = tuple(column for column in NIGHTS.columns if column.name != "run_ids")


@dataclass(frozen=True)
class Content:
    """The rows that the page shows, and all `tables` for the parts of beyond.py.

    `prompts` counts all prompts that were answered; `answers` holds only the answers to the first
    of them.
    """

    rows: Sequence[Row]
    picks: Sequence[Row] = ()
    history: Sequence[Row] = ()
    nights: Sequence[Row] = ()
    providers: Sequence[Row] = ()
    answers: Sequence[Row] = ()
    prompts: int | None = None
    tables: Mapping[str, pa.Table] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Row], tables: Mapping[str, pa.Table]) -> "Content":
        """Build the content from the published tables, with the answers to the shown prompts
        only."""
        names = ("picks", "history", "provider_comparison", "nights")
        picks, history, providers, nights = (tables[name].to_pylist() for name in names)
        answers = tables["evaluation_answers"]
        current = pc.is_in(answers["run_id"], pa.array([row["run_id"] for row in rows], pa.string()))  # pyright: ignore[reportAttributeAccessIssue]
        answers = answers.filter(current)
        prompts = answers["example_id"].unique()
        shown = pc.is_in(answers["example_id"], prompts[:PROMPTS_SHOWN])  # pyright: ignore[reportAttributeAccessIssue]
        return cls(rows, picks, history, nights, providers, answers.filter(shown).to_pylist(), len(prompts), tables)


def write_report(project: Project, content: Content, *, published: datetime | None = None) -> None:
    """Write the page. `published` is the time of publication with its time zone (None: now)."""
    published = published or datetime.now(UTC)
    script = (files("pipelines.compare") / "templates" / "report.js").read_text(encoding="utf-8")
    cleaned = current_examples(project.data)
    page = (
        pieces.environment()
        .get_template("report.html.j2")
        .render(
            content=content,
            published=published.isoformat(),
            stamp=stamp(content.rows, project.profile, published),
            table=report_table(content.rows),
            value_text=value_text,
            below=below,
            rates_notes=rates.notes(content.rows),
            marks=disturbed.note(content.rows, full_name),
            outside_note=outside.note(content.rows),
            reject_columns=SFT_REJECTS.pick("reason", "detail", "source", "record"),
            chrf=EVALUATION_ANSWERS["chrf"],
            cells=figures.of_cells(project, content.rows),
            beyond=beyond.parts(content.rows, content.tables, project),
            beyond_title=beyond.TITLE,
            history=list(figures.of_history(content.history)),
            worse=[row for row in content.history if row["worse"]],
            nights=[_in_utc(row) for row in content.nights[: -NIGHTS_SHOWN - 1 : -1]],
            more_nights=max(0, len(content.nights) - NIGHTS_SHOWN),
            night_columns=NIGHT_COLUMNS,
            providers=list(figures.of_providers(content.providers)),
            cleaning=list(figures.of_cleaning(cleaned)) if cleaned else [],
            cleaned=cleaned,
            languages=summary.language_counts(cleaned) if cleaned else [],
            rejects=summary.sample_rejects(cleaned, REJECTS_SHOWN) if cleaned else [],
            prompts=_side_by_side(content.rows, content.answers),
            profile=project.profile,
            interval_note=covers.note(content.rows),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    write_text(project.data.report, page)


def _in_utc(night: Row) -> Row:
    """The row of a night with its times formatted for people."""
    times = {name: night[name] and moment(night[name]) for name in ("started_at", "ended_at")}
    return {**night, **times}


def _side_by_side(rows: Sequence[Row], answers: Sequence[Row]) -> list[Row]:
    """The reference and the answer of every row's model to each of the first prompts, in the
    order of the rows."""
    places = {row["run_id"]: (place, row) for place, row in enumerate(rows) if row["run_id"]}
    by_prompt: dict[str, Row] = {}
    for answer in sorted((a for a in answers if a["run_id"] in places), key=lambda a: places[a["run_id"]][0]):
        _, row = places[answer["run_id"]]
        shown = by_prompt.setdefault(answer["example_id"], {**answer, "answers": []})
        shown["answers"].append((row, answer["answer"], answer["chrf"]))
    prompts = list(by_prompt.values())[:PROMPTS_SHOWN]
    return [
        {
            **one,
            "answers": one["answers"][:ANSWERS_SHOWN],
            "more": len(one["answers"][ANSWERS_SHOWN:]),
            "longest": SHORT_ANSWER_CHARS if len(one["answers"]) > MANY_ANSWERS else ANSWER_CHARS,
        }
        for one in prompts
    ]
