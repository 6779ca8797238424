"""Rankings of texts for a query. All are deterministic: of equal scores the earlier text comes
first.

BM25 is Lucene's variant (Kamphuis et al. 2020), computed by bm25s. Dense is the cosine of
embeddings. Several rankings are fused by their reciprocal ranks: Σ 1 / (60 + rank). Source:
Cormack, Clarke and Büttcher 2009, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
Learning Methods", SIGIR.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.retrieval.words import words
from pipelines.settings.retrieval import Ranker

# The constant of Cormack et al.
FUSION_K = 60
# Best places of a ranking that count for fusion.
DEPTH = 100
# [texts, size]; each row has length 1 or 0.
Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]
# Places of texts, the best first.
Ranking = list[int]


class Bm25:
    """BM25 over `texts`. A text that shares no word with a query is not in its ranking."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        tokens = {place: text_words for place, text in enumerate(texts) if (text_words := words(text))}
        self._places = list(tokens)
        self._index = bm25s.BM25(method="lucene") if tokens else None
        if self._index:
            self._index.index(list(tokens.values()), show_progress=False)

    def rank(self, query: str) -> Ranking:
        query_words = words(query)
        if self._index is None or not query_words:
            return []
        scores = self._index.get_scores(query_words)
        return [self._places[at] for at in _best_first(scores)[: np.count_nonzero(scores > 0)]]


class Dense:
    """The cosine between the embeddings of `texts` and of a query, by `embed`."""

    def __init__(self, texts: Sequence[str], embed: Embed) -> None:
        self._embed = embed
        self._vectors = embed(texts) if texts else np.zeros((0, 1), dtype=np.float32)

    def rank_all(self, queries: Sequence[str]) -> list[Ranking]:
        if not len(self._vectors) or not queries:
            return [[] for _ in queries]
        # Rounded, so that ties do not depend on the order of summation in another batch or on
        # another processor.
        return [_best_first(np.round(self._vectors @ query, 5)) for query in self._embed(queries)]


class Index:
    """An index of `texts` for the ranker `by`. `embed` turns texts into vectors, for rankers that
    need them."""

    def __init__(self, texts: Sequence[str], by: Ranker, embed: Embed | None = None) -> None:
        if by != "bm25" and embed is None:
            raise ValueError(f"by {by} needs an embedding model; none was given")
        self._bm25 = Bm25(texts) if by in ("bm25", "ensemble") else None
        self._dense = Dense(texts, embed) if by in ("dense", "ensemble") and embed else None

    def rank_all(self, queries: Sequence[str]) -> list[Ranking]:
        """The ranking for each query."""
        by_words = [self._bm25.rank(query) for query in queries] if self._bm25 else []
        by_meaning = self._dense.rank_all(queries) if self._dense else []
        if not (by_words and by_meaning):
            return by_words or by_meaning
        return [fused(both) for both in zip(by_words, by_meaning, strict=True)]


def fused(rankings: Sequence[Ranking]) -> Ranking:
    """Several rankings fused into one by their reciprocal ranks; ranks count from 1."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, place in enumerate(ranking[:DEPTH], start=1):
            scores[place] = scores.get(place, 0.0) + 1 / (FUSION_K + rank)
    return sorted(scores, key=lambda place: (-scores[place], place))


def _best_first(scores: NDArray[np.floating]) -> Ranking:
    return np.argsort(-scores, kind="stable").tolist()
