"""The charge of an answer, and its oddities.

Token counts are multiplied by a price: one wrong digit could use up every budget, and a zero would
make an answer look free. So a provider's counts are believed only within bounds: the request's
reservation and the length of its text. Beyond them the reservation stays charged, the token counts
stay empty, and a note says why.
"""

import re
from dataclasses import dataclass

from pipelines.generate.answers import Answer, Usage, text_of
from pipelines.generate.budget import ROUNDING
from pipelines.generate.journal import Request
from pipelines.generate.prices import Costs, worst_usage

# The most bytes of text per token, on average over an answer: the length of the longest words of
# tokenizers in use.
MOST_BYTES_A_TOKEN = 128
# A date or "latest" at the end of a model's name; the name without it is the same model.
DATED = re.compile(r"[-@:](\d{4}-\d{2}-\d{2}|\d{8}|\d{4,6}|latest)$")


@dataclass(frozen=True)
class Settled:
    """The charge of an answer. `cost` is in dollars, None if the reservation stays charged; `usage`
    as far as believed.

    The notes are for people: oddities of the token counts, and the name of another model that
    answered.
    """

    cost: float | None
    usage: Usage
    usage_note: str | None = None
    model_note: str | None = None

    @property
    def note(self) -> str | None:
        return "; ".join(note for note in (self.usage_note, self.model_note) if note) or None


def settle(request: Request, answer: Answer, costs: Costs | None, *, reserved: float, share: float = 1.0) -> Settled:
    """Charge `answer` by its own token counts at `share` of the price; `reserved` dollars are held
    for it."""
    model_note, why = _other_model(request.model, answer.model), _odd(request, answer)
    if why:
        return Settled(None, Usage(), f"{why}: the reservation stays charged", model_note)
    plain = costs(answer.usage) if costs else None
    cost = None if plain is None else plain * share
    if cost is not None and cost > reserved + ROUNDING and reserved > 0:
        return Settled(
            None,
            answer.usage,
            f"its tokens cost ${cost:.4f}, ${reserved:.4f} are reserved and stay charged",
            model_note,
        )
    return Settled(cost, answer.usage, model_note=model_note)


def _odd(request: Request, answer: Answer) -> str | None:
    """Why the token counts cannot be those of this request; None if they can."""
    usage, worst = answer.usage, worst_usage(request)
    if answer.odd_usage:
        return answer.odd_usage
    # A content filter's error, which is not billed.
    if answer.refused and not usage.total:
        return None
    tokens_in, tokens_out = usage.input or 0, usage.output or 0
    for count, most, direction in ((tokens_in, worst.input or 0, "input"), (tokens_out, worst.output or 0, "output")):
        if count > most:
            return f"it reports {count:,} {direction} tokens, although at most {most:,} are possible"
    if not tokens_in:
        return "it reports no input tokens"
    length = _text_bytes(answer)
    if tokens_out * MOST_BYTES_A_TOKEN < length:
        return f"it reports {tokens_out:,} output tokens for a text of {length:,} bytes"
    return None


def _text_bytes(answer: Answer) -> int:
    try:
        return len(text_of(answer.raw).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return 0


def _other_model(requested: str, reported: str | None) -> str | None:
    if reported is None or not reported.strip() or _base_name(requested) == _base_name(reported):
        return None
    return f"asked for {requested}, answered by {reported}"


def _base_name(model: str) -> str:
    name = re.split(r"[/\\]", model.strip().lower())[-1].removesuffix(".gguf")
    return DATED.sub("", name)
