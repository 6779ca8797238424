"""Vectors that were computed before a process begins, which asks no API: written by its parent,
looked up by text."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from pipelines.retrieval.ranking import Vectors


class StoredVectors:
    """Callable: texts → float32 [texts, size], as `write_vectors` wrote them.

    Raises:
        ValueError: a text's vector is not in the file.
    """

    def __init__(self, file: Path) -> None:
        with np.load(file) as held:
            self._vectors: Vectors = held["vectors"]
            self._places = {str(key): place for place, key in enumerate(held["keys"])}

    def __call__(self, texts: Sequence[str]) -> Vectors:
        try:
            return self._vectors[[self._places[_key(text)] for text in texts]]
        except KeyError:
            raise ValueError(
                "a text has no embedding: the examples or documents changed while the cell waited; run the same command again"
            ) from None


def write_vectors(file: Path, texts: Sequence[str], vectors: Vectors) -> None:
    """Keep the vectors of `texts`, [texts, size]."""
    places = {_key(text): place for place, text in enumerate(texts)}
    with file.open("wb") as out:
        np.savez(out, keys=np.array(list(places), dtype="U64"), vectors=vectors[list(places.values())])


def _key(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
