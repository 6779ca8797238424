"""The sources of a retrieval arm besides the examples: their availability, content and paths."""

from collections.abc import Mapping
from typing import Any

from pipelines.errors import UnavailableError, UsageError
from pipelines.generate.embeddings import ROLE, provider_of
from pipelines.generate.providers import refusal
from pipelines.lake.files import announce, stable_hash
from pipelines.lake.paths import DataRoot
from pipelines.retrieval import documents, embedding_model
from pipelines.retrieval.embedding_model import Say
from pipelines.settings.experiments import Experiments
from pipelines.settings.retrieval import Retrieval

REWORDED = (
    "by: multi-query has the model say each question in other words, in a process that asks no API, so they cannot be "
    "embedded in advance: set ranked_by: bm25, or a local embedding model (`embeddings: {path: FOLDER}`)"
)
VECTORS = "vectors.npz"
"""The file in an evaluation's folder with the embeddings that an API gave."""


def embeds_over_api(experiments: Experiments, retrieval: Retrieval) -> bool:
    """Whether an API embeds the texts that this retrieval compares."""
    return retrieval.embeds and experiments.embeddings is not None and experiments.embeddings.provider is not None


def _api_identity(experiments: Experiments) -> str:
    """Equal for embeddings that one model behind one address gives of equally long texts."""
    embeddings = experiments.embeddings
    assert embeddings and embeddings.provider
    provider = experiments.provider(embeddings.provider)
    return stable_hash(
        [provider.kind, provider.base_url, provider.model, provider.parameters, embeddings.embedded_bytes]
    )


def contents(data: DataRoot, experiments: Experiments, retrieval: Retrieval) -> dict[str, Any]:
    """The part of a recipe that depends on content.

    Hashes of the documents and of the embedding model (None: not available), and the Jaccard from
    which a train record is too close.
    """
    hashes: dict[str, Any] = {}
    if retrieval.documents:
        try:
            hashes["documents"] = documents.content_hash(retrieval.documents, retrieval.folder)
        except UsageError:
            # The cell reports this when it runs. The rows of other cells must still be shown.
            hashes["documents"] = None
    else:
        hashes["jaccard"] = experiments.cleaning.near_duplicate_jaccard
    if embeds_over_api(experiments, retrieval):
        hashes["embeddings"] = _api_identity(experiments)
    elif retrieval.embeds:
        hashes["embeddings"] = embedding_model.identity(data, experiments.embeddings)
    return hashes


def require(data: DataRoot, experiments: Experiments, method: str, *, say: Say = announce) -> None:
    """Check the documents of the method's retrieval and fetch its embedding model; do nothing
    without retrieval.

    Raises:
        UnavailableError: documents or embedding model are unavailable; the message says what to do.
        WorkError: a package holds another model than the pinned one.
    """
    retrieval = experiments.methods[method].retrieval if method in experiments.methods else None
    if retrieval is None:
        return
    if retrieval.documents:
        try:
            documents.files_of(retrieval.documents, retrieval.folder)
        except UsageError as error:
            raise UnavailableError(str(error)) from None
    if embeds_over_api(experiments, retrieval):
        if retrieval.rewrites:
            raise UnavailableError(REWORDED)
    elif retrieval.embeds:
        embedding_model.fetch(data, experiments.embeddings, say=say)


def out_of_reach(data: DataRoot, experiments: Experiments, method: str) -> str | None:
    """Why the method's documents or embedding model are unavailable, as far as known without a
    download; else None."""
    retrieval = experiments.methods[method].retrieval if method in experiments.methods else None
    try:
        if retrieval and retrieval.documents:
            documents.files_of(retrieval.documents, retrieval.folder)
        if retrieval and embeds_over_api(experiments, retrieval):
            name = provider_of(experiments)
            return REWORDED if retrieval.rewrites else refusal(experiments, name, ROLE)
        if retrieval and retrieval.embeds and not (experiments.embeddings and experiments.embeddings.wheel):
            embedding_model.fetch(data, experiments.embeddings)
    except (UsageError, UnavailableError) as error:
        return str(error)
    return None


def spec_entries(
    data: DataRoot, experiments: Experiments, recipe: Mapping[str, Any] | None, method: str
) -> dict[str, dict[str, Any]]:
    """The entries of a process's spec with the paths of the sources; {} if it retrieves nothing."""
    retrieval = experiments.methods[method].retrieval if method in experiments.methods else None
    if not recipe or retrieval is None:
        return {}
    places: dict[str, Any] = {}
    if retrieval.documents:
        places |= {"documents": list(retrieval.documents), "folder": str(retrieval.folder.absolute())}
    if embeds_over_api(experiments, retrieval):
        places["vectors"] = VECTORS
    elif retrieval.embeds and experiments.embeddings:
        folder = embedding_model.model_folder(data, experiments.embeddings).absolute()
        places["embeddings"] = str(folder.relative_to(data.root) if folder.is_relative_to(data.root) else folder)
    return {"retrieval": places}
