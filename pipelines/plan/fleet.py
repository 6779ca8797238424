"""The devices that a plan is made for: this machine's, or those of a small YAML file, checked as strictly as experiments.yaml."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from pipelines import machine
from pipelines.errors import UsageError
from pipelines.estimate.estimate import machine_gb
from pipelines.settings import Slug, Strict


class Node(Strict):
    """`count` machines alike, each with `devices` of `memory_gb`. `device` is what rows say in their column `device`: past rows
    of the same name give the seconds. `tflops` is what one device sustains in training, in 10^12 operations a second, for where
    there is no such row. `price_per_hour`: dollars for one device."""

    name: Slug
    kind: Literal["cpu", "gpu"]
    devices: PositiveInt = 1
    memory_gb: PositiveFloat
    count: PositiveInt = 1
    device: str | None = None
    tflops: PositiveFloat | None = None
    price_per_hour: Annotated[float, Field(ge=0)] | None = None


class Fleet(Strict):
    nodes: Annotated[list[Node], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> "Fleet":
        names = [node.name for node in self.nodes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"nodes: {', '.join(twice)} is named twice; machines that are alike are one entry with count"
            )
        return self

    def machines(self) -> list["Machine"]:
        """Every machine by itself, `box-1`, `box-2`, … where an entry counts several."""
        return [
            Machine(node.name if node.count == 1 else f"{node.name}-{number}", node)
            for node in self.nodes
            for number in range(1, node.count + 1)
        ]


@dataclass(frozen=True)
class Machine:
    """One machine of a fleet."""

    name: str
    node: Node


def load(path: Path) -> Fleet:
    """Read a cluster file.

    Raises:
        UsageError: not there, not YAML, an unknown key or a wrong value; every fault on a line of its own.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such file; expected YAML with nodes: [{{name, kind, devices, memory_gb, …}}]"
        ) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not YAML: {getattr(error, 'problem', None) or error}") from None
    try:
        return Fleet.model_validate(found)
    except ValidationError as error:
        raise UsageError("\n".join(f"{path}: {_explain(found, item)}" for item in error.errors())) from None


def _explain(found: Any, item: Any) -> str:
    place = list(item["loc"])
    if item["type"] == "unknown_key":
        place.append(item["ctx"]["key"])
    named = ".".join(str(part) for part in place) or "the file"
    if len(place) > 1 and place[0] == "nodes" and isinstance(place[1], int):
        node = found["nodes"][place[1]]
        known = node.get("name") if isinstance(node, dict) else None
        named = ".".join(str(part) for part in (f"nodes[{known or place[1]}]", *place[2:]))
    message = item["msg"].removeprefix("Value error, ")
    shown = "" if item["type"] in ("missing", "unknown_key", "value_error") else f"got {item.get('input')!r}; "
    return f"{named}: {shown}{message}"


def this_machine(price_per_hour: float | None) -> Fleet:
    """The device that cells run on here, one at a time."""
    kind = "gpu" if machine.cuda_name() else "cpu"
    gb = math.floor(machine_gb() * 100) / 100
    here = Node(name="here", kind=kind, memory_gb=gb, device=machine.machine_class(), price_per_hour=price_per_hour)
    return Fleet(nodes=[here])
