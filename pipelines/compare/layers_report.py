"""The report's part on shortened models: what fewer layers cost in quality, and what they save
in memory and time."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from pipelines.compare import plots
from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.disturbed import is_marked
from pipelines.compare.drawing import Kind
from pipelines.compare.show import row_text
from pipelines.lake.schema import count, text
from pipelines.project import Project
from pipelines.settings.experiments import Experiments
from pipelines.settings.model_settings import Model

Row = dict[str, Any]
TITLE = "Fewer layers"
COLUMNS = (
    count("dropped", "Number of layers that were left out of the model.", heading="layers out"),
    *COMPARISON.pick("layers", "dropped_layers", "method"),
    text("quantization", "Quantization of the weights while training and answering; none: as they are."),
    *COMPARISON.pick(
        "status", "eval_bits_per_byte", "peak_memory_gb", "load_peak_memory_gb", "tokens_per_second", "answer_tokens_per_second",
        "total_params",
    ),
)  # fmt: skip
HOW_CHOSEN = (
    "layers that are not named are chosen on train records: the run in a row whose input and output are nearest by angle (arXiv "
    "2403.17887)"
)


def with_drop(row: Row, dropped: int, experiments: Experiments) -> Row:
    """The row with the number of its dropped layers and the quantization of its weights."""
    return {**row, "dropped": dropped, "quantization": experiments.method(row["method"]).quantization or "none"}


def families(experiments: Experiments, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The measured rows of every shortened model and of its whole model, by the whole model's
    name, the whole model first."""
    by_whole: dict[str, list[Row]] = {}
    for row in rows:
        model = experiments.models.get(row["model"])
        if model is None or row["eval_bits_per_byte"] is None:
            continue
        whole, dropped = _whole(row["model"], model)
        by_whole.setdefault(whole, []).append(with_drop(row, dropped, experiments))
    shortened = {whole: of for whole, of in by_whole.items() if any(row["dropped"] for row in of)}
    return {whole: sorted(of, key=lambda row: row["dropped"]) for whole, of in shortened.items()}


def _whole(name: str, model: Model) -> tuple[str, int]:
    """The name of the whole model that this one was shortened from, and the number of dropped
    layers (0 for a whole model)."""
    parent, drop = model.parent, model.source.drop_layers
    if parent is None or model.source.parent is None:
        return name, 0
    whole, before = _whole(model.source.parent, parent)
    if drop is None:
        return (whole, before) if before else (name, 0)
    return whole, before + (len(drop) if isinstance(drop, list) else drop)


def picture(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """Draw a line for each whole model and method; None if no row was measured."""
    lines: dict[str, list[Row]] = {}
    several = len({row.get("whole") for row in rows}) > 1
    for row in rows:
        quantized = "" if row["quantization"] == "none" else f" ({row['quantization']})"
        name = f"{row['whole']} {row['method']}" if several else row["method"]
        lines.setdefault(name + quantized, []).append(row)
    return plots.by_layers(lines, kind)


def section(project: Project, rows: Sequence[Row]) -> Markup | None:
    """The part as HTML: picture, caption, numbers; None if no shortened model was measured."""
    known = [{**row, "whole": whole} for whole, of in families(project.experiments, rows).items() for row in of]
    drawn = picture(known) if known else None
    if drawn is None:
        return None
    says = f"Models without some of their layers, beside the whole ones; {HOW_CHOSEN}."
    if any(is_marked(row, "tokens_per_second") for row in known):
        says += " Speeds measured beside other programs are left out."
    return Markup(
        '<figure aria-labelledby="layers-title"><h3 id="layers-title">{}</h3>'
        '<div role="img" aria-labelledby="layers-title" aria-describedby="layers-says">{}</div>'
        '<figcaption id="layers-says">{}</figcaption>'
        "<details><summary>The numbers of “{}”</summary>"
        '<div class="scroll" role="region" aria-label="Numbers of {}" tabindex="0"><table><caption>{}</caption>{}</table></div>'
        "</details></figure>"
    ).format(TITLE, Markup(drawn.decode()), says, TITLE, TITLE, TITLE, _numbers(known))


def _numbers(rows: Sequence[Row]) -> Markup:
    columns = (*COMPARISON.pick("model"), *COLUMNS)
    head = Markup("").join(
        Markup('<th scope="col" title="{}">{}</th>').format(column.description, column.heading) for column in columns
    )
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                Markup('<td class="number">{}</td>' if column.digits is not None else "<td>{}</td>").format(
                    row_text(row, column)
                )
                for column in columns
            )
        )
        for row in rows
    )
    return Markup("<thead><tr>{}</tr></thead><tbody>{}</tbody>").format(head, body)
