"""The cells outside the profile that were run by hand. Texts about their rows are in outside.py,
which has no heavy imports."""

from pipelines.project import Project
from pipelines.runs import cells
from pipelines.runs.cells import CellKey


def cells_outside(project: Project) -> dict[tuple[str, str], list[CellKey]]:
    """(model, method) → its seeds that ran under the profile, in the order of experiments.yaml.

    A cell that ran under another profile belongs to that profile. A cell that experiments.yaml no
    longer names cannot be compared. Table training_runs holds both.
    """
    known = [cell for cell in project.experiments.cells if cell not in set(project.grid)]
    seeds = {cell: _seeds_of(project, cell) for cell in known if (project.data.cells / cell[0] / cell[1]).is_dir()}
    return {cell: keys for cell, keys in seeds.items() if keys}


def _seeds_of(project: Project, cell: tuple[str, str]) -> list[CellKey]:
    folders = (project.data.cells / cell[0] / cell[1]).iterdir()
    seeds = sorted(int(one.name) for one in folders if one.name.lstrip("-").isdigit())
    keys = [CellKey(*cell, seed) for seed in seeds]
    return [
        key for key in keys if (newest := cells.latest(project.data, key)) and newest.spec.profile == project.profile
    ]
