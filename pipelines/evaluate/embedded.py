"""Embeddings over an API for a retrieval arm. The evaluation's own process asks no API, so its
parent embeds what it will look up and puts the vectors beside the spec."""

from collections.abc import Sequence

from pipelines.evaluate.retrieved import document_items, last_question, train_items
from pipelines.generate import embeddings
from pipelines.generate.generate import session
from pipelines.generate.journal import opened
from pipelines.lake.files import announce
from pipelines.project import Resolved
from pipelines.retrieval.embedding_model import Say
from pipelines.retrieval.ranking import Vectors
from pipelines.retrieval.sources import VECTORS, embeds_over_api
from pipelines.retrieval.stored_vectors import write_vectors
from pipelines.runs.cells import Evaluation


def write_api_vectors(resolved: Resolved, evaluation: Evaluation, *, say: Say = announce) -> None:
    """Write the embeddings of all passages or train records and of all questions. Do nothing if no
    API embeds.

    Raises:
        UnavailableError: the provider may not be asked, or some texts got no vector.
        UsageError: the documents are not there.
        WorkError: the journal cannot be written.
    """
    experiments = resolved.experiments
    method = experiments.methods.get(evaluation.attempt.key.method)
    if method is None or method.retrieval is None or not embeds_over_api(experiments, method.retrieval):
        return
    retrieval = method.retrieval
    if retrieval.documents:
        place = {"documents": retrieval.documents, "folder": str(retrieval.folder)}
        items = document_items(place, size=retrieval.passage_chars, expected=None)
    else:
        items = train_items(resolved.selected.train)
    texts = [*(item.text for item in items), *(last_question(record) for record in resolved.selected.eval)]
    write_vectors(evaluation.folder / VECTORS, texts, embed(resolved, texts, say=say))


def embed(resolved: Resolved, texts: Sequence[str], *, say: Say = announce) -> Vectors:
    """The vectors of `texts`. The lock on sending is taken only if the journal lacks some of
    them."""
    if resolved.data.journal.exists():
        with opened(resolved.data.journal) as journal:
            vectors = embeddings.embedded(journal, resolved.experiments, texts)
        if vectors is not None:
            return vectors
    say(f"retrieval: {embeddings.provider_of(resolved.experiments)} embeds texts that it has not embedded before")
    with session(resolved.data, resolved.experiments) as run:
        return embeddings.embed(run, texts)
