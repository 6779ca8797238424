"""The train records that choose the layers of a shortened model, and a note for readers of its
numbers."""

from functools import lru_cache
from pathlib import Path

from pipelines.clean.clean import current
from pipelines.clean.select import Selected, Selection, select
from pipelines.errors import UsageError
from pipelines.lake.paths import DataRoot
from pipelines.settings.model_settings import Model
from pipelines.weights import shortened, store

# The distances are means over this many train records.
RECORDS = 64


def sample(data: DataRoot) -> Selected:
    """The train records that choose the layers, of all languages.

    A record's place in the order depends on that record alone.

    Raises:
        UsageError: there are no cleaned records yet.
    """
    cleaned = current(data)
    if cleaned is None:
        raise UsageError(
            f"drop_layers: no train records in {data.clean} to choose layers by: run `featherweight clean` first "
            "(or `make run`), or name the layers: drop_layers: [18, 19]."
        )
    return select(cleaned.folder / "examples.parquet", Selection(max_train=RECORDS, max_eval=0))


def dropped(data: DataRoot, name: str, model: Model) -> str | None:
    """The layers that the weights in the model's folder lack, as `12-15`; None for a complete or
    absent model."""
    record = shortened.record_of_layers(store.model_folder(data, name, model))
    return shortened.in_words(record["dropped"]) if record else None


def note_on_choice(data: DataRoot, name: str, model: Model) -> str | None:
    """A note if other train records than the current ones chose the layers. The weights stay as
    they are."""
    folder = store.model_folder(data, name, model)
    chosen_by = (shortened.record_of_layers(folder) or {}).get("data_fingerprint")
    cleaned = current(data) if chosen_by else None
    if cleaned is None or _fingerprint(cleaned.folder / "examples.parquet") == chosen_by:
        return None
    return (
        f"Its layers were chosen by other train records than the current ones: remove the folder {folder.name} of its "
        "weights to choose them anew."
    )


@lru_cache(maxsize=8)
def _fingerprint(examples: Path) -> str:
    """The data fingerprint of the sample in a file of examples, which never changes."""
    return select(examples, Selection(max_train=RECORDS, max_eval=0)).data_fingerprint
