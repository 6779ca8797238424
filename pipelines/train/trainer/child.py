"""The training process: `python -m pipelines.train.trainer.child FOLDER` trains the cell that
FOLDER/spec.json describes."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.lake import disk
from pipelines.lake.files import read_json, write_json
from pipelines.runs import checkpoints
from pipelines.runs.clock import Stopwatch
from pipelines.runs.process import memory_unlimited
from pipelines.runs.worker import Worker, start
from pipelines.settings.methods import traits_of
from pipelines.train import provenance
from pipelines.train.trainer.devices.ranks import draw_apart, join, leave

# Before training, this many records' learned texts are compared with their answers.
CHECKED = 64


@dataclass(frozen=True)
class Tokens:
    """The selected examples that fit max_length, as tokens."""

    train: list[Any]
    held_out: list[Any]


def train_cell(worker: Worker) -> None:
    """Load, train and save. Every phase is timed, and every number is reported as soon as it is
    known."""
    # Load first: a method that trains nothing ends here.
    ranks = join(worker.spec.get("sharding", "none"))
    model = load(worker, whole=not ranks.sharded)
    if not traits_of(worker.spec["recipe"]).trains:
        return
    from pipelines.train.trainer import batches, loading
    from pipelines.train.trainer.devices import sharding
    from pipelines.train.trainer.loop import Trainer
    from pipelines.train.trainer.pace import curve_sample

    # Tokenize, finish the adapter's first weights, and shard the model.
    recipe, tokens = worker.spec["recipe"], tokenize(worker, model)
    begin_from_texts(worker, model, tokens)
    draw_apart(ranks, worker.spec["seed"])
    if ranks.sharding == "fsdp":
        sharding.shard(model, loading.device())

    # The trainer, the checkpoint to resume from, and the slice that early stopping holds back.
    check = _first_words(model, recipe, tokens) if not ranks.sharded else None
    trainer = Trainer(worker, model, recipe, loading.device(), ranks)
    earlier = _earlier(worker)
    train, validation = tokens.train, []
    if recipe["early_stop_patience"]:
        train, validation = batches.held_back(train, recipe["validation_share"])
        if not train:
            raise ValueError(
                "early_stop_patience holds back a slice of the training examples, and there is only one: bring more"
            )

    # Probe, search a learning rate, train.
    worker.measure(train_examples=len(train), validation_examples=len(validation))
    trainer.prepare(train, earlier, validation=validation)
    worker.phase("train")
    _require_disk(worker, trainer, resumed=earlier is not None)
    sample = curve_sample(tokens.held_out, worker.spec.get("curve_records"))
    if len(sample) < len(tokens.held_out):
        worker.say(
            f"the curve's held-out loss is that of a fixed sample: {len(sample)} of {len(tokens.held_out)} examples"
        )
    trainer.train(sample, validation)

    # Every rank takes part in gathering sharded weights; the first one writes the model.
    worker.phase("save")
    full_weights = trainer.zero.weights(trainer.named) if trainer.zero else None
    if ranks.sharding == "fsdp":
        full_weights = sharding.whole_weights(model)
    if ranks.rank == 0:
        _save(worker, model, full_weights, check=check)
    leave()


def load(worker: Worker, *, whole: bool = True) -> Any:
    """The spec's model on this machine's device, with its adapter if the method has one; time and
    memory are measured.

    If not `whole`, the model stays on the CPU, to be sharded from there.
    """
    # Imports count as a phase of their own.
    clock = Stopwatch()
    import torch

    from pipelines.train.trainer import fast_paths, loading, peft_adapter
    from pipelines.train.trainer.devices import card
    from pipelines.train.trainer.measure import quantizing
    from pipelines.train.trainer.measure.memory import give_back_freed
    from pipelines.train.trainer.precision import compute_dtype, weights_dtype

    loading.quiet()
    card.take(worker)
    spec, recipe = worker.spec, worker.spec["recipe"]
    traits = traits_of(recipe)
    torch.manual_seed(spec["seed"])
    worker.measure(import_seconds=clock.lap())

    # The base, and how long its quantization took.
    folder = worker.root / spec["weights"]
    with quantizing.watched(quantizes=bool(recipe["quantization"])) as quantized:
        model = loading.load_model(folder, recipe, on_device=whole)
    worker.measure(**quantized.measured(clock.lap()))

    # The adapter.
    if traits.has_adapter:
        with _adapter_start(worker):
            model = loading.add_adapter(model, recipe)
        if shared := loading.adapted_and_shared(model):
            worker.say(
                f"{shared[0].removeprefix('base_model.model.')} has an adapter and shares the embedding's weights: "
                "an export gives it weights of its own and is larger by those"
            )
    if recipe["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if traits.has_adapter:
        peft_adapter.require_trainable(model, recipe, model.config.vocab_size)

    # What this model computes in which way, for the log and the row.
    paths = fast_paths.active(model, in_float32=compute_dtype(recipe) is None)
    if "head" not in paths and traits.trains:
        worker.say(
            f"{model.config.model_type}: all its logits are computed at once, not piece by piece, which takes memory and "
            "time (pipelines/train/trainer/fast_paths.py lists the architectures with a tested fast path)"
        )
    _measure_parameters(worker, model)
    config = model.config
    worker.measure(
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        weights_dtype=recipe["quantization"] or str(weights_dtype(recipe)).removeprefix("torch."),
        attention=config._attn_implementation,
    )
    worker.save()
    give_back_freed()
    return model


def _measure_parameters(worker: Worker, model: Any) -> None:
    """Report the numbers of all and of trainable parameters, and the fast paths of `model` as it is
    now."""
    from pipelines.train.trainer import fast_paths, loading
    from pipelines.train.trainer.precision import compute_dtype

    recipe = worker.spec["recipe"]
    trainable, total = loading.parameter_counts(model)
    paths = fast_paths.active(model, in_float32=compute_dtype(recipe) is None)
    worker.measure(
        fast_paths=", ".join(paths) or "none",
        trainable_params=trainable if traits_of(recipe).trains else 0,
        total_params=total,
    )


def begin_from_texts(worker: Worker, model: Any, tokens: Tokens) -> None:
    """Compute the adapter's first weights from training texts, if its method does so; this counts
    as loading.

    Raises:
        UnavailableError: the method cannot start from these examples or settings.
    """
    recipe = worker.spec["recipe"]
    if not traits_of(recipe).starts_from_texts:
        return
    from pipelines.train.trainer import loading
    from pipelines.train.trainer.measure.memory import give_back_freed

    with _adapter_start(worker):
        loading.begin_from_texts(model, recipe, tokens.train, seed=worker.spec["seed"])
    _measure_parameters(worker, model)
    give_back_freed()


@contextmanager
def _adapter_start(worker: Worker) -> Iterator[None]:
    """Measure how an adapter with PEFT's own settings gets its first weights.

    Such settings may decompose the base's weights or its activations. The seconds are a column of
    their own, and the peak counts as one of loading.
    """
    from pipelines.train.trainer.measure.memory import HOST, peak_bytes, peak_resident_bytes, reset_peaks

    clock, measured = Stopwatch(), worker.report["measured"]
    if traits_of(worker.spec["recipe"]).is_short:
        yield
        return
    reset_peaks()
    yield
    worker.measure(
        adapter_start_seconds=(measured.get("adapter_start_seconds") or 0.0) + clock.total(),
        load_peak_memory_gb=max(measured["load_peak_memory_gb"], peak_bytes() / 1e9),
        **{HOST: max(measured[HOST], peak_resident_bytes() / 1e9)},
    )


def tokenize(worker: Worker, model: Any) -> Tokens:
    """The selected examples as tokens, without those that exceed max_length or the model's window.

    Raises:
        ValueError: the model would learn wrong tokens.
    """
    from pipelines.clean.select import Selection, select
    from pipelines.train.trainer import checks, tokenizing
    from pipelines.train.trainer.examples import longest
    from pipelines.train.trainer.prompts import DAY_BY_DAY, PromptFormat

    spec, recipe = worker.spec, worker.spec["recipe"]
    # The threads of Arrow and DuckDB hang or crash if the memory cap refuses them an allocation.
    with memory_unlimited():
        selected = select(worker.root / spec["examples"], Selection(**spec["selection"]))
    form = PromptFormat.of(worker.root / spec["weights"], recipe)
    limit = longest(recipe["max_length"], model.config, virtual := traits_of(recipe).virtual_tokens)
    if limit < recipe["max_length"]:
        hint = f" behind the adapter's {virtual}" if virtual else ""
        worker.say(
            f"max_length is {recipe['max_length']}, this model reads {limit} tokens{hint}: longer examples are left out"
        )
    if form.tells_the_day:
        worker.say(DAY_BY_DAY.format(spec["model"]))

    # The tokenizer itself, then the records as tokens.
    recorded = spec.get("tokens") or {}
    checks.tokenizer_is_as_recorded(form, recorded)
    checks.end_stops_generation(form, recorded)
    train = tokenizing.tokenize(form, selected.train, limit, turns=recipe.get("turns", "all"))
    held_out = tokenizing.tokenize(form, selected.eval, limit)

    # How many records are left out, for the row and the log.
    worker.measure(
        truncated_share=train.too_long / train.records,
        unshown_share=train.unshown_share,
        train_records=train.records,
        train_records_left_out=train.left_out,
    )
    if traits_of(recipe).trains:
        worker.measure(training_data=json.dumps(provenance.data_of(selected.train), ensure_ascii=False))
    for line in (*train.in_words("training"), *held_out.in_words("evaluation")):
        worker.say(line)

    # Refuse data that would train the wrong thing.
    checks.something_is_shown(train, held_out)
    for tokenized, what in ((train, "training"), (held_out, "evaluation")):
        checks.enough_is_left(tokenized, what, max_length=recipe["max_length"])
    checks.tokens_are_sound(train.examples, held_out.examples, form)
    checks.labels_are_the_answers(selected.train[:CHECKED], form)
    return Tokens(train.examples, held_out.examples)


def _first_words(model: Any, recipe: dict[str, Any], tokens: Tokens) -> tuple[list[int], list[float]] | None:
    """A text and its losses before training, for the check of the saved adapter; None for kinds
    that need no check."""
    from pipelines.train.trainer import peft_adapter

    if not traits_of(recipe).has_adapter or traits_of(recipe).is_short:
        return None
    ids = (tokens.held_out or tokens.train)[0].input_ids
    return ids, peft_adapter.losses_of(model, ids)


def _earlier(worker: Worker) -> Path | None:
    """The checkpoint to resume from, if there is one.

    One that other package versions wrote is ignored, since the run would not end in the same bits.
    """
    from pipelines.train.trainer import checkpoint

    resume = worker.spec.get("resume")
    if not resume:
        return None
    folder = worker.root / resume["checkpoint"]
    if not (folder / checkpoints.STATE).exists():
        return None
    if (made_by := checkpoint.read_state(folder)["versions"]) != worker.report["versions"]:
        worker.say(f"starting over: the checkpoint is by {made_by}, installed are {worker.report['versions']}")
        return None
    measured, peaks = worker.report["measured"], resume["peaks"]
    worker.measure(
        load_peak_memory_gb=max(measured["load_peak_memory_gb"], peaks.get("load_peak_memory_gb", 0)),
        host_peak_memory_gb=max(measured["host_peak_memory_gb"], peaks.get("host_peak_memory_gb", 0)),
    )
    return folder


def _require_disk(worker: Worker, trainer: Any, *, resumed: bool) -> None:
    """Raises DiskFullError unless the checkpoints and the trained model will fit on the disk.

    The next checkpoint is written before the last one goes. With early stopping there may be two
    sets of best weights: those that the last checkpoint links, and those of a better step since.
    """
    from pipelines.train.trainer import checkpoint

    checkpoint_bytes = checkpoint.size(trainer.named, worker.spec["recipe"])
    model_bytes = sum(p.numel() * p.element_size() for p in trainer.named.values())
    needed_bytes = (
        max(checkpoint_bytes, model_bytes) if resumed else max(2 * checkpoint_bytes, checkpoint_bytes + model_bytes)
    )
    keeps_best = bool(worker.spec["recipe"]["early_stop_patience"])
    needed_bytes += 2 * model_bytes if keeps_best else 0
    worker.report["bytes_needed"] = needed_bytes
    more = ", and the best step's weights twice" if keeps_best else ""
    disk.require(worker.folder, needed_bytes, f"two checkpoints, or one and the trained model{more}")


def _save(
    worker: Worker, model: Any, weights: dict[str, Any] | None, *, check: tuple[list[int], list[float]] | None
) -> None:
    """Write the model under a temporary name and rename it, so that a killed process leaves no
    incomplete model.

    `weights` are all weights of a sharded model. A fully trained model is written in the format
    that it computes in, not as float32 master weights. The losses of an adapter on the text of
    `check` are written beside it.

    Raises:
        DiskFullError: the disk is full; the incomplete model is removed.
    """
    from pipelines.train.trainer import loading, moving_ranks, peft_adapter, tensor_file
    from pipelines.train.trainer.precision import result_dtype

    recipe, traits = worker.spec["recipe"], traits_of(worker.spec["recipe"])
    partial = worker.folder / ".model.partial"
    try:
        # Weights, in the format of the result.
        if traits.trains_all and weights is None:
            model.to(result_dtype(recipe))
        elif traits.trains_all:
            weights = in_format(weights or {}, result_dtype(recipe))
        moving_ranks.settle(model)
        with tensor_file.used_by_transformers():
            model.save_pretrained(partial, **({} if weights is None else {"state_dict": weights}))

        # A full model gets its tokenizer; an adapter gets its base's name, its check and its card.
        if traits.trains_all:
            if weights is not None:
                name_format(partial, result_dtype(recipe))
            loading.load_tokenizer(worker.root / worker.spec["weights"]).save_pretrained(partial)
        else:
            base = provenance.base_of(worker.root / worker.spec["weights"], worker.spec.get("licence"))
            data = json.loads(worker.report["measured"]["training_data"])
            provenance.name_base(partial, base)
            if check:
                peft_adapter.write_check(model, check, partial)
            # The rate that a search has chosen, else the recipe's.
            rate = worker.report["measured"].get("learning_rate", recipe["learning_rate"])
            card_spec = {**worker.spec, "recipe": {**recipe, "learning_rate": rate}}
            (partial / "README.md").write_text(provenance.adapter_card(card_spec, base, data), encoding="utf-8")
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if disk.is_full(error):
            needed = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
            raise disk.DiskFullError("the trained model", worker.folder, needed) from error
        raise
    os.rename(partial, worker.folder / "model")
    worker.measure(artifact_mb=folder_bytes(worker.folder / "model") / 1e6)


def in_format(weights: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """`weights` as `dtype`. Tied weights stay one tensor; integer buffers keep their type."""
    converted: dict[tuple[int, Any], Any] = {}
    for tensor in weights.values():
        place = tensor.data_ptr(), tensor.shape
        if place not in converted:
            converted[place] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: converted[tensor.data_ptr(), tensor.shape] for name, tensor in weights.items()}


def name_format(folder: Path, dtype: Any) -> None:
    """Write the weights' format into a saved model's configuration.

    For a sharded model transformers has written the format of the master weights there.
    """
    config = read_json(folder / "config.json") or {}
    write_json(folder / "config.json", config | {"dtype": str(dtype).removeprefix("torch.")})


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    start(train_cell)
