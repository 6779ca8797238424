"""The project and the cells that a command works on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.project import Project
    from pipelines.runs.cells import CellKey


def project_now(profile: str | None = None) -> Project:
    """The project with `profile`; without one, or with `auto`, the profile of this machine.

    Raises:
        UsageError: the configuration is wrong, or has no such profile.
    """
    from pipelines.lake.paths import data_root
    from pipelines.project import Project
    from pipelines.settings import experiments as configuration

    experiments = configuration.load()
    named = profile if profile and profile != "auto" else os.environ.get("FEATHERWEIGHT_PROFILE")
    return Project(data_root(), experiments, configuration.profile_name(experiments, named))


def rows_now(profile: str | None = None) -> Project:
    """`project_now` for a command that works on rows.

    The first call after an upgrade announces outdated rows.
    """
    from pipelines.lake.files import announce
    from pipelines.upkeep.upgrade import noticed

    project = project_now(profile)
    if older := noticed(project):
        announce(older.in_words())
    return project


def keys_of(project: Project, model: str, method: str, seeds: Sequence[int] | None) -> list[CellKey]:
    """The keys of a cell: one for each of `seeds`, or for each seed of the profile.

    Raises:
        UsageError: an unknown model or method.
    """
    from pipelines.runs.cells import CellKey

    project.experiments.model(model)
    project.experiments.method(method)
    return [CellKey(model, method, seed) for seed in dict.fromkeys(seeds or project.settings.seeds)]
