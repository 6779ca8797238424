"""The benchmarks of an evaluation, one after the other, each kept as soon as it is done, so that a killed evaluation goes on with
what the ones before it have done."""

import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.errors import UnavailableError
from pipelines.evaluate.benchmarks import FILE, OWN, Answered, Asked, row_of
from pipelines.lake import disk
from pipelines.lake.files import read_json, stable_hash, write_json, write_jsonl
from pipelines.runs.clock import Stopwatch
from pipelines.runs.worker import DivergedError, StoppedError, Worker
from pipelines.settings import benchmarks

BATCH_SHARE = 2  # a batch holds so many times the tokens of a training one: no gradients are kept
KEPT = "benchmarks"  # folder of each benchmark's result, in that of the evaluation
Json = dict[str, Any]


def measure_benchmarks(worker: Worker, prompted_model: Any) -> None:
    """Ask every benchmark of the spec. One that cannot be asked leaves its own numbers empty, and the row's detail says why."""
    asked, clock = [Asked(**one) for one in worker.spec.get("benchmarks", ())], Stopwatch()
    if not asked:
        return
    done = [(one, answered) for one in asked if (answered := _answered(worker, prompted_model, one))]
    write_jsonl(worker.folder / FILE, [row for _, answered in done for row in answered.rows])
    worker.measure(
        benchmark_seconds=sum(answered.seconds for _, answered in done) if done else None,
        benchmark_seconds_now=clock.total(),  # without what an earlier evaluation has kept
        benchmark_parts={one.name: _part(answered) for one, answered in done},
    )
    worker.save()


def _part(answered: Answered) -> Json:
    return {"seconds": answered.seconds, "questions": len(answered.rows), "tokens": answered.tokens}


def _answered(worker: Worker, prompted_model: Any, asked: Asked) -> Answered | None:
    name = f"{asked.name}-{_key(worker, asked)}.json"
    if kept := _kept(worker, name):
        worker.say(f"benchmark {asked.name}: an earlier evaluation of this attempt has asked it")
        write_json(worker.folder / KEPT / name, asdict(kept))
        return kept
    try:
        answered = _ask(worker, prompted_model, asked)
    except (StoppedError, DivergedError):
        raise
    except Exception as error:
        if disk.is_full(error):
            raise
        _leave_out(worker, asked, error)
        return None
    write_json(worker.folder / KEPT / name, asdict(answered))
    right = sum(row["correct"] for row in answered.rows)
    worker.say(f"benchmark {asked.name}: {right} of {len(answered.rows)} right in {answered.seconds:.1f} s")
    return answered


def _leave_out(worker: Worker, asked: Asked, error: Exception) -> None:
    if isinstance(error, UnavailableError):
        lost = f"benchmark {asked.name} unavailable: {error}"
    else:
        traceback.print_exc()
        first = next(iter(str(error).splitlines()), "")
        lost = f"not measured: benchmark {asked.name} ({type(error).__name__}: {first:.200})"
    worker.report["detail"] = "; ".join(filter(None, (worker.report.get("detail"), lost)))
    worker.say(lost)


def _key(worker: Worker, asked: Asked) -> str:
    """What a result rests on beside its attempt: the question, the code that asks, and the packages that compute."""
    own = worker.spec["fingerprints"].get("evaluation_code")
    told = {name: value for name, value in asdict(asked).items() if name != "config"}
    return stable_hash([told, own, worker.report["versions"], None if asked.ships else benchmarks.harness_version()])


def _kept(worker: Worker, name: str) -> Answered | None:
    """What an earlier evaluation of the same attempt has kept, the newest one's."""
    for file in sorted(worker.folder.parent.glob(f"*/{KEPT}/{name}"), reverse=True):
        with suppress(TypeError):
            if isinstance(found := read_json(file), dict):
                return Answered(**found)
    return None


def _ask(worker: Worker, prompted_model: Any, asked: Asked) -> Answered:
    return _ask_own(worker, prompted_model, asked) if asked.ships else _ask_harness(worker, prompted_model, asked)


def _ask_harness(worker: Worker, prompted_model: Any, asked: Asked) -> Answered:
    from pipelines.evaluate import benchmarks_harness

    return benchmarks_harness.run(prompted_model.model, benchmarks_harness.tokenizer_of(_base(worker)), asked)


def _base(worker: Worker) -> Path:
    return worker.root / worker.spec["weights"]


def _ask_own(worker: Worker, prompted_model: Any, asked: Asked) -> Answered:
    clock = Stopwatch()
    rows, tokens = own_rows(prompted_model, asked, max_tokens=BATCH_SHARE * worker.spec["batch_tokens"], say=worker.say)
    return Answered(rows, OWN, clock.total(), tokens)


def own_rows(
    prompted_model: Any, asked: Asked, *, max_tokens: int, say: Callable[[str], None] = print
) -> tuple[list[Json], int]:
    """The rows of a set that ships, and how many tokens were read for them. Its questions are asked as plain text, with no chat
    template, as the harness asks them."""
    from pipelines.evaluate import benchmarks_scoring as scoring

    questions = benchmarks.questions(asked.task, limit=asked.limit, shots=asked.shots or 0)
    delimiter, tokenizer = benchmarks.target_delimiter(asked.task), prompted_model.form.tokenizer
    prompted = [scoring.prompted(tokenizer, one.prompt, one.choices, delimiter) for one in questions]
    found = scoring.loglikelihoods(
        scoring.Model(prompted_model.model, prompted_model.device, max_tokens), prompted, say
    )
    rows = [row_of(asked.name, question, scores) for question, scores in zip(questions, found, strict=True)]
    return rows, scoring.tokens_read(prompted)
