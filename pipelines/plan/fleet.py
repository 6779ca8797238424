"""The devices of a plan: this machine's, or those of a small YAML file that is checked as
strictly as experiments.yaml."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from pipelines.errors import UsageError
from pipelines.estimate.estimate import machine_gb
from pipelines.hardware import machine
from pipelines.records.expected import NO_VALUE, what_is_wrong
from pipelines.runs.launchers.chosen import launcher_for
from pipelines.settings.experiments import parse
from pipelines.settings.profiles import Profile
from pipelines.settings.strict import Slug, Strict
from pipelines.settings.yaml_file import MESSAGE_CHARS, cut, joined


class Node(Strict):
    """`count` equal machines, each with `devices` devices of `memory_gb`.

    `device` is the name in the column `device` of past rows; such rows give the seconds. `tflops`
    is the sustained rate of one device in training, in 10^12 operations per second. It is used if
    there is no such row. `price_per_hour`: dollars for one device.
    """

    name: Slug
    kind: Literal["cpu", "gpu"]
    devices: PositiveInt = 1
    memory_gb: PositiveFloat
    count: PositiveInt = 1
    device: str | None = None
    tflops: PositiveFloat | None = None
    price_per_hour: Annotated[float, Field(ge=0)] | None = None

    def machines(self) -> list[str]:
        """The names of the machines."""
        return [self.name] if self.count == 1 else [f"{self.name}-{number}" for number in range(1, self.count + 1)]


class Fleet(Strict):
    nodes: Annotated[list[Node], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> "Fleet":
        names = Counter(name for node in self.nodes for name in {node.name, *node.machines()})
        if duplicates := sorted(name for name, count in names.items() if count > 1):
            raise ValueError(
                f"nodes: {', '.join(duplicates)} is named twice; equal machines are one entry with count, named box-1, box-2, …"
            )
        return self

    def machines(self) -> list["Machine"]:
        """Every single machine; an entry with a count becomes `box-1`, `box-2`, …"""
        return [Machine(name, node) for node in self.nodes for name in node.machines()]


@dataclass(frozen=True)
class Machine:
    """One machine of a fleet."""

    name: str
    node: Node


def load(path: Path) -> Fleet:
    """Read a cluster file.

    Raises:
        UsageError: missing file, not YAML, an unknown key or a wrong value; every error on a line
            of its own.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file; expected YAML with nodes: [{{name, kind, devices, memory_gb, …}}]")
    content, _ = parse(path)
    try:
        return Fleet.model_validate(content)
    except ValidationError as error:
        raise UsageError(joined([f"{path}: {_explain(content, item)}" for item in error.errors()])) from None


def _explain(content: Any, item: Any) -> str:
    place = list(item["loc"])
    if item["type"] == "unknown_key":
        place.append(item["ctx"]["key"])
    path = cut(".".join(str(part) for part in place)) or "the file"
    if len(place) > 1 and place[0] == "nodes" and isinstance(place[1], int):
        node = content["nodes"][place[1]]
        known = node.get("name") if isinstance(node, dict) else None
        path = cut(".".join(str(part) for part in (f"nodes[{known or place[1]}]", *place[2:])))
    message = cut(what_is_wrong(item), MESSAGE_CHARS)
    shown = "" if item["type"] in NO_VALUE else f"got {cut(repr(item.get('input')))}; "
    return f"{path}: {shown}{message}"


def this_machine(profile: Profile) -> Fleet:
    """The device on which cells run here, one at a time.

    If the profile divides a cell over several devices here, the fleet has all of them: cards, or
    processes that share this machine's memory.
    """
    kind, cards = ("gpu", machine.cuda_count()) if machine.cuda_name() else ("cpu", profile.devices)
    devices = cards if profile.devices > 1 and launcher_for(profile).holds_device else 1
    gb = machine_gb() / (devices if kind == "cpu" else 1)
    price = None if profile.price_per_hour is None else profile.price_per_hour / devices
    here = Node(
        name="here", kind=kind, devices=devices, memory_gb=math.floor(gb * 100) / 100, device=machine.machine_class(),
        price_per_hour=price,
    )  # fmt: skip
    return Fleet(nodes=[here])
