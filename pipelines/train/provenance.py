"""The origin of a saved model, by public names: never a folder of this machine."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import yaml

from pipelines.lake.files import read_json, write_json
from pipelines.lake.weights_record import origin_of, packaged_name, packages
from pipelines.records.foreign_text import one_line
from pipelines.settings.methods import traits_of
from pipelines.weights.shortened import in_words, record_of_layers

CARD_RECIPE = (
    "kind", "rank", "alpha", "dropout", "rslora", "dora", "peft", "quantization", "targets", "learning_rate", "epochs",
    "examples_per_step", "optimizer", "prompt", "template",
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """The base model: a hub repository and its commit, a package and its version, or only the name
    of a folder.

    `license` is the hub's name of its licence, and `license_link` the page with the terms.
    """

    name: str
    revision: str | None = None
    of_hub: bool = False
    license: str | None = None
    license_link: str | None = None


def base_of(folder: Path, licence: Mapping[str, str | None] | None = None) -> Base:
    """The base in `folder`, with the licence that the model's record names."""
    base = _whole_base_of(folder, licence)
    if not (layers := record_of_layers(folder)):
        return base
    # An adapter for the shortened model does not fit the hub's model of that name.
    return replace(base, name=f"{base.name} without its layers {in_words(layers['dropped'])}", of_hub=False)


def _whole_base_of(folder: Path, licence: Mapping[str, str | None] | None) -> Base:
    record = origin_of(folder)
    source: dict[str, Any] = record.get("source") or {}
    known: dict[str, Any] = dict(licence or {})
    if source.get("hub"):
        return Base(source["hub"], record.get("commit") or source.get("revision"), of_hub=True, **known)
    if source.get("wheel"):
        parts = packages(source["wheel"], source["file"])
        names, versions = zip(*(package.split("==") for package, _ in parts), strict=True)
        # A phrase, so that nobody takes it for a hub repository.
        packaged = f"{packaged_name(source['file'])} of the Python package {', '.join(names)}"
        return Base(packaged, ", ".join(dict.fromkeys(versions)), **known)
    if source.get("random"):
        return Base(f"random weights in the shape of {source['random']}", **known)
    return Base(record.get("folder", folder.name), **known)


def data_of(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The sources of the training records with their counts, the largest first.

    The source of generated records is the model that answered. A path on this machine appears by
    its last part alone.
    """
    counts = Counter((_source_of(record), bool(record.get("provider"))) for record in records)
    return [{"source": name, "generated": made, "records": n} for (name, made), n in counts.most_common()]


def _source_of(record: Mapping[str, Any]) -> str:
    if record.get("provider"):
        return f"{_without_folder(record.get('model') or 'a model')} ({record['provider']})"
    return _without_folder(record["source"])


def _without_folder(name: str) -> str:
    """A hub name (`owner/name`) as it is; the last part of a path on this machine."""
    return name if _HUB_ID.match(name) and not Path(name).exists() else PurePath(name.replace("\\", "/")).name


def data_in_words(data: Iterable[Mapping[str, Any]]) -> str:
    """`966 of records.json, 34 answered by MODEL (claude)`."""
    phrases = [f"{one['records']} {'answered by' if one['generated'] else 'of'} {one['source']}" for one in data]
    return ", ".join(phrases)


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z", re.ASCII)


def name_base(adapter: Path, base: Base) -> None:
    """Put the base's public name into an adapter's configuration, where PEFT wrote local
    folders."""
    config = read_json(adapter / "adapter_config.json") or {}
    changes = {"base_model_name_or_path": base.name, "revision": base.revision if base.of_hub else None}
    # Prompt tuning that starts from words also names the tokenizer's folder.
    if config.get("tokenizer_name_or_path"):
        changes["tokenizer_name_or_path"] = base.name
    write_json(adapter / "adapter_config.json", {**config, **changes})


def adapter_card(spec: Mapping[str, Any], base: Base, data: Sequence[Mapping[str, Any]]) -> str:
    """An adapter's model card. It replaces PEFT's, which names a local folder and is otherwise a
    blank form."""
    traits = traits_of(spec["recipe"])
    return "\n".join(
        [
            *front_matter(base, data, library="peft", tags=("featherweight", str(traits.peft_type).lower()), relation="adapter"),
            f"# {spec['model']} {spec['method']}", "",
            f"{traits.an_adapter}, trained by Featherweight: method `{spec['method']}`, seed {spec['seed']}.", "",
            "| | |", "| --- | --- |",
            *rows(base, data, spec["recipe"]),
            *(f"| {name} fingerprint | {in_code(value)} |" for name, value in (spec.get("fingerprints") or {}).items() if value),
            "",
            terms(base), "",
        ]
    )  # fmt: skip


def terms(base: Base) -> str:
    """The terms for distributing the weights."""
    of_base = f"licence of the base model ({base.license_link})" if base.license_link else "licence of the base model"
    return f"The {of_base} and the terms of the data it was trained on apply."


def front_matter(
    base: Base,
    data: Sequence[Mapping[str, Any]],
    *,
    library: str,
    tags: Sequence[str],
    relation: str,
    more: Mapping[str, Any] | None = None,
) -> list[str]:
    """The YAML front matter of a card, as lines between two lines of dashes; the fields of `more`
    come last."""
    from_hub = [one["source"] for one in data if not one["generated"] and _HUB_ID.match(one["source"])]
    fields = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        **({"base_model": base.name, "base_model_relation": relation} if base.of_hub else {}),
        **({"license": base.license} if base.license else {}),
        **({"license_link": base.license_link} if base.license_link else {}),
        **({"datasets": from_hub} if from_hub else {}),
        "tags": list(tags),
        **(more or {}),
    }
    return ["---", yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=120).rstrip(), "---", ""]


def rows(base: Base, data: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any]) -> list[str]:
    """The base, the data and the settings as rows of a card's table."""
    fields = {"base": base.name, "base revision": base.revision, "base licence": base.license}
    fields |= {"trained on": data_in_words(data) or None}
    fields |= {name: recipe[name] for name in CARD_RECIPE if recipe.get(name) not in (None, {}, False)}
    return [f"| {name} | {in_code(value)} |" for name, value in fields.items() if value is not None]


def in_code(value: Any) -> str:
    """A value as code inside a Markdown table: one line, without characters that end the code or
    the cell."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    line = re.sub(r"[`|\s]+", " ", one_line(text, 2000)).strip()
    return f"`{line}`"


def in_prose(text: str) -> str:
    """A foreign text as one Markdown paragraph that reads as written: its markup, HTML and links
    have no effect."""
    escaped = re.sub(r"([\\`*_\[\]<>|~&!])", r"\\\1", " ".join(one_line(text, 2000).split()))
    return re.sub(r"\A([#+=-])", r"\\\1", escaped)
