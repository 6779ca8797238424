"""Texts as vectors, by an embedding model in a folder.

A vector is the mean of a text's last hidden states, scaled to length 1, as sentence-transformers
computes it (Reimers and Gurevych 2019). If the folder's configuration says so, it is the first
state instead of the mean.

In a process of its own: `python -m pipelines.retrieval.embedding FOLDER TEXTS.json VECTORS.npy`.
"""
# ruff: noqa: TID253

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from pipelines.errors import UnavailableError
from pipelines.lake.files import announce, read_json
from pipelines.retrieval.ranking import Vectors
from pipelines.runs.process import die_with_parent

# Tokens of one text. A longer text is cut, as in the training of embedding models.
MOST_TOKENS = 512
# Padded tokens of one forward pass.
BATCH_TOKENS = 8192
# Texts between two progress messages.
REPORT_EVERY = 2000


class Embedder:
    """Callable: texts → float32 [texts, size]. Each row has length 1; the row of an empty text is
    zeros.

    Raises:
        UnavailableError: the folder holds no model that transformers can load, or one with an
            unsupported pooling.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = announce) -> None:
        self._say = say
        self._first = _pools_first(folder)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise UnavailableError(f"the embedding model in {folder} cannot be loaded: {first:.200}") from None
        self._model = model.eval().to(self._device)
        window = getattr(model.config, "max_position_embeddings", None) or MOST_TOKENS
        self._longest = min(MOST_TOKENS, self._tokenizer.model_max_length, window)

    def __call__(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), self._model.config.hidden_size), dtype=np.float32)
        places = [place for place, text in enumerate(texts) if text.strip()]
        if not places:
            return vectors
        input_ids = self._tokenizer(
            [texts[place] for place in places], truncation=True, max_length=self._longest
        ).input_ids
        tokens = {place: ids for place, ids in zip(places, input_ids, strict=True) if ids}
        done = 0
        for batch in _batches(sorted(tokens, key=lambda place: len(tokens[place])), tokens):
            vectors[batch] = self._embed([tokens[place] for place in batch])
            if (done + len(batch)) // REPORT_EVERY > done // REPORT_EVERY:
                self._say(f"retrieval: {done + len(batch)} of {len(tokens)} texts have their embeddings")
            done += len(batch)
        return vectors

    def _embed(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        longest = max(map(len, tokens))
        ids = torch.zeros((len(tokens), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text_tokens in enumerate(tokens):
            ids[row, : len(text_tokens)], mask[row, : len(text_tokens)] = torch.tensor(text_tokens), 1
        with torch.no_grad():
            states = self._model(input_ids=ids.to(self._device), attention_mask=mask.to(self._device)).last_hidden_state
        states, weights = states.float().cpu(), mask.unsqueeze(-1).float()
        pooled = states[:, 0] if self._first else (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(pooled, dim=1).numpy()


def _pools_first(folder: Path) -> bool:
    """Whether the sentence-transformers configuration takes the first token's state instead of the
    mean, the default."""
    config = read_json(folder / "1_Pooling" / "config.json") or {}
    mode = config.get("pooling_mode") or next(
        (name for name, on in config.items() if name.startswith("pooling_mode_") and on), "mean"
    )
    if "mean" in mode and "weighted" not in mode and "sqrt" not in mode:
        return False
    if "cls" in mode:
        return True
    raise UnavailableError(
        f"the embedding model in {folder} pools by {mode}; expected the mean of its tokens or the first"
    )


def _batches(order: Sequence[int], tokens: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """Places in batches of at most BATCH_TOKENS padded tokens; `order` is by ascending length."""
    batches: list[list[int]] = []
    for place in order:
        if batches and len(tokens[place]) * (len(batches[-1]) + 1) <= BATCH_TOKENS:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def main(folder: str, texts: str, vectors: str) -> int:
    die_with_parent()
    try:
        np.save(vectors, Embedder(Path(folder))(read_json(Path(texts)) or []))
    except UnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
