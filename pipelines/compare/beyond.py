"""The report's section on questions that a loss leaves open: did tuning help at the task, cost
elsewhere, or was it needed at all?

Each part is a function in a module of its own: (rows, tables) → HTML, or None if nothing of it was
measured. Parts appear in the order of PARTS. `pieces.Part` gives them a common look.
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
    """The section's parts, from the rows of the comparison and the tables published with it.

    The part on fewer layers comes last. It needs the models of the project.
    """
    sections = [part(rows, tables) for part in PARTS]
    layers = layers_report.section(project, rows) if project else None
    return [one for one in (*sections, layers) if one]
