"""The benchmarks of an evaluation, one after the other.

Each result is stored at once, so that the next evaluation of the attempt reuses it after a kill.
"""

import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.errors import UnavailableError
from pipelines.evaluate.benchmarks import FILE, OWN, BenchmarkResult, BenchmarkSpec, row_of
from pipelines.lake import disk
from pipelines.lake.files import read_json, stable_hash, write_json, write_jsonl
from pipelines.runs.clock import Stopwatch
from pipelines.runs.worker import DivergedError, StoppedError, Worker
from pipelines.settings import benchmarks

# Scoring stores no gradients, so a batch holds this many times the tokens of a training batch.
BATCH_SHARE = 2
# Folder of the benchmark results within the evaluation's folder.
RESULTS = "benchmarks"
Json = dict[str, Any]


def measure_benchmarks(worker: Worker, prompted_model: Any) -> None:
    """Run every benchmark of the spec.

    A failed benchmark leaves its own numbers empty, and the row's detail gives the reason.
    """
    specs, clock = [BenchmarkSpec(**one) for one in worker.spec.get("benchmarks", ())], Stopwatch()
    if not specs:
        return
    done = [(one, answered) for one in specs if (answered := _result(worker, prompted_model, one))]
    write_jsonl(worker.folder / FILE, [row for _, answered in done for row in answered.rows])
    worker.measure(
        benchmark_seconds=sum(answered.seconds for _, answered in done) if done else None,
        # Without the benchmarks that an earlier evaluation has stored.
        benchmark_seconds_now=clock.total(),
        benchmark_parts={one.name: _part(answered) for one, answered in done},
    )
    worker.save()


def _part(answered: BenchmarkResult) -> Json:
    return {"seconds": answered.seconds, "questions": len(answered.rows), "tokens": answered.tokens}


def _result(worker: Worker, prompted_model: Any, benchmark: BenchmarkSpec) -> BenchmarkResult | None:
    name = f"{benchmark.name}-{_key(worker, benchmark)}.json"
    if earlier := _earlier_result(worker, name):
        worker.say(f"benchmark {benchmark.name}: reusing the result of an earlier evaluation of this attempt")
        write_json(worker.folder / RESULTS / name, asdict(earlier))
        return earlier
    try:
        result = _ask(worker, prompted_model, benchmark)
    except (StoppedError, DivergedError):
        raise
    except Exception as error:
        if disk.is_full(error):
            raise
        _leave_out(worker, benchmark, error)
        return None
    write_json(worker.folder / RESULTS / name, asdict(result))
    right = sum(row["correct"] for row in result.rows)
    worker.say(f"benchmark {benchmark.name}: {right} of {len(result.rows)} right in {result.seconds:.1f} s")
    return result


def _leave_out(worker: Worker, benchmark: BenchmarkSpec, error: Exception) -> None:
    if isinstance(error, UnavailableError):
        message = f"benchmark {benchmark.name} unavailable: {error}"
    else:
        traceback.print_exc()
        first = next(iter(str(error).splitlines()), "")
        message = f"not measured: benchmark {benchmark.name} ({type(error).__name__}: {first:.200})"
    worker.report["detail"] = "; ".join(filter(None, (worker.report.get("detail"), message)))
    worker.say(message)


def _key(worker: Worker, benchmark: BenchmarkSpec) -> str:
    """What a result depends on beside its attempt: the benchmark, the scoring code and the package
    versions."""
    own = worker.spec["fingerprints"].get("evaluation_code")
    spec = {name: value for name, value in asdict(benchmark).items() if name != "config"}
    return stable_hash(
        [spec, own, worker.report["versions"], None if benchmark.ships else benchmarks.harness_version()]
    )


def _earlier_result(worker: Worker, name: str) -> BenchmarkResult | None:
    """The newest stored result of an earlier evaluation of the same attempt."""
    for file in sorted(worker.folder.parent.glob(f"*/{RESULTS}/{name}"), reverse=True):
        with suppress(TypeError):
            if isinstance(result := read_json(file), dict):
                return BenchmarkResult(**result)
    return None


def _ask(worker: Worker, prompted_model: Any, benchmark: BenchmarkSpec) -> BenchmarkResult:
    return (
        _ask_own(worker, prompted_model, benchmark)
        if benchmark.ships
        else _ask_harness(worker, prompted_model, benchmark)
    )


def _ask_harness(worker: Worker, prompted_model: Any, benchmark: BenchmarkSpec) -> BenchmarkResult:
    from pipelines.evaluate import benchmarks_harness

    return benchmarks_harness.run(prompted_model.model, benchmarks_harness.tokenizer_of(_base(worker)), benchmark)


def _base(worker: Worker) -> Path:
    return worker.root / worker.spec["weights"]


def _ask_own(worker: Worker, prompted_model: Any, benchmark: BenchmarkSpec) -> BenchmarkResult:
    clock = Stopwatch()
    rows, tokens = own_rows(
        prompted_model, benchmark, max_tokens=BATCH_SHARE * worker.spec["batch_tokens"], say=worker.say
    )
    return BenchmarkResult(rows, OWN, clock.total(), tokens)


def own_rows(
    prompted_model: Any, benchmark: BenchmarkSpec, *, max_tokens: int, say: Callable[[str], None] = print
) -> tuple[list[Json], int]:
    """The rows of a bundled benchmark, and the number of tokens read for them.

    The questions are plain text without a chat template, as in the harness.
    """
    from pipelines.evaluate import benchmarks_scoring as scoring

    questions = benchmarks.questions(benchmark.task, limit=benchmark.limit, shots=benchmark.shots or 0)
    delimiter, tokenizer = benchmarks.target_delimiter(benchmark.task), prompted_model.form.tokenizer
    prompted = [scoring.prompted(tokenizer, one.prompt, one.choices, delimiter) for one in questions]
    loglikelihoods = scoring.loglikelihoods(
        scoring.Model(prompted_model.model, prompted_model.device, max_tokens), prompted, say
    )
    rows = [
        row_of(benchmark.name, question, scores) for question, scores in zip(questions, loglikelihoods, strict=True)
    ]
    return rows, scoring.tokens_read(prompted)
