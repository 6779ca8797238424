"""What a person may set for one run in the launchpad, and what a night sets by the tags of its runs."""

import json
from typing import Any

import dagster as dg
from pydantic import Field, field_validator

from assets.project import ProfileConfig, project_now
from assets.tags import NIGHT, SEEN
from pipelines.choices import Choices
from pipelines.nightly.night import begin, limit_reached, money_left
from pipelines.project import ANY, Project, Resolved

# Dagster's launchpad offers no field whose default is null, so that a limit which is off has a number
ALL, NO_CAP = 0, -1.0


def night_of(run: dg.DagsterRun) -> str | None:
    """The night that the run belongs to, under whose budget and hours it works."""
    return run.tags.get(NIGHT)


def seen_by(run: dg.DagsterRun) -> dict[str, str]:
    """Each seed's newest attempt when a night asked for this run; empty where a person did."""
    return json.loads(run.tags.get(SEEN, "{}"))


def _require_cap(value: float | None) -> float | None:
    if value is not None and value < 0 and value != NO_CAP:
        raise ValueError(f"got {value:g}; expected dollars, 0 or more, or {NO_CAP:g} for no cap")
    return value


class Spending(dg.Config):
    """What one materialization may spend."""

    budget_usd: float | None = Field(
        NO_CAP, description="This run's own cap in dollars, below those of experiments.yaml; -1: those alone."
    )
    _cap = field_validator("budget_usd")(_require_cap)

    def cap(self, project: Project, run: dg.DagsterRun) -> float | None:
        """Dollars that this run may spend: its own cap, and what is left to its night."""
        caps = [] if self.budget_usd in (None, NO_CAP) else [self.budget_usd]
        if night := night_of(run):
            left = money_left(project, project.experiments.nightly, begin(project.data, night)["started_at"])
            caps += [max(left, 0.0)] if left is not None else []
        return min(caps, default=None)


class AskConfig(Spending):
    """What one materialization may spend, and whom it asks."""

    providers: list[str] = Field([], description="Ask only these of the enabled providers; empty: all of them.")


class JudgingConfig(Spending, ProfileConfig):
    """What one materialization may spend, and on whose cells."""


class CellConfig(dg.Config):
    """What one materialization, or every one of a backfill, does other than usual."""

    force: bool = Field(False, description="Train and evaluate also where the last result is current.")
    seeds: list[int] = Field([], description="Only these seeds; empty: the profile's.")
    max_examples: int | None = Field(
        ALL,
        description="Train on at most so many examples, as a trial; its row is stale, since the profile asks for more. 0: on all.",
    )
    budget_usd: float | None = Field(
        NO_CAP,
        description="Stop (timed_out, with a checkpoint) at this cost by the profile's price_per_hour; -1: no cap.",
    )
    profile: str = Field(
        "auto", description="Whose settings count: a profile of experiments.yaml; auto: this machine's."
    )
    outside_profile: bool = Field(
        False, description="Where every partition was chosen, also run those that the profile does not name."
    )
    rerun_for: list[str] = Field(
        list(ANY),
        description="Make a good row again only where one of these has changed. `make run` and the nightly leave out what "
        "nightly.rerun_for does.",
    )
    retime: bool = Field(
        False,
        description="Train a good row that nothing has changed since again, for its speed; it stays unless the new one ends ok.",
    )
    _cap = field_validator("budget_usd")(_require_cap)

    @field_validator("max_examples")
    @classmethod
    def _require_count(cls, value: Any) -> Any:
        if value is not None and value < 0:
            raise ValueError(f"got {value}; expected a number of examples, or 0 for all")
        return value

    @property
    def cap_usd(self) -> float | None:
        """The run's own cap; None where it has none."""
        return None if self.budget_usd == NO_CAP else self.budget_usd

    @property
    def choices(self) -> Choices:
        return Choices(self.max_examples or None, self.cap_usd)

    def project(self) -> Project:
        return project_now(self.profile)

    def applied(self, resolved: Resolved, cell: tuple[str, str], began: str, run: dg.DagsterRun) -> Resolved:
        """With what the next seed, or evaluation, of a run that `began` then may use. Cells that run side by side elsewhere share
        what is left to the night."""
        project, caps = resolved.project, []
        if night := night_of(run):
            left = money_left(project, project.experiments.nightly, begin(project.data, night)["started_at"])
            caps = [max(left, 0.0) / project.launcher().at_once] if left is not None else []
        return self.choices.applied(resolved, cell, began, other_caps=caps)


class BaseConfig(ProfileConfig):
    """What one materialization of an untouched model does other than usual."""

    force: bool = Field(False, description="Evaluate also where the last result is current.")
    outside_profile: bool = Field(
        False, description="Where every model was chosen, also evaluate those that the profile does not name."
    )


def night_is_over(project: Project, run: dg.DagsterRun) -> str | None:
    """Why the night that asked for the run begins no further cell; None where it does, or where no night asked."""
    night = night_of(run)
    if night is None:
        return None
    nightly = project.experiments.nightly
    return limit_reached(project, nightly, begin(project.data, night)["started_at"])
