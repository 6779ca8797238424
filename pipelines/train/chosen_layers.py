"""By which train records the layers of a shortened model are chosen, and what a reader of its numbers should know of the choice."""

from functools import lru_cache
from pathlib import Path

from pipelines.clean.clean import current
from pipelines.clean.select import Selected, Selection, select
from pipelines.errors import UsageError
from pipelines.lake.paths import DataRoot
from pipelines.settings.model_settings import Model
from pipelines.weights import shortened, store

RECORDS = 64  # train records that the distances are means over


def sample(data: DataRoot) -> Selected:
    """The train records that layers are chosen by: of all languages, in an order that never depends on the others.

    Raises:
        UsageError: nothing was cleaned yet.
    """
    cleaned = current(data)
    if cleaned is None:
        raise UsageError(
            f"drop_layers: no train records in {data.clean} to choose layers by: run `featherweight clean` first (or `make run`), "
            "or name the layers: drop_layers: [18, 19]."
        )
    return select(cleaned.folder / "examples.parquet", Selection(max_train=RECORDS, max_eval=0))


def dropped(data: DataRoot, name: str, model: Model) -> str | None:
    """The layers that the weights in the model's folder lack, as `12-15`; None where they lack none, or are not here."""
    record = shortened.record_of_layers(store.model_folder(data, name, model))
    return shortened.in_words(record["dropped"]) if record else None


def note_on_choice(data: DataRoot, name: str, model: Model) -> str | None:
    """That the layers were chosen by other train records than there are now. The weights stay what they are, under their name."""
    folder = store.model_folder(data, name, model)
    chosen_by = (shortened.record_of_layers(folder) or {}).get("data_fingerprint")
    cleaned = current(data) if chosen_by else None
    if cleaned is None or _fingerprint(cleaned.folder / "examples.parquet") == chosen_by:
        return None
    return (
        f"Its layers were chosen by other train records than there are now: remove the folder {folder.name} of its weights to have "
        "them chosen anew."
    )


@lru_cache(maxsize=8)
def _fingerprint(examples: Path) -> str:
    """Of the sample in a file of examples, which never changes."""
    return select(examples, Selection(max_train=RECORDS, max_eval=0)).data_fingerprint
