"""data/report/index.html: the comparison as one self-contained page that loads nothing and runs one script of ours."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipelines.clean import summary
from pipelines.clean.clean import current as current_examples
from pipelines.compare import covers, disturbed, figures, rates
from pipelines.compare.columns.evaluation import EVALUATION_ANSWERS
from pipelines.compare.columns.examples import SFT_REJECTS
from pipelines.compare.show import SHOWN, cell_text, full_name, pick_answer, row_text
from pipelines.files import write_text
from pipelines.foreign_text import plain
from pipelines.project import Project
from pipelines.schema import Column

Row = dict[str, Any]
PROMPTS_SHOWN = 6
ANSWERS_SHOWN = 24  # to one prompt
REJECTS_SHOWN = 10
HANGUL = re.compile(r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]")


@dataclass(frozen=True)
class Content:
    """What the page shows: rows of the tables comparison, picks, history, provider_comparison and evaluation_answers."""

    rows: Sequence[Row]
    picks: Sequence[Row] = ()
    history: Sequence[Row] = ()
    providers: Sequence[Row] = ()
    answers: Sequence[Row] = ()

    @classmethod
    def of(cls, rows: Sequence[Row], tables: Mapping[str, pa.Table]) -> "Content":
        """From the tables as they are published; of the answers only those to the prompts that are shown."""
        names = ("picks", "history", "provider_comparison")
        picks, history, providers = (tables[name].to_pylist() for name in names)
        answers = tables["evaluation_answers"]
        current = pc.is_in(answers["run_id"], pa.array([row["run_id"] for row in rows], pa.string()))  # pyright: ignore[reportAttributeAccessIssue]
        answers = answers.filter(current)
        prompts = answers["example_id"].unique()[:PROMPTS_SHOWN]
        shown = pc.is_in(answers["example_id"], prompts)  # pyright: ignore[reportAttributeAccessIssue]
        return cls(rows, picks, history, providers, answers.filter(shown).to_pylist())


def write_report(project: Project, content: Content) -> None:
    environment = Environment(loader=PackageLoader("pipelines.compare"), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"plain": plain, "lang": language_attribute}
    environment.globals |= {"cell_text": cell_text, "row_text": row_text, "pick_answer": pick_answer, "beside": _beside}
    script = (files("pipelines.compare") / "templates" / "report.js").read_text(encoding="utf-8")
    cleaned = current_examples(project.data)
    page = environment.get_template("report.html.j2").render(
        content=content,
        shown=SHOWN,
        rates_notes=rates.notes(content.rows),
        marks=disturbed.note(content.rows, full_name),
        reject_columns=SFT_REJECTS.pick("reason", "detail", "source", "record"),
        chrf=EVALUATION_ANSWERS["chrf"],
        cells=list(figures.of_cells(project, content.rows)),
        history=list(figures.of_history(content.history)),
        worse=[row for row in content.history if row["worse"]],
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
    write_text(project.data.report, page)


def _beside(row: Row, column: Column) -> str | None:
    """What the title of a marked value says; None where it is not marked."""
    return disturbed.in_words([row], lambda _: "it") if disturbed.is_marked(row, column.name) else None


def language_attribute(text: str) -> Markup:
    """` lang="ko"` for text with Hangul, so that it is drawn and read aloud as Korean; nothing for other text."""
    return Markup(' lang="ko"') if HANGUL.search(text[:2000]) else Markup("")


def _side_by_side(rows: Sequence[Row], answers: Sequence[Row]) -> list[Row]:
    """For each of the first prompts: the reference and what every row's model answered, in the order of the rows."""
    places = {row["run_id"]: (place, row) for place, row in enumerate(rows) if row["run_id"]}
    by_prompt: dict[str, Row] = {}
    for answer in sorted((a for a in answers if a["run_id"] in places), key=lambda a: places[a["run_id"]][0]):
        _, row = places[answer["run_id"]]
        shown = by_prompt.setdefault(answer["example_id"], {**answer, "answers": []})
        shown["answers"].append((f"{row['model']} × {row['method']}", answer["answer"], answer["chrf"]))
    prompts = list(by_prompt.values())[:PROMPTS_SHOWN]
    return [
        {**one, "answers": one["answers"][:ANSWERS_SHOWN], "more": len(one["answers"][ANSWERS_SHOWN:])}
        for one in prompts
    ]
