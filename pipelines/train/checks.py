"""What must hold of the tokens before the first step; a model trained on wrong labels would only look worse."""

import math
from collections.abc import Sequence

from pipelines.train.prompts import IGNORE, PromptFormat, Tokenized


def tokens_are_sound(train: Sequence[Tokenized], held_out: Sequence[Tokenized], form: PromptFormat) -> None:
    """Raises ValueError with the record's id: nothing left, a BOS missing or doubled, an end that is not learned."""
    if not train:
        raise ValueError("no training record fits max_length: raise max_length, or bring shorter records")
    if not held_out:
        raise ValueError("no evaluation record fits max_length: raise max_length, or bring shorter records")
    for example in (*train, *held_out):
        where = f"record {example.example_id}"
        if form.prefix and (example.input_ids[:1] != form.prefix or example.input_ids[1:2] == form.prefix):
            raise ValueError(
                f"{where} must start with exactly one {form.tokenizer.bos_token!r}: {example.input_ids[:3]}"
            )
        if example.labels[0] != IGNORE:
            raise ValueError(f"{where} learns its first token, which no prompt precedes")
        if example.learned < 2 or example.labels[-1] == IGNORE:
            raise ValueError(f"{where} does not learn its answer up to the end: {example.learned} tokens learned")


def loss_is_sane(loss: float, *, vocabulary: int) -> None:
    """Raises ValueError where the loss before the first step (nats per completion token) cannot be that of a language model
    asked in its own format: clearly worse than guessing among the `vocabulary` (ln V), or next to nothing."""
    guessing = math.log(vocabulary)
    if loss > 1.25 * guessing + 1:
        raise ValueError(
            f"the loss before the first step is {loss:.2f} nats per completion token; guessing among {vocabulary:,} tokens would "
            f"give {guessing:.2f}. The prompt format, the tokenizer or the BOS token is not this model's: look at "
            "`featherweight train MODEL METHOD --dry-run`, and at prompt: in experiments.yaml"
        )
    if loss < 0.001:
        raise ValueError(
            f"the loss before the first step is {loss:.5f} nats per completion token, so there is nothing to learn: the answers "
            "stand in the prompts, or the model was trained on the held-out records"
        )
