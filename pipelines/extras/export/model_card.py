"""The model card of an export: front matter for hubs, origin of the weights, measurements,
loading."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipelines.settings.methods import traits_of
from pipelines.train import provenance
from pipelines.train.provenance import Base, in_code, in_prose
from pipelines.train.trainer.templates import DAY

Json = dict[str, Any]
Kind = Literal["adapter", "merged", "gguf"]
LIBRARY: dict[Kind, str] = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
# Measurements during merging: the distance of the written weights from the trained result.
MERGED = (
    "adapter_bits_per_byte", "merged_bits_per_byte", "merged_into_original_bits_per_byte", "largest_difference_nats",
    "eval_records",
)  # fmt: skip
# Metrics of an evaluation, with their names on hubs.
METRICS = {
    "eval_bits_per_byte": "bits per byte", "eval_loss": "cross entropy (nats per token)", "bleu": "BLEU", "chrf": "chrF",
    "rouge_l": "ROUGE-L", "meteor": "METEOR",
}  # fmt: skip
# Columns of the comparison on the card, besides the metrics.
COMPARED = (
    "status", "is_stale", "seeds", "base_bits_per_byte", "eval_bits_per_byte", "eval_bits_per_byte_low", "eval_bits_per_byte_high",
    "train_loss", "train_seconds", "tokens_per_second", "peak_memory_gb", "trainable_params", "total_params", "artifact_mb",
    "device", "finished_at", "run_id",
)  # fmt: skip


def card(kind: Kind, spec: Mapping[str, Any], measured: Mapping[str, Any], base: Base) -> str:
    """The card of an export, from its spec and the measurements of the written weights."""
    origin, traits = spec["origin"], traits_of(spec["recipe"])
    made = f"{traits.an_adapter}: it is loaded on a base that stays unchanged." if kind == "adapter" else spec["made"]
    load = {"adapter": _with_peft, "merged": _with_transformers, "gguf": _with_llama_cpp}[kind]
    return "\n".join(
        [
            *_front(kind, spec, base),
            f"# {spec['name']}", "",
            f"Made by Featherweight: model `{origin['model']}`, method `{origin['method']}`, seed {origin['seed']}. {made}", "",
            "## How to load it", "",
            *load(spec, base),
            *_prompt(measured),
            *([in_prose(spec["note"]), ""] if spec["note"] else []),
            "## What it is", "",
            "| | |", "| --- | --- |",
            *provenance.rows(base, spec["data"], spec["recipe"]),
            *(f"| {_title(name)} | {in_code(value)} |" for name, value in origin.items() if value is not None),
            *(f"| {name.replace('_', ' ')} | {value:.6g} |" for name, value in measured.items() if name in MERGED),
            "",
            *_compared(spec.get("row")),
            provenance.terms(base), "",
        ]
    )  # fmt: skip


def _title(name: str) -> str:
    """The row's title. `trained_on` is the device; another row names the training data."""
    return "trained by" if name == "trained_on" else name.replace("_", " ")


def _front(kind: Kind, spec: Mapping[str, Any], base: Base) -> list[str]:
    traits = traits_of(spec["recipe"])
    relation = "adapter" if kind == "adapter" else "finetune" if traits.trains else "quantized"
    return provenance.front_matter(
        base,
        spec["data"],
        library=LIBRARY[kind],
        tags=["featherweight", *([str(traits.peft_type).lower()] if traits.peft_type else [])],
        relation=relation,
        more=model_index(spec["name"], spec.get("evaluated") or {}),
    )


def model_index(name: str, evaluated: Mapping[str, Any]) -> Json:
    """The metrics of an evaluation in the format of hubs; {} without metrics."""
    metrics = [
        {"type": metric, "name": title, "value": round(float(evaluated[metric]), 6)}
        for metric, title in METRICS.items()
        if evaluated.get(metric) is not None
    ]
    if not metrics:
        return {}
    task = {"type": "text-generation", "name": "Text generation"}
    data = {"type": "featherweight-held-out", "name": "Held-out records of the same data", "split": "eval"}
    return {"model-index": [{"name": name, "results": [{"task": task, "dataset": data, "metrics": metrics}]}]}


def _with_peft(spec: Mapping[str, Any], base: Base) -> list[str]:
    """The code to load an adapter on its base. A quantized base needs the same quantization
    again."""
    known = base.of_hub
    name, revision = (json.dumps(base.name), base.revision) if known else ('"PATH_OF_THE_BASE"', None)
    at = f", revision={json.dumps(revision)}" if revision else ""
    quantization = spec["recipe"].get("quantization")
    lines = [
        "```python", "from peft import PeftModel",
        f"from transformers import AutoModelForCausalLM, AutoTokenizer{', BitsAndBytesConfig' if quantization else ''}", "",
    ]  # fmt: skip
    how = ""
    if quantization:
        lines += [f"quantized = {_bits_and_bytes(spec['recipe'])}"]
        how = ", quantization_config=quantized"
    lines += [
        f"base = AutoModelForCausalLM.from_pretrained({name}{at}{how})",
        'model = PeftModel.from_pretrained(base, "PATH_OR_NAME_OF_THIS")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH_OR_NAME_OF_THIS")',
        "```", "",
    ]  # fmt: skip
    if not known:
        lines += [
            f"This base has no known name on a hub: it is {in_code(base.name)}. On the machine that trained the "
            "adapter it is in `models/` of the data folder.", "",
        ]  # fmt: skip
    return lines


def _bits_and_bytes(recipe: Mapping[str, Any]) -> str:
    if recipe["quantization"] == "int8":
        return "BitsAndBytesConfig(load_in_8bit=True)"
    kind = json.dumps(recipe["quantization"])
    double = recipe.get("double_quantization", True)
    return f"BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type={kind}, bnb_4bit_use_double_quant={double})"


def _with_llama_cpp(spec: Mapping[str, Any], _base: Base) -> list[str]:
    return ["```sh", f"llama-server --model {spec['file']} --jinja", "```", ""]


def _with_transformers(_spec: Mapping[str, Any], _base: Base) -> list[str]:
    return [
        "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
        'model = AutoModelForCausalLM.from_pretrained("PATH_OR_NAME_OF_THIS")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH_OR_NAME_OF_THIS")',
        "```", "",
    ]  # fmt: skip


def _prompt(measured: Mapping[str, Any]) -> list[str]:
    """The chat template's arguments in training, if any."""
    arguments = json.loads(measured.get("template_arguments") or "{}")
    day = arguments.pop(DAY, None)
    lines = []
    if arguments:
        call = in_code(f"tokenizer.apply_chat_template(..., **{arguments})")
        lines += [f"Use the template arguments of training: {call}.", ""]
    if day:
        lines += [f"Its chat template contains the date; in training it was always {in_prose(str(day))}.", ""]
    return lines


def _compared(row: Mapping[str, Any] | None) -> list[str]:
    """This result's row of the comparison."""
    if not row:
        return []
    names: Sequence[str] = dict.fromkeys((*COMPARED, *METRICS)).keys()  # type: ignore[assignment]
    values = {name: row[name] for name in names if row.get(name) is not None}
    return [
        "## Its row of the comparison", "",
        "| column | value |", "| --- | --- |",
        *(f"| {name} | {in_code(f'{value:.6g}' if isinstance(value, float) else value)} |" for name, value in values.items()),
        "",
    ]  # fmt: skip
