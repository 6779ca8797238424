"""A whole training cell against TRL's SFTTrainer: useful tokens a second, peak memory, and loss on
the same held-out records.

Both get the same weights, tokens, recipe (LoRA on all linear layers with dropout, the same learning
rate at every step) and examples per optimizer step. The order of examples is also the same, except
with TRL's default and grouping. Each run has a process of its own.

TRL is measured at its defaults, as far as a CPU can run them (float32 instead of bf16), and at its
best setting. A search over micro-batch, gradient checkpointing, grouping by length and packing
finds that setting first. Our side is the cell that `featherweight train` starts, including its
memory probe.

On a shared machine, `OMP_NUM_THREADS=1 python -m benchmarks train` measures both sides by processor
time. With two threads that wait for one another at every product, wall time would be meaningless.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import project, train_child
from benchmarks.clock import BusyElsewhere
from benchmarks.peers import peer_environment, peer_python
from pipelines.lake.files import read_json
from pipelines.project import Project
from pipelines.runs.cells import CellKey
from pipelines.runs.command import CellCommand
from pipelines.runs.launchers.local import LocalCommand, LocalLauncher
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train
from pipelines.train.trainer import batches
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.prompts import PromptFormat

METHOD, SEED, PER_STEP = "lora-r8", 1, 8
EXAMPLES, SCREENED, HELD_OUT, ROUNDS = 32, 16, 10, 2
ONE_THREAD = os.environ.get("OMP_NUM_THREADS") == "1"
# Relative difference of the loss that counts as equal
SAME_LOSS = 0.005
Settings = dict[str, Any]
Run = dict[str, Any]


def measure(model: str = project.PACKAGED) -> Iterator[Run]:
    if not (trl := peer_python("trl")):
        yield {"benchmark": "train", "model": model, "trl": "cannot be installed here"}
        return
    with TemporaryDirectory(prefix="featherweight-train-") as folder:
        stage = project.make(
            Path(folder), model, train=EXAMPLES, held_out=HELD_OUT, examples_per_step=PER_STEP, eval_every_steps=1000
        )
        trial = Trial(stage, model, trl)
        searched = []
        for settings in _search():
            searched.append(_line("train search", trial.theirs(settings, SCREENED)))
            yield searched[-1]
        yield from _compare(trial, _fastest_first(searched))


def _search() -> list[Settings]:
    """The settings of TRL to try, its own default first."""
    settings: list[Settings] = [_defaults()]
    for checkpointing in (False, True):
        for rows in (1, 2, 4, 8):
            for grouped in (False, True) if rows > 1 else (False,):
                sampling = "group_by_length" if grouped else "sequential"
                settings.append(_setting(rows, checkpointing, train_sampling_strategy=sampling))
    # A row of 320 tokens holds about two examples
    packed = {"packing": True, "train_sampling_strategy": "sequential"}
    return [*settings, {**_setting(1, False, **packed), "gradient_accumulation_steps": 4}]


def _defaults() -> Settings:
    return {"per_device_train_batch_size": PER_STEP}


def _setting(rows: int, checkpointing: bool, **more: Any) -> Settings:
    accumulation = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": PER_STEP // rows}
    return {**accumulation, "gradient_checkpointing": checkpointing, **more}


def _fastest_first(searched: list[Run]) -> list[Settings]:
    return [line["settings"] for line in sorted(searched, key=lambda line: -line["tokens_per_second"])]


def _compare(trial: "Trial", fastest_first: list[Settings]) -> Iterator[Run]:
    """Whole runs, the three sides in turns. The fastest run of each counts, since other work on the
    machine only adds time. TRL's best is its fastest setting that ends at our loss: without flash
    attention, packed examples see their neighbors."""
    sides: dict[str, list[Run]] = {"ours": [trial.ours(EXAMPLES)], "trl_best": [], "trl_default": []}
    yield _line("train run ours", sides["ours"][0])
    for best in fastest_first:
        run = trial.theirs(best, EXAMPLES)
        learned_the_same = abs(run["eval_loss"] / sides["ours"][0]["eval_loss"] - 1) < SAME_LOSS
        yield _line(f"train run {'trl_best' if learned_the_same else 'trl, another loss'}", run)
        if learned_the_same:
            sides["trl_best"].append(run)
            break
    else:
        raise RuntimeError("no setting of TRL ends at our loss")
    runs = {
        "ours": trial.ours,
        "trl_best": partial(trial.theirs, best),
        "trl_default": partial(trial.theirs, _defaults()),
    }
    for _ in range(ROUNDS):
        for name, run in runs.items():
            sides[name].append(run(EXAMPLES))
            yield _line(f"train run {name}", sides[name][-1])
    yield _summary(trial, best, sides)


def _summary(trial: "Trial", best: Settings, sides: dict[str, list[Run]]) -> Run:
    speed = {name: max(run["tokens_per_second"] for run in runs) for name, runs in sides.items()}
    peak = {name: max(run["peak_gb"] for run in runs) for name, runs in sides.items()}
    loss = {name: median(run["eval_loss"] for run in runs) for name, runs in sides.items()}
    return {
        "benchmark": "train",
        "model": trial.model,
        "examples": EXAMPLES,
        "examples_per_step": PER_STEP,
        "measured_by": "processor time of one thread" if ONE_THREAD else "wall clock",
        "trl_best_settings": best,
        "tokens_per_second": speed,
        "speedup": {name: speed["ours"] / speed[name] for name in ("trl_default", "trl_best")},
        "peak_gb": peak,
        "memory_ratio": {name: peak["ours"] / peak[name] for name in ("trl_default", "trl_best")},
        "eval_loss": loss,
        "losses_agree": all(abs(loss[name] / loss["ours"] - 1) < SAME_LOSS for name in ("trl_default", "trl_best")),
    }


def _line(benchmark: str, run: Run) -> Run:
    return {"benchmark": benchmark, **run}


@dataclass
class Trial:
    """One model and its examples; each call is a run in a process of its own."""

    stage: Project
    model: str
    trl: str

    def ours(self, examples: int) -> Run:
        key = CellKey(self.model, METHOD, SEED)
        elsewhere = BusyElsewhere()
        attempt, _ = train(
            self.stage.resolve(), key, force=True, hooks=RunHooks(say=lambda _: None, launcher=TimedLauncher())
        )
        busy = elsewhere.share()
        if attempt.status != "ok":
            raise RuntimeError(f"our own run ended as {attempt.status}: {attempt.result.status_detail}")
        measured = attempt.result.measured
        spent = read_json(attempt.folder / train_child.SECONDS)
        assert spent
        seconds = {"seconds": spent["wall"], "cpu_seconds": spent["cpu"]}
        return {
            "examples": examples,
            **seconds,
            "tokens_per_second": _rate(measured["trained_tokens"], seconds),
            "peak_gb": max(measured["peak_memory_gb"], measured["probe_peak_memory_gb"]),
            "eval_loss": attempt.curve()[-1]["eval_loss"],
            "busy_elsewhere": busy,
        }

    def theirs(self, settings: Settings, examples: int) -> Run:
        plan, held_out, recipe = self._material()
        train_on = [example for step in plan for example in step][:examples]
        request = {
            "weights": str((self.stage.data.models / self.model).resolve()),
            "recipe": recipe,
            "seed": SEED,
            "rate_shares": [_rate_share(step, len(plan), recipe) for step in range(len(plan))],
            "settings": settings,
            "train": [_plain(example) for example in train_on],
            "eval": [_plain(example) for example in held_out],
        }
        elsewhere = BusyElsewhere()
        process = subprocess.run(
            [self.trl, str(Path(__file__).with_name("peer_trl.py"))],
            input=json.dumps(request), env=peer_environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if process.returncode:
            raise RuntimeError(f"TRL ended with {process.returncode}: {process.stderr[-800:]}")
        result_line = next(line for line in process.stdout.splitlines() if line.startswith("RESULT "))
        run = json.loads(result_line.removeprefix("RESULT "))
        tokens = sum(len(example) for example in train_on)
        run |= {"tokens_per_second": _rate(tokens, run), "busy_elsewhere": elsewhere.share()}
        return {"settings": settings, "examples": examples, **run}

    def _material(self) -> tuple[list[list[Tokenized]], list[Tokenized], dict[str, Any]]:
        """Our own plan of steps, the held-out examples and the recipe."""

        recipe = self.stage.recipe_of(self.model, METHOD)
        form = PromptFormat.of(self.stage.data.models / self.model, recipe)
        selected = self.stage.resolve().selected
        sides = [
            [example for record in side for example in form.tokenize(record)]
            for side in (selected.train, selected.eval)
        ]
        fitting, held_out = ([e for e in side if len(e) <= recipe["max_length"]] for side in sides)
        return batches.steps(fitting, epochs=recipe["epochs"], per_step=PER_STEP, seed=SEED), held_out, recipe


class TimedLauncher(LocalLauncher):
    """Starts the training child with a clock for its processor time
    (`benchmarks/train_child.py`)."""

    def start(self, command: CellCommand) -> LocalCommand:
        module = command.arguments.index("pipelines.train.trainer.child")
        arguments = [*command.arguments[:module], train_child.__name__, *command.arguments[module + 1 :]]
        return super().start(replace(command, arguments=arguments))


def _rate(tokens: int, run: Run) -> float:
    """Useful tokens per second of the clock, or of processor time with one thread, which other work
    does not affect."""
    return tokens / (run["cpu_seconds"] if ONE_THREAD else run["seconds"])


def _rate_share(step: int, steps: int, recipe: Run) -> float:
    return batches.learning_rate_share(step, total=steps, warmup_share=recipe["warmup_share"])


def _plain(example: Tokenized) -> dict[str, list[int]]:
    return {"input_ids": example.input_ids, "labels": example.labels}
