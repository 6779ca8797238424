"""Tasks of lm-evaluation-harness on the loaded model of an evaluation, with attached adapter or
quantization as it is.

The harness prompts, scores and decides correctness; this module turns its samples into rows.
No chat template is applied, which is the harness's default. Nothing from a hub is trusted: no code
of a data set, a metric or a task file is run.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.errors import UnavailableError
from pipelines.evaluate.benchmarks import BenchmarkResult, BenchmarkSpec
from pipelines.runs.clock import Stopwatch
from pipelines.settings import benchmarks

# Requests per batch. The harness pads them, so results differ only by rounding.
BATCH = 8
# The metric shown for a task with several: the first of these, else its first binary metric.
PREFERRED_METRICS = ("acc_norm", "acc_bytes", "acc", "exact_match")
# Stored prompts and answers are cut at this length.
MAX_CHARS = 20_000
Json = dict[str, Any]


def run(model: Any, tokenizer: Any, benchmark: BenchmarkSpec) -> BenchmarkResult:
    """Run one task. The harness may modify `tokenizer`, for example by adding a padding token.

    Raises:
        UnavailableError: the harness, the task or its data is missing, or the task has no binary
            metric.
    """
    benchmarks.require([benchmark.task])
    clock = Stopwatch()
    from lm_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with _tied_as_it_is(model), _no_code_of_a_hub() as refused:
        tasks = _load_tasks(_manager(defaults=benchmark.config is None), benchmark, refused)
        report = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, trust_remote_code=False),
            tasks=tasks,
            num_fewshot=benchmark.shots,
            limit=benchmark.limit,
            bootstrap_iters=0,
        )
    samples = (report or {}).get("samples") or {}
    scorer = f"lm-eval {benchmarks.harness_version()}"
    rows = [
        row for task, ones in samples.items() for row in _rows(benchmark, task, ones, scorer, several=len(samples) > 1)
    ]
    if not rows:
        raise UnavailableError("the harness returned no samples")
    return BenchmarkResult(rows, scorer, clock.total())


@cache
def _manager(*, defaults: bool) -> Any:
    """The task manager of the harness, cached because scanning its task files takes seconds.

    Without `defaults` it scans none.
    """
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    return TaskManager(include_defaults=defaults)


@contextmanager
def _tied_as_it_is(model: Any) -> Iterator[None]:
    """Keep the harness from tying the model's weights again.

    Our weights are tied correctly, and a merged head with weights of its own must keep them.
    """
    model.tie_weights = lambda *_args, **_kwargs: None
    try:
        yield
    finally:
        del model.tie_weights


@contextmanager
def _no_code_of_a_hub() -> Iterator[list[str]]:
    """Block `evaluate.load`, which fetches unknown metrics as Python code. Yields the blocked
    names."""
    refused: list[str] = []
    evaluate: Any = import_module("evaluate")

    def refuse(name: str, *_args: Any, **_kwargs: Any) -> Any:
        refused.append(name)
        # The harness catches the error and continues without the metric.
        raise UnavailableError(f"metric {name}")

    load, evaluate.load = evaluate.load, refuse
    trusted = os.environ.pop("HF_DATASETS_TRUST_REMOTE_CODE", None)
    try:
        yield refused
    finally:
        evaluate.load = load
        if trusted is not None:
            os.environ["HF_DATASETS_TRUST_REMOTE_CODE"] = trusted


def _load_tasks(manager: Any, benchmark: BenchmarkSpec, refused: Sequence[str]) -> list[Any]:
    """The task objects with their data loaded; `refused` are the blocked metrics."""
    import datasets

    named: list[str] = []
    load = datasets.load_dataset

    def note(path: str, name: str | None = None, **more: Any) -> Any:
        named[:] = [f"load_dataset({', '.join(json.dumps(one) for one in (path, name) if one)})"]
        return load(path=path, name=name, **more)

    datasets.load_dataset = note
    try:
        tasks = manager.load([benchmark.config or benchmark.task])
    except Exception as error:
        if refused:
            message = (
                f"its metric {refused[0]} would be fetched as code from a hub; use one of the harness's own metrics"
            )
            raise UnavailableError(message) from error
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]:.200}"
        if not named:
            raise UnavailableError(f"the harness cannot load the task ({reason})") from error
        raise UnavailableError(
            f"its data is not here ({reason}): with a network, `python -c '__import__(\"datasets\").{named[0]}'` brings "
            "it; then `featherweight evaluate MODEL METHOD --force` asks it"
        ) from error
    finally:
        datasets.load_dataset = load
    if not tasks["tasks"]:
        raise UnavailableError("the harness knows no such task")
    return list(tasks["groups"].values())[:1] or list(tasks["tasks"].values())


def _rows(
    benchmark: BenchmarkSpec, task: str, samples: Sequence[Json], scorer: str, *, several: bool
) -> Iterator[Json]:
    """A row for each question of one harness task; of several answer filters, the first."""
    if not samples:
        return
    first, metric = samples[0].get("filter"), _binary_metric(samples)
    for one in (sample for sample in samples if sample.get("filter") == first):
        yield {
            "task": benchmark.name,
            "item_id": f"{task}/{one['doc_id']}" if several else str(one["doc_id"]),
            "category": task if several else None,
            **_texts(one),
            "correct": bool(one[metric]),
            "metric": f"{metric},{first}",
            "scorer": scorer,
        }


def _binary_metric(samples: Sequence[Json]) -> str:
    """The metric to show: the preferred one that is 0 or 1 for every question."""
    names = list(samples[0]["metrics"])
    binary = [name for name in names if all(_is_verdict(one.get(name)) for one in samples)]
    if not binary:
        raise UnavailableError(f"none of its metrics ({', '.join(names)}) is right or wrong for every question")
    return next((name for name in PREFERRED_METRICS if name in binary), binary[0])


def _is_verdict(value: Any) -> bool:
    return isinstance(value, bool | int | float) and value in (0, 1)


def _texts(one: Json) -> Json:
    """The prompt, the choices, the reference and the model's pick of a sample."""
    arguments, answers = one["arguments"], one["filtered_resps"]
    choices = [argument[1] for argument in arguments] if _are_choices(arguments, answers) else None
    if choices is None:
        picked = answers[0] if isinstance(answers[0], str) else json.dumps(answers[0], ensure_ascii=False, default=str)
        return {"prompt": _cut(arguments[0][0]), "reference": _cut(str(one["target"])), "picked": _cut(picked)}
    scores = [float(score) for score, _ in answers]
    target = one["target"]
    right = choices[int(target)] if str(target).isdigit() and int(target) < len(choices) else str(target)
    return {
        "prompt": _cut(arguments[0][0]),
        "choices": json.dumps(choices, ensure_ascii=False),
        "reference": _cut(right.strip()),
        # Only the task's metric knows the picked choice.
        "picked": None,
        "loglikelihoods": json.dumps([round(score, 6) for score in scores]),
    }


def _are_choices(arguments: Sequence[Any], answers: Sequence[Any]) -> bool:
    return len(arguments) > 1 and all(isinstance(one, list | tuple) and len(one) == 2 for one in answers)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}…"


def tokenizer_of(base: Path) -> Any:
    """A separate tokenizer that the harness may modify."""
    from pipelines.train.trainer import loading

    return loading.load_tokenizer(base)
