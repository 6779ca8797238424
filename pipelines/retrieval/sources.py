"""What a retrieval arm reads besides the examples: whether it is here, what it holds now, and where its process finds it."""

from collections.abc import Mapping
from typing import Any

from pipelines.errors import UnavailableError, UsageError
from pipelines.generate.providers import enabled, missing_key
from pipelines.lake.files import announce, stable_hash
from pipelines.lake.paths import DataRoot
from pipelines.retrieval import documents, embedding_model
from pipelines.retrieval.embedding_model import Say
from pipelines.settings.experiments import Experiments
from pipelines.settings.retrieval import Retrieval

REWORDED = (
    "by: multi-query has the model say each question in other words, in a process that asks no API, so their embeddings are "
    "not known before: take ranked_by: bm25, or a local embedding model (`embeddings: {path: FOLDER}`)"
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
    return stable_hash([provider.kind, provider.base_url, provider.model, provider.parameters, embeddings.max_bytes])


def _api_refusal(experiments: Experiments) -> str | None:
    """Why the provider that embeds may not be asked; None if it may."""
    assert experiments.embeddings and experiments.embeddings.provider
    name = experiments.embeddings.provider
    if name not in enabled(experiments):
        return f"the embedding model {name} is not enabled, and asking it may cost money: set providers.{name}.enabled: true"
    return missing_key(experiments.provider(name))


def contents(data: DataRoot, experiments: Experiments, retrieval: Retrieval) -> dict[str, Any]:
    """What of a recipe the contents decide: hashes of the documents and of the embedding model (None: not here), and how close a
    train record may not be."""
    hashes: dict[str, Any] = {}
    if retrieval.documents:
        try:
            hashes["documents"] = documents.content_hash(retrieval.documents, retrieval.folder)
        except UsageError:  # the cell says so when it is run; the others' rows are shown all the same
            hashes["documents"] = None
    else:
        hashes["jaccard"] = experiments.cleaning.near_duplicate_jaccard
    if embeds_over_api(experiments, retrieval):
        hashes["embeddings"] = _api_identity(experiments)
    elif retrieval.embeds:
        hashes["embeddings"] = embedding_model.identity(data, experiments.embeddings)
    return hashes


def require(data: DataRoot, experiments: Experiments, method: str, *, say: Say = announce) -> None:
    """Bring or look at what the method's retrieval reads; nothing where it has none.

    Raises:
        UnavailableError: its documents or its embedding model are not to be had, with what to do.
        WorkError: a package holds something else than was pinned.
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
    """Why the method's documents or embedding model are not to be had, as far as that is known with nothing fetched; else None."""
    retrieval = experiments.methods[method].retrieval if method in experiments.methods else None
    try:
        if retrieval and retrieval.documents:
            documents.files_of(retrieval.documents, retrieval.folder)
        if retrieval and embeds_over_api(experiments, retrieval):
            return REWORDED if retrieval.rewrites else _api_refusal(experiments)
        if retrieval and retrieval.embeds and not (experiments.embeddings and experiments.embeddings.wheel):
            embedding_model.fetch(data, experiments.embeddings)
    except (UsageError, UnavailableError) as error:
        return str(error)
    return None


def spec_entries(
    data: DataRoot, experiments: Experiments, recipe: Mapping[str, Any] | None, method: str
) -> dict[str, dict[str, Any]]:
    """Where a process finds what the recipe names, for its spec; {} where it retrieves nothing."""
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
