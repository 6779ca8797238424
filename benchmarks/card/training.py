"""Whole cells, as the project starts them: whether they work on this card, their speed and their
memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.card import ours, rates
from benchmarks.card.bench import Bench
from benchmarks.card.cells import STEPS, Cell, run, speed
from benchmarks.card.models import GEMMA, OPT
from benchmarks.card.verdicts import Line, finding

# The most informative first: cells that no longer fit into the time limit are left out
CELLS = (
    (GEMMA, "lora-r8"), (OPT, "full"), (GEMMA, "qlora-r8"), (GEMMA, "full"), (OPT, "lora-r8"), (GEMMA, "full-8bit"),
    (OPT, "qlora-r8"), (OPT, "full-8bit"),
)  # fmt: skip
# The first method of each pair needs less memory than the second
LESS = (("qlora-r8", "lora-r8"), ("lora-r8", "full"))
LEAST_SECONDS, NEAR = 25.0, 0.10


def check(bench: Bench) -> Iterator[Line]:
    yield from rates.measured(bench)
    cells = [Cell(bench, *names, steps=bench.sized(STEPS, 3)) for names in bench.sized(CELLS, CELLS[:3])]
    questions = [cell.question() for cell in cells]
    lines: list[Line] = []
    with ThreadPoolExecutor(1) as pool:
        predictions = pool.submit(ours.predictions, questions)
        for place, cell in enumerate(cells):
            if bench.left() < LEAST_SECONDS:
                yield {"model": cell.model, "method": cell.method, "status": None, "detail": "no time left for it"}
                continue
            result = run(cell, bench.work / f"cell-{place}", limit=bench.left() - 5)
            lines.append(measured(cell, result, predictions.result()[place]))
            yield lines[-1]
    yield from findings(lines)


def measured(cell: Cell, result: Line, answer: Line) -> Line:
    """A cell's line: its row, its speed, and the prediction against the allocator's peak."""
    here = answer.get(ours.prediction_key(cell.recipe, dry=cell.bench.dry))
    predicted = here["train"] / 1e9 if here else None
    allocated = result.get("allocated_gb")
    return {
        "model": cell.model,
        "method": cell.method,
        **result,
        **speed(cell, result),
        "predicted_gb": predicted,
        "predicted_over_allocated": predicted / allocated if predicted and allocated else None,
        **({"no_prediction": answer["because"]} if "because" in answer else {}),
    }


def findings(lines: list[Line]) -> Iterator[Line]:
    bad = [f"{line['model']}/{line['method']} {line['status']}" for line in lines if line["status"] != "ok"]
    yield finding("all end ok", ", ".join(bad) or f"{len(lines)} of {len(lines)} ok", bool(lines) and not bad)
    ok = [line for line in lines if line["status"] == "ok"]
    if not ok:
        return
    falls = [line["eval_losses"][-1] < line["eval_losses"][0] for line in ok]
    yield finding("loss falls", f"in {sum(falls)} of {len(falls)} cells", all(falls))
    yield from _less_memory(ok)
    if near := [line["predicted_over_allocated"] for line in ok if line["predicted_over_allocated"]]:
        seen = f"predictions are {min(near):.2f} to {max(near):.2f} of the allocated memory"
        yield finding("as predicted", seen, all(abs(ratio - 1) <= NEAR for ratio in near))
    else:
        yield finding("as predicted", "no cell ran on a card", None)


def _less_memory(ok: list[Line]) -> Iterator[Line]:
    """The finding on memory, from pairs of which both cells ran. On a CPU there are none."""
    peaks = {(line["model"], line["method"]): line["allocated_gb"] for line in ok if line["allocated_gb"]}
    pairs = [
        (model, less, more)
        for model in dict.fromkeys(model for model, _ in peaks)
        for less, more in LESS
        if (model, less) in peaks and (model, more) in peaks
    ]
    if not pairs:
        yield finding("fewer bytes", "no pair of cells ran on a card", None)
        return
    comparisons = [f"{m}: {a} {peaks[m, a]:.1f} GB, {b} {peaks[m, b]:.1f} GB" for m, a, b in pairs]
    yield finding("fewer bytes", "; ".join(comparisons), all(peaks[m, a] < peaks[m, b] for m, a, b in pairs))
