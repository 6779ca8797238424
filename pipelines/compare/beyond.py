"""The report's section on what a loss leaves open: did tuning help at the task, did it cost elsewhere, was it needed at all?

Each part is a function of a module of its own, (rows, tables) → HTML, or None where nothing of it was measured. Parts stand in the
order of PARTS. `pieces.Part` makes one that looks like the others.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from pipelines.compare import benchmark_report, layers_report, metric_report, pair_report, retrieval_section
from pipelines.project import Project

Row = dict[str, Any]
Section = Callable[[Sequence[Row], Mapping[str, pa.Table]], Markup | None]
TITLE = "Better at the task? Worse elsewhere? Needed at all?"
PARTS: tuple[Section, ...] = (
    metric_report.section,
    pair_report.section,
    benchmark_report.section,
    retrieval_section.section,
)


def parts(rows: Sequence[Row], tables: Mapping[str, pa.Table], project: Project | None = None) -> list[Markup]:
    """The section's parts for the rows of the comparison, and the tables that are published beside it; last the part on fewer
    layers, which needs to know the models."""
    sections = [part(rows, tables) for part in PARTS]
    layers = layers_report.section(project, rows) if project else None
    return [one for one in (*sections, layers) if one]
