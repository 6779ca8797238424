"""Predictions of memory as text: a terminal table, Markdown, JSON and CSV."""

from collections.abc import Sequence

from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.show import Format, as_csv, as_json, fitting, tabulate
from pipelines.estimate.cards import CARDS, Card
from pipelines.estimate.estimate import Estimate, columns, is_checkpointed, verdict
from pipelines.hardware import machine
from pipelines.lake.schema import real, text

COLUMNS = (
    *COMPARISON.pick("model", "method"),
    real("here", "Predicted peak memory on this machine.", "GB", 2, heading="here GB"),
    text("fits", "Whether training fits this machine, and the GB that remain."),
    *(text(card.name, "Whether training fits this card, and the GB that remain.", heading=card.name) for card in CARDS),
)
# The columns that a narrow terminal shows, the most important first.
BY_IMPORTANCE = (("model", "method", "here", "fits"), *((card.name,) for card in CARDS))


def render(estimates: Sequence[Estimate], form: Format, room: int | None = None) -> str:
    """One row per cell; text is wrapped to lines of `room` terminal cells."""
    rows = [columns(estimate) for estimate in estimates]
    if form == "json":
        return as_json(rows)
    if form == "csv":
        return as_csv(rows)
    shown = [
        {
            "model": estimate.model,
            "method": estimate.method,
            "here": estimate.gb(),
            "fits": _verdict(estimate),
            **{card.name: _verdict(estimate, card) for card in CARDS},
        }
        for estimate in estimates
    ]
    fit, left_out = COLUMNS, []
    if room and form == "text":
        fit, left_out = fitting(shown, COLUMNS, room, BY_IMPORTANCE, "`--format csv`")
    return tabulate(shown, fit, [*left_out, *_notes(estimates)], form, room)


def _verdict(estimate: Estimate, card: Card | None = None) -> str | None:
    fits, margin = estimate.fits(card), estimate.margin_gb(card)
    return None if fits is None or margin is None else f"{fits} {margin:+.1f}"


def _notes(estimates: Sequence[Estimate]) -> list[str]:
    if not estimates:
        return []
    here = f"{machine.machine_class()}, of {estimates[0].capacity_gb:.1f} GB"
    notes = [
        f"here: {here}. Beside yes, tight (within the prediction's error) or no stands what remains free, in GB.",
        "cards: each computes in the format that `precision: auto` takes there: bf16; on a T4 fp16, or fp32 where the model says "
        "`fp16: false`. Left out of a card's room is what CUDA itself occupies. No card has been measured by us.",
    ]
    for batch, source in dict.fromkeys(
        (e.answer["batch"], e.answer["batch_from"]) for e in estimates if "batch" in e.answer and e.answer["trainable"]
    ):
        names = dict.fromkeys(
            e.model for e in estimates if e.answer.get("batch") == batch and e.answer["batch_from"] == source
        )
        notes.append(f"{', '.join(names)}: largest micro-batch {batch}, from {source}")
    if any(e.answer.get("recipe", {}).get("fit_micro_batch") for e in estimates):
        notes.append(
            "Predicted at the configured micro_batch_tokens; fit_micro_batch halves them where that does not fit."
        )
    notes += [note for e in estimates if (note := _otherwise(e))]
    notes += [f"{e.model} × {e.method}: {e.because}" for e in estimates if e.because]
    return notes


def _otherwise(estimate: Estimate) -> str | None:
    """A note on the cards where the other choice of gradient checkpointing matters.

    These are the cards that the cell would fit only with it, or fits even without it, which is
    faster.
    """
    checkpointed, cards = is_checkpointed(estimate.answer), []
    for card in CARDS:
        peak, fits = estimate.otherwise_gb(card), estimate.fits(card)
        if peak is None:
            continue
        other = verdict(peak, card.usable / 1e9)
        if other != "no" and (checkpointed or fits == "no"):
            cards.append(f"{card.name} ({peak:.1f} GB, {other})")
    if not cards:
        return None
    how = (
        "fits even without gradient_checkpointing, which is faster"
        if checkpointed
        else "gradient_checkpointing would fit"
    )
    return f"{estimate.model} × {estimate.method}: {how}: {', '.join(cards)}"
