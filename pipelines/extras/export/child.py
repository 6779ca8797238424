"""The export process: `python -m pipelines.extras.export.child FOLDER` writes the export in
FOLDER/spec.json.

It also writes `questions.json` there: the evaluation's records as tokens of this model, for the
measurement of the exported files.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from pipelines.extras.export import adapter
from pipelines.extras.export.adapter import finish, removed_on_error
from pipelines.extras.export.model_card import card
from pipelines.lake.files import stable_hash, write_json, write_text
from pipelines.lake.weights_record import RECORD
from pipelines.runs.clock import Stopwatch
from pipelines.runs.worker import Worker, start
from pipelines.settings.methods import traits_of
from pipelines.train import provenance
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.prompts import PromptFormat

# Number of examples on which all probabilities of the trained result and the export are compared.
COMPARED = 3


def export_cell(worker: Worker) -> None:
    from pipelines.clean.select import Selection, select
    from pipelines.evaluate.fitting import fitting_everywhere
    from pipelines.train.trainer import loading
    from pipelines.train.trainer.devices import card

    loading.quiet()
    worker.phase("load")
    card.take(worker)
    spec = worker.spec
    form = PromptFormat.of(worker.root / spec["weights"], spec["recipe"])
    if form.arguments:
        worker.measure(template_arguments=json.dumps(dict(form.arguments), sort_keys=True))
    records = fitting_everywhere(worker, select(worker.root / spec["examples"], Selection(**spec["selection"])).eval)
    examples = [example for record in records for example in form.tokenize(record)]
    write_json(worker.folder / "questions.json", questions(form, records, examples, spec["settings"]["answers"]))
    if spec["adapter"]:
        write_adapter(worker, form)
    if spec["merged"]:
        merge(worker, form, examples)
    for scheme, file in spec["gguf"].items():
        convert(worker, scheme, Path(file), [record["output"] for record in records])
        if modelfile := spec["ollama"].get(scheme):
            for_ollama(worker, form, (Path(file), Path(modelfile)), records)


def questions(form: PromptFormat, records: Any, examples: list[Tokenized], answers: int) -> dict[str, Any]:
    """The input for measuring bit widths as plain numbers, for a process without transformers."""
    return {
        "eval_set": stable_hash(sorted(record["example_id"] for record in records)),
        "examples": [asdict(example) for example in examples],
        "prompts": [form.prompt(record) for record in records[:answers]],
        "stop_tokens": form.stop_tokens,
    }


def write_adapter(worker: Worker, form: PromptFormat) -> None:
    """Write only the adapter for PEFT: weights, configuration, tokenizer, card and training
    settings."""
    spec, folder = worker.spec, Path(worker.spec["adapter"])
    worker.phase("save")
    base = provenance.base_of(worker.root / spec["weights"], spec["licence"])
    partial = adapter.write(worker.root / spec["trained"], folder, form.tokenizer, base)
    origin = spec["origin"]
    more: dict[str, str | Path] = {
        "README.md": card("adapter", spec, worker.report["measured"], base),
        adapter.SETTINGS: json.dumps(
            {"recipe": spec["recipe"], "data": spec["data"], **origin}, indent=1, ensure_ascii=False
        ),
        RECORD: json.dumps(origin, indent=1),
    }
    finish(partial, folder, more)
    worker.save()


def merge(worker: Worker, form: PromptFormat, examples: list[Tokenized]) -> None:
    """Write the merged folder, and compare the written model with the trained result.

    An adapter on a quantized base is also measured on the original base.

    Raises:
        WorkError: the written model differs from the trained result by more than rounding; it is
            removed.
    """
    from pipelines.extras.export import merge as merging
    from pipelines.train.trainer import loading
    from pipelines.train.trainer.measure.memory import give_back_freed, peak_resident_bytes

    clock, spec = Stopwatch(), worker.spec
    recipe, base = spec["recipe"], worker.root / spec["weights"]
    trained = worker.root / spec["trained"] if spec["trained"] else None
    adapter = trained is not None and traits_of(recipe).has_adapter
    compared, max_tokens = examples[:COMPARED], spec["batch_tokens"]
    worker.phase("merge")
    require_memory(worker, form, compared, base)
    # Keep one model in memory at a time: each is deleted before the next is loaded. First measure
    # the trained result.
    model = merging.trained_model(base, recipe, trained)
    if adapter:
        bits = merging.measured_bits_per_byte(model, examples, max_tokens)
        worker.measure(adapter_bits_per_byte=bits, eval_records=len(examples))
    before = merging.probabilities(model, compared)
    # Measure the adapter on the original base.
    if adapter and recipe["quantization"]:
        del model
        give_back_freed()
        model = merging.merged_model(base, recipe, trained, original=True).to(loading.device())
        bits = merging.measured_bits_per_byte(model, examples, max_tokens)
        worker.measure(merged_into_original_bits_per_byte=bits)
    # Merge, write, and compare the written model with the trained result.
    if adapter:
        del model
        give_back_freed()
        model = merging.merged_model(base, recipe, trained, compared=compared)
    worker.phase("save")
    partial = merging.write(model, form.tokenizer, Path(spec["merged"]), form.stop_tokens)
    with removed_on_error(partial):
        del model
        give_back_freed()
        model = merging.saved_model(partial, recipe)
        difference = merging.largest_difference(before, merging.probabilities(model, compared))
        worker.measure(largest_difference_nats=difference if math.isfinite(difference) else None)
        if adapter:
            bits = merging.measured_bits_per_byte(model, examples, max_tokens)
            worker.measure(merged_bits_per_byte=bits)
        merging.require_alike(difference, merging.rounding(recipe))
    text = card("merged", spec, worker.report["measured"], provenance.base_of(base, spec["licence"]))
    more: dict[str, str | Path] = {"README.md": text, RECORD: json.dumps(spec["origin"], indent=1)}
    # llama.cpp's converter prefers this file to tokenizer.json.
    sentencepiece = base / "tokenizer.model"
    if sentencepiece.is_file():
        more["tokenizer.model"] = sentencepiece
    finish(partial, Path(spec["merged"]), more)
    worker.measure(merge_seconds=clock.lap(), merge_peak_gb=peak_resident_bytes() / 1e9)
    worker.save()


def require_memory(worker: Worker, form: PromptFormat, compared: list[Tokenized], base: Path) -> None:
    """Record the predicted peak memory of merging.

    Raises:
        UnavailableError: this machine has less free memory.
    """
    from pipelines.extras.export import memory
    from pipelines.train.trainer.measure.memory import reset_peaks

    spec = worker.spec
    # The probabilities before and after merging are in memory at once.
    positions = 2 * sum(map(len, compared))
    needed = memory.predicted_peak(
        memory.weights_in(base),
        spec["recipe"],
        vocabulary=len(form.tokenizer),
        positions=positions + spec["batch_tokens"],
        occupied=psutil.Process().memory_info().rss,
    )
    worker.measure(merge_foretold_gb=needed / 1e9)
    memory.require(needed)
    reset_peaks()


def convert(worker: Worker, scheme: str, file: Path, texts: list[str]) -> None:
    from pipelines.extras.export.gguf_file import write_gguf

    clock = Stopwatch()
    worker.phase("gguf")
    summary = write_gguf(Path(worker.spec["source"]), file, scheme, name=worker.spec["name"], texts=texts)
    write_json(file.with_suffix(".json"), {**worker.spec["origin"], "scheme": scheme, "note": summary.in_words(scheme)})
    base = provenance.base_of(worker.root / worker.spec["weights"], worker.spec["licence"])
    text = card("gguf", {**worker.spec, "file": file.name}, worker.report["measured"], base)
    write_text(file.with_suffix(".md"), text)
    note = summary.in_words(scheme)
    worker.say(f"{file}: {file.stat().st_size / 1e6:.0f} MB{f'; {note}' if note else ''}")
    worker.measure(**{f"gguf_{scheme.lower()}_seconds": clock.lap()})


def for_ollama(worker: Worker, form: PromptFormat, paths: tuple[Path, Path], records: Any) -> None:
    """Write a Modelfile for a GGUF file. `paths` are those of the GGUF file and the Modelfile."""
    from pipelines.clean.select import Selection, select
    from pipelines.extras.export import ollama

    spec, (gguf, path) = worker.spec, paths
    trained, system = worker.root / (spec["trained_examples"] or ""), None
    if traits_of(spec["recipe"]).trains and trained.is_file():
        system = ollama.common_system(select(trained, Selection(**spec["trained_selection"])).train)
    modelfile = ollama.write_modelfile(form, gguf, path, records=records, system=system)
    for note in modelfile.notes[1:]:
        worker.say(f"{path}: {note}")


if __name__ == "__main__":
    start(export_cell)
