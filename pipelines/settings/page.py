"""The settings as a page of the documentation: docs/settings.md, generated from the models of
experiments.yaml.

`python -m pipelines.settings.page` writes it. A field's sentence is the text under it in the model.
The part after `Unset:` is what applies without the setting.
"""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, get_args

from pydantic import BaseModel

from pipelines.lake.files import write_text
from pipelines.lake.paths import PROJECT
from pipelines.settings.experiments import Experiments
from pipelines.settings.methods import DEFAULT_RATES
from pipelines.settings.training import TrainingOverrides, TrainingSettings

PATH = PROJECT / "docs" / "settings.md"
COMMAND = "python -m pipelines.settings.page"
# Units by the suffix of a name; the longest suffix comes first.
UNITS = {
    "price_per_hour": "USD an hour", "micro_batch_tokens": "tokens", "max_length": "tokens", "retime_after_days": "days",
    "_minutes": "minutes", "_seconds": "seconds", "_hours": "hours", "_chars": "characters", "_tokens": "tokens", "_share": "share",
    "_steps": "steps", "_usd": "USD", "_gb": "GB", "_mb": "MB", "epochs": "epochs", "search_cap": "share",
    "target_loss": "nats per token", "jaccard": "share", "probability": "share", "serving_batch": "requests",
}  # fmt: skip
PRICE_UNIT = "USD per million tokens"
# Settings that only the schedule, the sensors and the pages read.
ONLY_IN_DAGSTER = (
    "nightly.cron", "nightly.timezone", "nightly.profile", "nightly.budget_usd", "nightly.max_hours", "nightly.alarm_after_hours",
    "dagster.owners", "dagster.docs", "dagster.models", "dagster.methods",
)  # fmt: skip
ENVIRONMENT = {
    "FEATHERWEIGHT_DATA": "Folder of everything under `data/`; default: `data` of the checkout.",
    "FEATHERWEIGHT_EXPERIMENTS": "The settings file; default: `experiments.yaml` of the checkout.",
    "FEATHERWEIGHT_PROFILE": "Profile to work on; default `auto`: `gpu` with a CUDA device, else `local`.",
    "FEATHERWEIGHT_LOCKS": "Folder of the locks of this machine's devices; default: one for each user beside the temporary files.",
    "FEATHERWEIGHT_WEBHOOK_URL": "Address that failed runs and nights are posted to; only in Dagster.",
    "FEATHERWEIGHT_SCRATCH": "Folder for inputs and working copies on a node of a Ray cluster; default: its temporary folder.",
    "DAGSTER_HOME": "Dagster's instance; default in `make run` and `make ui`: `dagster` of the data folder.",
    "ANTHROPIC_API_KEY": "Key of providers of kind anthropic; by itself it causes no request.",
    "OPENAI_API_KEY": "Key of providers of kind openai; by itself it causes no request.",
    "HF_TOKEN": "Token of the Hugging Face hub, for gated models.",
    "HF_HOME": "Folder of the hub's own cache, which is read before anything is downloaded.",
    "HF_HUB_OFFLINE": "1: the hub is not asked.",
    "CUDA_VISIBLE_DEVICES": "Cards to use, by number or UUID; empty: the processor.",
    "RAY_AUTH_TOKEN": "Token of a Ray cluster that wants one.",
    "OMP_NUM_THREADS": "Threads of one process on a processor; default: as PyTorch chooses.",
    "OMP_WAIT_POLICY": "`passive` lets waiting threads sleep, for a machine with other work.",
}
PROSE_CHARS = 100
INTRODUCTION = f"""\
# Settings

Every setting of `experiments.yaml`. The shipped file names many of them; a setting that a file
leaves out has the default shown here. An unknown name or a wrong value is an error that names the
line.

- Names of models, methods, profiles and providers are lower-case letters, digits, `-` and `.`.
- Relative paths are relative to the folder of the file that names them, wherever a command is
  started. `~` is the home folder.
- On the command line they are relative to the folder you are in. `data/` and `experiments.yaml` are
  those of the checkout.
- A section that you paste over another one replaces all of it: what it leaves out has the default,
  not the earlier value.
- GB are 1e9 bytes, MB 1e6 bytes; shares are between 0 and 1.
- *Only in Dagster* marks settings that the commands of `featherweight` do not read.

This page is generated: `{COMMAND}` writes it
from the models in `pipelines/`."""


@dataclass(frozen=True)
class Setting:
    """One line of the page."""

    name: str
    type: str
    default: str
    unit: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """One model and its first place in the file, such as `profiles.NAME.evaluation`."""

    place: str
    model: type[BaseModel]


def page() -> str:
    """The page as Markdown."""
    return "\n".join(map(wrapped, _lines()))


def wrapped(text: str) -> str:
    """A line of prose as lines of at most 100 characters; rows of tables and several lines stay."""
    if text.startswith("|") or "\n" in text:
        return text
    indent = "  " if text.startswith("- ") else ""
    lines = textwrap.wrap(text, PROSE_CHARS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def _lines() -> Iterator[str]:
    yield from (INTRODUCTION, "")
    all_sections = sections()
    yield from (
        f"- [{one.place or 'experiments.yaml'}](#{anchor(one)}): {_about(one.model)[0]}" for one in all_sections
    )
    yield "- [Environment variables](#environment-variables)"
    for section in all_sections:
        yield from ("", f"## {section.place or 'experiments.yaml'}", "", " ".join(_about(section.model)), "")
        if issubclass(section.model, TrainingOverrides) and section.model is not TrainingOverrides:
            yield from ("Every setting of [training](#training) may stand here too.", "")
        yield from ("| setting | type | default | unit | what it is |", "| :--- | :--- | :--- | :--- | :--- |")
        yield from map(_line, settings(section))
    yield from ("", "## Environment variables", "", "| variable | what it is |", "| :--- | :--- |")
    yield from (f"| `{name}` | {meaning} |" for name, meaning in ENVIRONMENT.items())
    yield ""


def anchor(section: Section) -> str:
    """The anchor of the section's heading on GitHub."""
    return "".join(sign for sign in (section.place or "experimentsyaml").lower() if sign.isalnum() or sign in "-_")


def sections() -> list[Section]:
    """Every model that a file may hold, the file itself first.

    A model in several places counts at the shallowest.
    """
    result = [Section("", Experiments)]
    # The list grows during the loop.
    for section in result:
        for name, field in section.model.model_fields.items():
            if _is_shared(section.model, name):
                continue
            shown = f"{section.place}.{field.alias or name}".lstrip(".")
            for model, below in _models_in(field.annotation):
                if all(one.model is not model for one in result):
                    result.append(Section(shown + below, model))
    order = ["", *Experiments.model_fields]
    return sorted(result, key=lambda one: order.index(one.place.split(".")[0].removesuffix("[]")))


def _is_shared(model: type[BaseModel], name: str) -> bool:
    """Whether it is a training setting, which a model or a method may have like any other level."""
    return model is not TrainingOverrides and issubclass(model, TrainingOverrides) and name not in described(model)


def _models_in(annotation: Any, below: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """The models in an annotation, each with its path: `.NAME` into a mapping, `[]` into a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, below
    origin = getattr(annotation, "__origin__", None)
    step = {dict: ".NAME", list: "[]"}.get(origin, "") if origin else ""
    for inner in get_args(annotation):
        yield from _models_in(inner, below + step)


def _about(model: type[BaseModel]) -> list[str]:
    """The sentences of the model's docstring."""
    text = " ".join(inspect.cleandoc(model.__doc__ or "").split())
    return [f"{one.rstrip('.')}." for one in text.split(". ")]


def settings(section: Section) -> list[Setting]:
    """The settings of a section, except those that it shares with `training`."""
    schema, own = section.model.model_json_schema(), described(section.model)
    rows = []
    for name, field in section.model.model_fields.items():
        if field.exclude or _is_shared(section.model, name):
            continue
        meaning, unset = _split_meaning(own[name])
        shown = field.alias or name
        field_schema = schema["properties"][shown]
        default = "**required**" if field.is_required() else _default(section, name, unset)
        unit = PRICE_UNIT if section.place.endswith(".price") and name != "batch_share" else _unit(name, field_schema)
        only = " *Only in Dagster.*" if f"{section.place}.{shown}" in ONLY_IN_DAGSTER else ""
        rows.append(Setting(shown, _type(field_schema), default, unit, meaning + only))
    return rows


@cache
def described(model: type[BaseModel]) -> dict[str, str]:
    """The text under each field of a model in its source."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, text in pairwise(definition.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(sentence))):
                texts[name] = " ".join(sentence.split())
    return texts


def _split_meaning(text: str) -> tuple[str, str | None]:
    """The sentence, and what applies without the setting."""
    meaning, _, unset = text.partition(" Unset: ")
    return meaning, unset.rstrip(".") or None


def _default(section: Section, name: str, unset: str | None) -> str:
    if section.model is TrainingOverrides and name == "learning_rate":
        return "; ".join(f"{rate:g} for {kind}" for kind, rate in DEFAULT_RATES.items())
    model = TrainingSettings if section.model is TrainingOverrides else section.model
    default = model.model_fields[name].get_default(call_default_factory=True)
    if unset and default in (None, "default"):
        return unset
    if default is None:
        return "–"
    if isinstance(default, BaseModel) or default in ({}, []):
        return "empty" if default in ({}, []) else "its own defaults"
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def _unit(name: str, schema: Mapping[str, Any]) -> str:
    """The unit of a number, or of a list of numbers, by the setting's name."""
    forms = schema.get("anyOf") or schema.get("prefixItems") or [schema]
    if not {one.get("type") for one in forms} & {"number", "integer"}:
        return ""
    return next((unit for end, unit in UNITS.items() if name.endswith(end)), "")


# complexity: one case for each form that a JSON schema takes here
def _type(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if "$ref" in schema:
        return _reference(schema["$ref"].rpartition("/")[2])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])}: {_type(schema['prefixItems'][0])}"
        case "array":
            return f"list of {_type(schema['items'])}"
        case "object":
            patterns = list(schema.get("patternProperties", {}).values())
            inside = patterns[0] if patterns else schema.get("additionalProperties")
            names = f", with names of {_type(schema['propertyNames'])}" if "propertyNames" in schema else ""
            return f"mapping of name to {_type(inside) if isinstance(inside, dict) else 'value'}{names}"
        case "integer" | "number" as kind:
            return f"{'whole number' if kind == 'integer' else 'number'}{_range(schema)}"
        case "boolean":
            return "true or false"
        case _:
            return "text"


def _range(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[name]:g}" for name, sign in signs.items() if name in schema]
    return f" {' and '.join(limits)}" if limits else ""


def _reference(name: str) -> str:
    for section in sections():
        if section.model.__name__ == name:
            return f"[{section.place}](#{anchor(section)})"
    return "value"


def _line(one: Setting) -> str:
    cells = (f"`{one.name}`", one.type, one.default, one.unit, one.meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    write_text(PATH, page())
    print(PATH)
