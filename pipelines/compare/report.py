"""data/report/index.html: the comparison as one self-contained page."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipelines import cells
from pipelines.cells import CellKey
from pipelines.clean import summary
from pipelines.clean.clean import current as current_examples
from pipelines.compare import plots
from pipelines.compare.show import SHOWN, cell_text, plain
from pipelines.files import write_text
from pipelines.train.cell import Stage

Row = dict[str, Any]
ANSWERS_SHOWN = 6
REJECTS_SHOWN = 10


def curves_of(stage: Stage, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The newest attempt's curve of every row, by `method` (or `model method` where there are several models)."""
    several = len({row["model"] for row in rows}) > 1
    found = {}
    for row in rows:
        seed = stage.experiments.profile(stage.profile).seeds[0]
        attempt = cells.latest(stage.data, CellKey(row["model"], row["method"], seed))
        found[f"{row['model']} {row['method']}" if several else row["method"]] = attempt.curve() if attempt else []
    return found


def write_report(stage: Stage, rows: Sequence[Row], answers: Sequence[Row]) -> None:
    environment = Environment(loader=PackageLoader("pipelines.compare"), autoescape=True, undefined=StrictUndefined)
    environment.filters["plain"] = plain
    cleaned = current_examples(stage.data)
    pictures: Mapping[str, bytes | None] = {
        "trade_off": plots.trade_off(rows),
        "curves": plots.loss_curves(curves_of(stage, rows)),
        "reasons": plots.reasons_bar(cleaned.reasons) if cleaned else None,
        "lengths": plots.length_histograms(summary.length_counts(cleaned)) if cleaned else None,
    }
    page = environment.get_template("report.html.j2").render(
        rows=rows,
        shown=SHOWN,
        cell_text=cell_text,
        pictures={name: base64.b64encode(svg).decode() if svg else None for name, svg in pictures.items()},
        cleaned=cleaned,
        languages=summary.language_counts(cleaned) if cleaned else [],
        rejects=summary.sample_rejects(cleaned, REJECTS_SHOWN) if cleaned else [],
        answers=_side_by_side(rows, answers),
        profile=stage.profile,
    )
    write_text(stage.data.report, page)


def _side_by_side(rows: Sequence[Row], answers: Sequence[Row]) -> list[Row]:
    """For each of the first prompts: the reference and what every row's model answered."""
    current = {row["run_id"]: row for row in rows}
    by_prompt: dict[str, Row] = {}
    for answer in answers:
        if row := current.get(answer["run_id"]):
            shown = by_prompt.setdefault(answer["example_id"], {**answer, "answers": []})
            shown["answers"].append((f"{row['model']} × {row['method']}", answer["answer"], answer["chrf"]))
    return list(by_prompt.values())[:ANSWERS_SHOWN]
