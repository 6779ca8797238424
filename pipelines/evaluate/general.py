"""Short texts of general knowledge, none in the style of the training data. Their bits per byte
measure forgetting."""

import json
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import UsageError
from pipelines.lake.files import stable_hash
from pipelines.train.trainer.examples import IGNORE, Tokenized
from pipelines.train.trainer.prompts import PromptFormat

FILE = "general.json"


EXPECTED = "expected a JSON list of objects with the texts `text` and `language`."


def read_general(path: Path, languages: Sequence[str] | None, limit: int | None) -> list[dict[str, str]]:
    """At most `limit` texts in `languages` (None: all) in file order; each has `text` and
    `language`.

    Raises:
        UsageError: the file is missing or not a list of such objects.
    """
    if limit == 0:
        return []
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
        usable = [one for one in texts if one["text"].strip() and (not languages or one["language"] in languages)]
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}; {EXPECTED}") from None
    except ValueError as error:
        raise UsageError(f"{path}: not JSON that can be read: {error}; {EXPECTED}") from None
    except (TypeError, KeyError, AttributeError):
        raise UsageError(f"{path}: a text or its language is missing, or is no text; {EXPECTED}") from None
    return usable[:limit]


def set_hash(texts: Sequence[dict[str, str]]) -> str | None:
    """A hash of the texts; None without texts."""
    return stable_hash([one["text"] for one in texts]) if texts else None


def plain_text(form: PromptFormat, text: str, name: str) -> Tokenized:
    """All of `text`, with every token scored.

    The first token is predicted from the model's BOS, or without one from EOS, which separates
    documents in such a model.
    """
    tokenizer = form.tokenizer
    start = form.own_bos or [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return Tokenized(
        example_id=name,
        input_ids=[*start, *ids],
        labels=[*([IGNORE] * len(start)), *ids],
        scored=[*([False] * len(start)), *([True] * len(ids))],
        completion_bytes=len(text.encode()),
    )
