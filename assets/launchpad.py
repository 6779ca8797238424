"""The options of one run in the launchpad, and those that a night sets by the tags of its runs."""

import json
from typing import Any

import dagster as dg
from pydantic import Field, field_validator

from assets.project import ProfileConfig, project_now
from assets.tags import NIGHT, SEEN
from pipelines.choices import Choices
from pipelines.nightly.night import begin, limit_reached, money_left
from pipelines.project import ANY, Project, Resolved

# Dagster's launchpad omits fields whose default is null, so a disabled limit has a number.
ALL, NO_CAP = 0, -1.0


def night_of(run: dg.DagsterRun) -> str | None:
    """The night that the run belongs to; its budget and hours apply to the run."""
    return run.tags.get(NIGHT)


def seen_by(run: dg.DagsterRun) -> dict[str, str]:
    """Each seed's newest attempt when a night requested this run; empty for a manual run."""
    return json.loads(run.tags.get(SEEN, "{}"))


def _require_cap(value: float | None) -> float | None:
    if value is not None and value < 0 and value != NO_CAP:
        raise ValueError(f"got {value:g}; expected dollars, 0 or more, or {NO_CAP:g} for no cap")
    return value


class Spending(dg.Config):
    """The budget of one materialization."""

    budget_usd: float | None = Field(
        NO_CAP, description="A cap for this run in dollars, below those of experiments.yaml; -1: only those."
    )
    _cap = field_validator("budget_usd")(_require_cap)

    def cap(self, project: Project, run: dg.DagsterRun) -> float | None:
        """Dollars that this run may spend: the smaller of its own cap and its night's remaining
        budget."""
        caps = [] if self.budget_usd in (None, NO_CAP) else [self.budget_usd]
        if night := night_of(run):
            left = money_left(project, project.experiments.nightly, begin(project.data, night)["started_at"])
            caps += [max(left, 0.0)] if left is not None else []
        return min(caps, default=None)


class AskConfig(Spending):
    """The budget of one materialization, and the providers to ask."""

    providers: list[str] = Field([], description="Ask only these of the enabled providers; empty: all of them.")


class JudgingConfig(Spending, ProfileConfig):
    """The budget of one materialization, and the profile whose cells it covers."""


class CellConfig(dg.Config):
    """Options of one materialization, or of all in a backfill."""

    force: bool = Field(False, description="Train and evaluate even if the last result is current.")
    seeds: list[int] = Field([], description="Only these seeds; empty: the profile's.")
    max_examples: int | None = Field(
        ALL,
        description="A trial on at most so many examples; its row is stale, since the profile asks for more. 0: all examples.",
    )
    budget_usd: float | None = Field(
        NO_CAP,
        description="Stop (timed_out, with a checkpoint) at this cost by the profile's price_per_hour; -1: no cap.",
    )
    profile: str = Field(
        "auto", description="The profile whose settings apply, from experiments.yaml; auto: this machine's."
    )
    outside_profile: bool = Field(
        False, description="If every partition was chosen, also run those outside the profile."
    )
    rerun_for: list[str] = Field(
        list(ANY),
        description="Rerun a good row only if one of these has changed. `make run` and the nightly use nightly.rerun_for.",
    )
    retime: bool = Field(
        False,
        description="Train a current row again to measure its speed; the old row stays unless the new attempt ends ok.",
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
        """The run's own cap, None without one."""
        return None if self.budget_usd == NO_CAP else self.budget_usd

    @property
    def choices(self) -> Choices:
        return Choices(self.max_examples or None, self.cap_usd)

    def project(self) -> Project:
        return project_now(self.profile)

    def applied(self, resolved: Resolved, cell: tuple[str, str], began: str, run: dg.DagsterRun) -> Resolved:
        """`resolved` with the limits for the next seed or evaluation of a run that `began` then.

        Cells that run in parallel elsewhere share the night's remaining budget.
        """
        project, caps = resolved.project, []
        if night := night_of(run):
            left = money_left(project, project.experiments.nightly, begin(project.data, night)["started_at"])
            caps = [max(left, 0.0) / project.launcher().at_once] if left is not None else []
        return self.choices.applied(resolved, cell, began, other_caps=caps)


class BaseConfig(ProfileConfig):
    """Options of one materialization of an untouched model."""

    force: bool = Field(False, description="Evaluate even if the last result is current.")
    outside_profile: bool = Field(
        False, description="If every model was chosen, also evaluate those outside the profile."
    )


def night_is_over(project: Project, run: dg.DagsterRun) -> str | None:
    """Why the night of this run starts no further cell; None if it does, or if the run has no
    night."""
    night = night_of(run)
    if night is None:
        return None
    nightly = project.experiments.nightly
    return limit_reached(project, nightly, begin(project.data, night)["started_at"])
