"""One example as the trainer sees it, token by token with its labels, and the loss before the first
step."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.errors import UsageError
from pipelines.project import Resolved
from pipelines.runs.cells import CellKey
from pipelines.settings.methods import traits_of
from pipelines.train.cell import no_examples
from pipelines.train.trainer import tokenizing
from pipelines.train.trainer.examples import IGNORE, Tokenized, longest
from pipelines.train.trainer.prompts import DAY_BY_DAY, PromptFormat


def dry_run(resolved: Resolved, key: CellKey) -> Iterator[str]:
    """Lines that show the first training example, its labels and ends, and its loss at step 0.

    Raises:
        UsageError: there is nothing to train on.
        ValueError: the model would learn wrong tokens.
    """
    plan = resolved.plan(key)
    selected, recipe = plan.selected, dict(plan.recipe)
    if not selected.train:
        raise UsageError(no_examples(resolved.project, key.method))
    import torch
    from transformers import AutoConfig

    from pipelines.train.trainer import checks, loading
    from pipelines.train.trainer.losses import head_on_positions, token_losses
    from pipelines.weights import store

    loading.quiet()
    folder = store.fetch(resolved.data, resolved.experiments, key.model)
    form = PromptFormat.of(folder, recipe)
    limit = longest(recipe["max_length"], AutoConfig.from_pretrained(folder))
    train, held_out = (_first(form, records, limit) for records in (selected.train, selected.eval))
    model_settings = resolved.experiments.model(key.model)
    recorded = {"bos": model_settings.bos, "end": model_settings.end}
    checks.tokenizer_is_as_recorded(form, recorded)
    checks.end_stops_generation(form, recorded)
    checks.something_is_shown(train, held_out)
    checks.tokens_are_sound(train.examples, held_out.examples, form)
    example = train.examples[0]
    yield f"{key}: example {example.example_id}, {len(example)} tokens, {example.learned} of them learned"
    yield from _tokens(example, form)
    yield (
        f"BOS: {form.tokenizer.decode(form.prefix)!r} in front" if form.prefix else "BOS: none, as this model is asked"
    )
    if form.arguments:
        yield f"template: {', '.join(f'{name}={value!r}' for name, value in sorted(form.arguments.items()))}"
    if form.tells_the_day:
        yield DAY_BY_DAY.format(key.model)
    yield f"end: {form.tokenizer.decode([example.labels[-1]])!r} is learned as the answer's end"
    model = loading.load_model(folder, recipe)
    model = loading.add_adapter(model, recipe) if traits_of(recipe).has_adapter else model
    model.eval()
    with torch.no_grad(), head_on_positions(model) as positions:
        loss = token_losses(model, [example], positions, loading.device()).mean().item()
    yield f"loss at step 0: {loss:.4f} nats per completion token"


def _first(form: PromptFormat, records: Sequence[Mapping[str, Any]], limit: int) -> tokenizing.TokenizedRecords:
    """The examples of the first record that the template shows and that fits `limit`; of all
    records if none does."""
    for record in records:
        tokenized = tokenizing.tokenize(form, [record], limit)
        if tokenized.examples:
            return tokenized
    return tokenizing.tokenize(form, records, limit)


def _tokens(example: Tokenized, form: PromptFormat) -> Iterator[str]:
    yield f"{'pos':>4}  {'id':>6}  {'label':>6}  token"
    for position, (token, label) in enumerate(zip(example.input_ids, example.labels, strict=True)):
        shown = "–" if label == IGNORE else str(label)
        yield f"{position:>4}  {token:>6}  {shown:>6}  {form.tokenizer.decode([token])!r}"
