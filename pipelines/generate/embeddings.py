"""Texts as vectors over an API that speaks OpenAI's `/v1/embeddings`.

Batches of texts are requests of purpose `embed`. They go through the journal and the budget like
every other request, so no text is paid for twice; the journal's answers hold the vectors.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UnavailableError
from pipelines.generate.generate import Session
from pipelines.generate.journal import Journal, Request
from pipelines.generate.judge import ask_enabled
from pipelines.generate.vectors import PURPOSE, vectors_in
from pipelines.settings.experiments import Experiments

ROLE = "embedding model"
BATCH_TEXTS = 64
BATCH_BYTES = 64_000
Vectors = NDArray[np.float32]


def provider_of(experiments: Experiments) -> str:
    """The name of the provider that embeds texts."""
    assert experiments.embeddings and experiments.embeddings.provider
    return experiments.embeddings.provider


def embed(run: Session, texts: Sequence[str]) -> Vectors:
    """Embed the texts, asking the provider for those that the journal lacks.

    Returns float32 [texts, size], each row of length 1; the row of an empty text is zeros.

    Raises:
        UnavailableError: the provider may not be asked, or some texts got no vector.
        WorkError: the journal cannot be written.
    """
    name, shortened = provider_of(run.experiments), _cut(run.experiments, texts)
    known = _known(run.journal, run.experiments)
    missing = [text for text in _distinct(shortened) if text not in known]
    if missing:
        requests = list(_requests(run.experiments, missing))
        tally = ask_enabled(run, {name: requests}, ROLE)[name]
        known = _known(run.journal, run.experiments)
        if lacking := sum(text not in known for text in missing):
            why = tally.stopped or _first_error(run.journal, requests)
            raise UnavailableError(f"{name} gave no embeddings for {lacking} of {len(missing)} texts: {why}")
    return _in_order(name, shortened, known)


def embedded(journal: Journal, experiments: Experiments, texts: Sequence[str]) -> Vectors | None:
    """The same from the journal alone; None where it lacks a text.

    Raises:
        UnavailableError: the journal holds vectors of several sizes.
    """
    shortened, known = _cut(experiments, texts), _known(journal, experiments)
    if any(text not in known for text in _distinct(shortened)):
        return None
    return _in_order(provider_of(experiments), shortened, known)


def _requests(experiments: Experiments, texts: Sequence[str]) -> Iterator[Request]:
    """Distinct texts in batches of at most BATCH_TEXTS texts and BATCH_BYTES bytes."""
    name = provider_of(experiments)
    for batch in _batches(texts):
        yield Request(
            provider=name,
            model=experiments.provider(name).model,
            messages=[{"role": "user", "content": text} for text in batch],
            parameters=_parameters(experiments),
            schema={},
            purpose=PURPOSE,
        )


def _parameters(experiments: Experiments) -> dict[str, Any]:
    """An embedding has no output tokens: the worst case of a request is its input."""
    return {**experiments.provider(provider_of(experiments)).parameters, "max_tokens": 0}


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        length = len(text.encode())
        if batch and (len(batch) == BATCH_TEXTS or size + length > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += length
    if batch:
        yield batch


def _known(journal: Journal, experiments: Experiments) -> dict[str, list[float]]:
    """The vectors in the journal, by text, from the same provider, model and parameters."""
    name, parameters = provider_of(experiments), _parameters(experiments)
    vectors: dict[str, list[float]] = {}
    for row in journal.answered_for(PURPOSE, name, experiments.provider(name).model):
        request = json.loads(row["request"])
        if request["parameters"] == parameters:
            texts = [message["content"] for message in request["messages"]]
            vectors.update(zip(texts, vectors_in(json.loads(row["response"])), strict=True))
    return vectors


def _first_error(journal: Journal, requests: Iterable[Request]) -> str:
    for request in requests:
        row = journal.row(request.key)
        if row and row["error"]:
            return f"{row['error']}; where a text is too long for it, lower embeddings.max_bytes"
    return "its requests were lost twice; `featherweight generate --resend-in-doubt` lets them be sent again"


def _cut(experiments: Experiments, texts: Sequence[str]) -> list[str]:
    """The first bytes of each text, in whole characters."""
    assert experiments.embeddings
    most = experiments.embeddings.embedded_bytes
    return [text.encode("utf-8", "ignore")[:most].decode("utf-8", "ignore") for text in texts]


def _distinct(texts: Sequence[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text.strip()]


def _in_order(name: str, texts: Sequence[str], known: dict[str, list[float]]) -> Vectors:
    """Unit vectors of `texts`; a vector of zeros, which some servers give, stays one."""
    sizes = {len(known[text]) for text in texts if text.strip()}
    if len(sizes) > 1:
        counts = " and ".join(map(str, sorted(sizes)))
        raise UnavailableError(
            f"{name} gave embeddings of {counts} numbers, so it is not one model that answered: give the provider that "
            "answers now another name in experiments.yaml"
        )
    vectors = np.zeros((len(texts), next(iter(sizes), 1)), dtype=np.float32)
    for place, text in enumerate(texts):
        if text.strip():
            vector = np.asarray(known[text], dtype=np.float64)
            vectors[place] = vector / (np.linalg.norm(vector) or 1.0)
    return vectors
