"""What a retrieval arm reads besides the examples: whether it is here, what it holds now, and where its process finds it."""

from collections.abc import Mapping
from typing import Any

from pipelines.errors import UnavailableError, UsageError
from pipelines.lake.files import announce
from pipelines.lake.paths import DataRoot
from pipelines.retrieval import documents, embedding_model
from pipelines.retrieval.embedding_model import Say
from pipelines.settings.experiments import Experiments
from pipelines.settings.retrieval import Retrieval


def contents(data: DataRoot, experiments: Experiments, retrieval: Retrieval) -> dict[str, Any]:
    """What of a recipe the contents decide: hashes of the documents and of the embedding model (None: not here), and how close a
    train record may not be."""
    found: dict[str, Any] = {}
    if retrieval.documents:
        try:
            found["documents"] = documents.content_hash(retrieval.documents, retrieval.folder)
        except UsageError:  # the cell says so when it is run; the others' rows are shown all the same
            found["documents"] = None
    else:
        found["jaccard"] = experiments.cleaning.near_duplicate_jaccard
    if retrieval.embeds:
        found["embeddings"] = embedding_model.identity(data, experiments.embeddings)
    return found


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
    if retrieval.embeds:
        embedding_model.fetch(data, experiments.embeddings, say=say)


def out_of_reach(data: DataRoot, experiments: Experiments, method: str) -> str | None:
    """Why the method's documents or embedding model are not to be had, as far as that is known with nothing fetched; else None."""
    retrieval = experiments.methods[method].retrieval if method in experiments.methods else None
    try:
        if retrieval and retrieval.documents:
            documents.files_of(retrieval.documents, retrieval.folder)
        if retrieval and retrieval.embeds and not (experiments.embeddings and experiments.embeddings.wheel):
            embedding_model.fetch(data, experiments.embeddings)
    except (UsageError, UnavailableError) as error:
        return str(error)
    return None


def told(
    data: DataRoot, experiments: Experiments, recipe: Mapping[str, Any] | None, method: str
) -> dict[str, dict[str, Any]]:
    """Where a process finds what the recipe names, for its spec; {} where it retrieves nothing."""
    retrieval = experiments.methods[method].retrieval if method in experiments.methods else None
    if not recipe or retrieval is None:
        return {}
    found: dict[str, Any] = {}
    if retrieval.documents:
        found |= {"documents": list(retrieval.documents), "folder": str(retrieval.folder.absolute())}
    if retrieval.embeds and experiments.embeddings:
        folder = embedding_model.model_folder(data, experiments.embeddings).absolute()
        found["embeddings"] = str(folder.relative_to(data.root) if folder.is_relative_to(data.root) else folder)
    return {"retrieval": found}
