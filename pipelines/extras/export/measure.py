"""The measuring process: `python -m pipelines.extras.export.measure FOLDER` measures one result at
one bit width.

For a GGUF file only llama.cpp is loaded, so that the process's memory is that of serving the file.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.evaluate import scores
from pipelines.evaluate.statistics import percentile
from pipelines.hardware import machine
from pipelines.lake.files import read_json
from pipelines.runs.clock import Stopwatch
from pipelines.runs.worker import Worker, start
from pipelines.train.trainer.examples import IGNORE, Tokenized

# Precision and quantization in the recipe of each format.
FORMATS: dict[str, tuple[str, str | None]] = {
    "fp32": ("fp32", None),
    "bf16": ("bf16", None),
    "int8": ("auto", "int8"),
    "nf4": ("auto", "nf4"),
}
Answer = Callable[[Sequence[int], int], int]


def measure_format(worker: Worker) -> None:
    worker.phase("load")
    questions = read_json(Path(worker.spec["questions"])) or {}
    examples = [Tokenized(**example) for example in questions["examples"]]
    worker.measure(eval_records=len(examples), eval_set=questions["eval_set"])
    if worker.spec["gguf"]:
        with_llama_cpp(worker, questions, examples)
    else:
        with_transformers(worker, questions, examples)


def with_transformers(worker: Worker, questions: dict[str, Any], examples: list[Tokenized]) -> None:
    import torch

    from pipelines.extras.export.merge import measured_bits_per_byte
    from pipelines.train.trainer import loading
    from pipelines.train.trainer.devices import card
    from pipelines.train.trainer.measure.memory import peak_bytes, reset_peaks

    clock, spec, device = Stopwatch(), worker.spec, loading.device()
    loading.quiet()
    card.take(worker)
    precision, quantization = FORMATS[spec["format"]]
    recipe = {**spec["recipe"], "kind": "none", "precision": precision, "quantization": quantization}
    model = loading.load_model(Path(spec["merged"]), recipe).eval()
    worker.measure(load_seconds=clock.lap(), size_mb=weight_bytes(model) / 1e6, engine=f"transformers, {device.type}")
    if quantization:
        embedding_type = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
        worker.measure(note=f"linear layers alone are {quantization}: embeddings stay {embedding_type}")
    worker.phase("evaluate")
    worker.measure(bits_per_byte=measured_bits_per_byte(model, examples, spec["batch_tokens"]))
    worker.save()
    # The reported peak is that of answering.
    reset_peaks()

    def answer(prompt: Sequence[int], limit: int) -> int:
        ids = torch.tensor([prompt], device=device)
        options = {
            "do_sample": False,
            "eos_token_id": questions["stop_tokens"],
            "pad_token_id": questions["stop_tokens"][0],
        }
        with torch.no_grad():
            output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, **options)
        return output.shape[1] - len(prompt)

    time_answers(worker, questions["prompts"], answer)
    worker.measure(peak_memory_gb=peak_bytes() / 1e9)


def weight_bytes(model: Any) -> int:
    """Bytes of the weights in memory, with the scales of packed weights."""
    total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        second = getattr(state, "state2", None)
        scales = [getattr(state, "absmax", None), getattr(second, "absmax", None), getattr(parameter, "SCB", None)]
        total += parameter.nbytes + sum(tensor.nbytes for tensor in scales if tensor is not None)
    return total


def with_llama_cpp(worker: Worker, questions: dict[str, Any], examples: list[Tokenized]) -> None:
    from pipelines.extras.export.native import LlamaCpp

    # The package of xllamacpp is built for CPUs, so it runs there even if the machine has a GPU.
    worker.runs_on(machine.processor())
    clock, file = Stopwatch(), Path(worker.spec["gguf"])
    limit = worker.spec["settings"]["max_new_tokens"]
    longest = max([*map(len, examples), *(len(prompt) + limit for prompt in questions["prompts"])])
    with LlamaCpp(file, context=longest, threads=threads()) as llama:
        note = (read_json(file.with_suffix(".json")) or {}).get("note")
        worker.measure(load_seconds=clock.lap(), size_mb=file.stat().st_size / 1e6, engine="llama.cpp, cpu", note=note)
        worker.phase("evaluate")
        nats = 0.0
        for example in examples:
            logs = llama.log_probabilities(example.input_ids)
            nats -= sum(
                float(logs[i - 1])
                for i, (label, scored) in enumerate(zip(example.labels, example.scored, strict=True))
                if i and scored and label != IGNORE
            )
        size = sum(example.completion_bytes for example in examples)
        worker.measure(bits_per_byte=scores.bits_per_byte(nats, size))
        worker.save()
        reset_peak()
        stops = questions["stop_tokens"]
        time_answers(
            worker, questions["prompts"], lambda prompt, most: len(llama.greedy(prompt, limit=most, stops=stops))
        )
        worker.measure(peak_memory_gb=peak_resident() / 1e9)


def time_answers(worker: Worker, prompts: Sequence[Sequence[int]], answer: Answer) -> None:
    """Time greedy answers one at a time, as the evaluation does, after an untimed short one."""
    limit, latencies, tokens = worker.spec["settings"]["max_new_tokens"], [], 0
    for prompt in prompts[:1]:
        answer(prompt, 2)
    for prompt in prompts:
        clock = Stopwatch()
        tokens += answer(prompt, limit)
        latencies.append(clock.total())
    median = percentile(latencies, 0.5)
    worker.measure(
        answer_tokens=tokens if prompts else None,
        p50_latency_ms=None if median is None else 1000 * median,
        tokens_per_second=tokens / sum(latencies) if latencies else None,
    )


def threads() -> int:
    """The number of threads that torch would use."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def reset_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_resident() -> int:
    """Peak resident bytes, read without torch, which the trainer's own meter needs."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    start(measure_format)
