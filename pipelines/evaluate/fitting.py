"""The evaluation records that every model of the profile can read, so that all models are measured
on the same set."""

from collections.abc import Sequence
from typing import Any

from pipelines.runs.worker import Worker
from pipelines.settings.methods import traits_of
from pipelines.train.left_out import MUCH, NEARLY_ALL, is_nearly_all
from pipelines.train.trainer.examples import longest
from pipelines.train.trainer.prompts import PromptFormat
from pipelines.train.trainer.templates import Unshown

Records = Sequence[dict[str, Any]]
Reader = dict[str, Any]


def fitting_everywhere(worker: Worker, records: Records, own_form: PromptFormat | None = None) -> Records:
    """The records that every model of the profile can show in its template without truncation.

    A model is ignored with a message if its tokenizer fails or if it can read almost no record.
    Its own cells then fail, and the others are measured. `own_form`: the prompt format of the
    cell's own model, if already loaded.

    Raises:
        ValueError: the ignored model is this cell's own, or no record is left.
    """
    remaining = list(records)
    for reader in worker.spec["tokenizers_to_fit"]:
        own = worker.root / reader["folder"] == worker.root / worker.spec["weights"]
        try:
            form = own_form if own and own_form and _has_same_format(worker.spec["recipe"], reader) else None
            fitting = _fitting(worker, reader, records, form)
        except (OSError, ValueError) as error:
            if own:
                raise
            worker.say(f"{reader['model']}: its tokenizer fails, so the others are measured without it: {error}")
            continue
        if is_nearly_all(len(records) - len(fitting), len(records)):
            coverage = f"can read {len(fitting) or 'none'} of {len(records)} evaluation records"
            if own:
                raise ValueError(
                    f"{reader['model']} {coverage}, with max_length {reader['max_length']}; more than {NEARLY_ALL:.0%} "
                    "are left out: raise max_length, use shorter records, or see above which records its chat template cannot show"
                )
            worker.say(f"{reader['model']}: {coverage}; measured without it")
            continue
        remaining = [record for record in remaining if record["example_id"] in fitting]
    if not remaining:
        raise ValueError(
            f"none of {len(records)} evaluation records fits every model of the profile: raise max_length, or see above which "
            "model's chat template cannot show them"
        )
    if left_out := len(records) - len(remaining):
        warning = "WARNING: " if left_out > MUCH * len(records) else ""
        worker.say(
            f"{warning}{left_out} of {len(records)} evaluation records are left out: not every model can read them"
        )
    return remaining


def _has_same_format(recipe: Reader, reader: Reader) -> bool:
    return all((recipe.get(name) or None) == (reader.get(name) or None) for name in ("prompt", "template"))


def _fitting(worker: Worker, reader: Reader, records: Records, form: PromptFormat | None) -> set[str]:
    """The ids of the records that the model can read in full."""
    from transformers import AutoConfig

    folder = worker.root / reader["folder"]
    form = form or PromptFormat.of(folder, reader)
    virtual = max(reader.get("virtual_tokens", 0), traits_of(worker.spec["recipe"]).virtual_tokens)
    limit = longest(reader["max_length"], AutoConfig.from_pretrained(folder), virtual)
    fitting, too_long, unshown = set(), 0, []
    for record in records:
        try:
            fits = all(len(example) <= limit for example in form.tokenize(record))
        except Unshown as error:
            unshown.append(str(error))
            continue
        too_long += not fits
        if fits:
            fitting.add(record["example_id"])
    if too_long or unshown:
        why = f"; the first failure of its template: {unshown[0]}" if unshown else ""
        worker.say(
            f"{reader['model']}: {too_long} evaluation records are too long, {len(unshown)} cannot be shown; no model is "
            f"measured on them{why}"
        )
    return fitting
