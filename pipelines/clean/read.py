"""Everything the configuration trains on, as raw records: the corpus, the generator's answers, the user's own data."""

from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import UnavailableError, UsageError
from pipelines.experiments import Experiments, HubSource
from pipelines.generate.generate import generated_records
from pipelines.paths import DataRoot
from pipelines.records import RawRecord, expand, read_corpus, read_file

CORPUS = "corpus"
GENERATED = "local_generator"


def corpus_records(data: DataRoot) -> list[RawRecord]:
    """The records of data/corpus.json.

    Raises:
        UsageError: the file is missing or a record is broken; the message names the place.
    """
    return [RawRecord(source=CORPUS, value=value) for value in read_corpus(data.tracked("corpus.json"))]


def raw_records(data: DataRoot, experiments: Experiments) -> list[RawRecord]:
    """All raw records that `sources:` names, in no particular order."""
    sources = experiments.sources
    records: list[RawRecord] = []
    if sources.uses_corpus:
        records += corpus_records(data)
    if sources.uses_local_generator:
        records += generated_records(data, experiments)
    records += file_records(expand(sources.files))
    for hub in sources.hub:
        records += hub_records(hub)
    return records


def file_records(files: list[Path]) -> list[RawRecord]:
    return [record for file in files for record in read_file(file)]


def hub_records(source: HubSource) -> Iterator[RawRecord]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(source.dataset, split=source.split)
    except (OSError, DatasetsError) as error:
        raise UnavailableError(
            f"sources.hub: cannot load {source.dataset}: {error}; connect once, or fill HF_HOME."
        ) from None
    except ValueError as error:
        raise UsageError(f"sources.hub: {source.dataset} split {source.split!r}: {error}") from None
    for row in rows:
        yield RawRecord(source=source.dataset, value=row)
