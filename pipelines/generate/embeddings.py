"""Texts as vectors over an API that speaks OpenAI's `/v1/embeddings`.

Batches of texts are requests of purpose `embed`. They go through the journal and the budget like
every other request, so no text is paid for twice; the journal's answers hold the vectors.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UnavailableError
from pipelines.generate.generate import Session
from pipelines.generate.journal import MOST_RESENDS, Journal, Request
from pipelines.generate.judge import ask_enabled
from pipelines.generate.vectors import ADDRESS, PURPOSE, vectors_in
from pipelines.settings.experiments import Experiments

ROLE = "embedding model"
BATCH_TEXTS = 64
BATCH_BYTES = 64_000
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Embedding:
    """The vector of one text, and the model that gave it by the response."""

    vector: Vectors
    model: str


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
    known = _known(run.journal, run.experiments, shortened)
    missing = [text for text in _distinct(shortened) if text not in known]
    if missing:
        requests = list(_requests(run.experiments, missing))
        tally = ask_enabled(run, {name: requests}, ROLE)[name]
        known = _known(run.journal, run.experiments, shortened)
        if lacking := sum(text not in known for text in missing):
            why = tally.stopped or _why_none(run.journal, requests)
            raise UnavailableError(f"{name} gave no embeddings for {lacking} of {len(missing)} texts: {why}")
    return _in_order(name, shortened, known)


def embedded(journal: Journal, experiments: Experiments, texts: Sequence[str]) -> Vectors | None:
    """The same from the journal alone; None where it lacks a text.

    Raises:
        UnavailableError: several models gave the vectors.
    """
    shortened = _cut(experiments, texts)
    known = _known(journal, experiments, shortened)
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
    """The worst case of a request is its input, since an embedding has no output tokens. The
    address is part of the request's key: another server may run another model under the same name."""
    provider = experiments.provider(provider_of(experiments))
    return {**provider.parameters, "max_tokens": 0, ADDRESS: provider.base_url}


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


def _known(journal: Journal, experiments: Experiments, texts: Iterable[str]) -> dict[str, Embedding]:
    """What the journal holds for `texts`, from the same provider, address, model and parameters."""
    name, parameters, needed = provider_of(experiments), _parameters(experiments), set(texts)
    known: dict[str, Embedding] = {}
    for row in journal.answered_for(PURPOSE, name, experiments.provider(name).model):
        request = json.loads(row["request"])
        sent = [message["content"] for message in request["messages"]]
        # A refusal of a content filter is an answer, too.
        if row["stop_reason"] or request["parameters"] != parameters or needed.isdisjoint(sent):
            continue
        body = json.loads(row["response"])
        for text, vector in zip(sent, vectors_in(body), strict=True):
            if text in needed:
                known[text] = Embedding(np.asarray(vector, dtype=np.float32), str(body.get("model")))
    return known


def _why_none(journal: Journal, requests: Iterable[Request]) -> str:
    """Why the first request without vectors has none, and what to do."""
    for row in filter(None, (journal.row(request.key) for request in requests)):
        if row["status"] == "answered" and row["stop_reason"]:
            return "its content filter refused a batch of them; another provider or a local model may not"
        if row["status"] != "answered" and row["in_doubt_count"] > MOST_RESENDS:
            error = row["error"] or "nobody knows whether it was answered"
            return f"a request was lost twice ({error}); `featherweight generate --resend-in-doubt` sends it again"
        if row["error"]:
            return f"{row['error']} (embeddings.max_bytes cuts texts that are too long)"
    return "no request was answered"


def _cut(experiments: Experiments, texts: Sequence[str]) -> list[str]:
    """The first bytes of each text, in whole characters."""
    assert experiments.embeddings
    most = experiments.embeddings.embedded_bytes
    return [text.encode("utf-8", "ignore")[:most].decode("utf-8", "ignore") for text in texts]


def _distinct(texts: Sequence[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text.strip()]


def _in_order(name: str, texts: Sequence[str], known: Mapping[str, Embedding]) -> Vectors:
    """Unit vectors of `texts`; a vector of zeros, which some servers give, stays one."""
    used = [known[text] for text in _distinct(texts)]
    kinds = {(one.model, len(one.vector)) for one in used}
    if len(kinds) > 1:
        models = " and ".join(f"{model} ({size} numbers)" for model, size in sorted(kinds))
        raise UnavailableError(
            f"{name}: several models embedded the texts, {models}, so they cannot be compared: give the provider "
            "another name in experiments.yaml, so that one model embeds all of them"
        )
    vectors = np.zeros((len(texts), len(used[0].vector) if used else 1), dtype=np.float32)
    for place, text in enumerate(texts):
        if text.strip():
            vector = known[text].vector.astype(np.float64)
            vectors[place] = vector / (np.linalg.norm(vector) or 1.0)
    return vectors
