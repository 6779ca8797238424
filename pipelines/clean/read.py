"""All data of the configured sources as raw records: the corpus, the generators' answers, the
user's own data."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import UnavailableError, UsageError
from pipelines.generate.generate import generated_records
from pipelines.generate.trained_on import left_out
from pipelines.lake.files import announce
from pipelines.lake.paths import DataRoot
from pipelines.records import parquet_values
from pipelines.records.reading import RawRecord, Say, Side, expand, read_corpus, read_file
from pipelines.settings.experiments import Experiments
from pipelines.settings.sources import FileSource, HubSource
from pipelines.weights import hub

CORPUS = "corpus"
GENERATED = "local_generator"
# Sources written by a model. Their records are only trained on, never evaluated on.
NEVER_EVALUATED = (GENERATED, "providers")


def corpus_records(data: DataRoot, *, side: Side | None = None) -> list[RawRecord]:
    """The records of data/corpus.json.

    Raises:
        UsageError: the file is missing or a record is broken; the message names the place.
    """
    return [RawRecord(source=CORPUS, value=value, side=side) for value in read_corpus(data.tracked("corpus.json"))]


def raw_records(data: DataRoot, experiments: Experiments, *, say: Say = announce) -> Iterator[RawRecord]:
    """All raw records of `sources:`, read lazily and in no particular order.

    `say` gets a line for each source that is off although nobody switched it off. It also gets one
    for each file whose encoding or separator had to be detected.

    Raises:
        UsageError: a source is missing or broken; the message names the place.
        UnavailableError: a dataset of the hub cannot be reached.
    """
    sources = experiments.sources
    for line in left_out(experiments):
        say(line)
    side: Side | None = "train" if sources.eval_files else None
    files, eval_files = named_files(sources.files, say=say), named_files(sources.eval_files, say=say)
    if sources.uses_corpus:
        yield from corpus_records(data, side=side)
    yield from generated_records(data, experiments)
    yield from file_records(files, side=side, say=say)
    for dataset in sources.hub:
        yield from hub_records(dataset, side=side)
    yield from file_records(eval_files, side="eval", say=say)


def named_files(sources: Iterable[FileSource], *, say: Say = announce) -> dict[Path, FileSource]:
    """Each file that these paths and globs name → the first source that names it.

    Raises:
        UsageError: a path names nothing, a folder, or a file of an unknown kind.
    """
    files: dict[Path, FileSource] = {}
    for source in sources:
        for path in expand([source.path], source.folder, say=say):
            files.setdefault(path, source)
    return files


def file_records(
    files: Mapping[Path, FileSource], *, side: Side | None = None, say: Say = announce
) -> Iterator[RawRecord]:
    """The records of these files; `side`: the side of the split to which they are fixed, if any."""
    for path, source in files.items():
        file_side = side if source.evaluate else "train"
        yield from read_file(path, encoding=source.encoding, side=file_side, columns=source.columns, say=say)


def hub_records(source: HubSource, *, side: Side | None = None) -> Iterator[RawRecord]:
    import datasets

    folder = source.placed(source.dataset)
    location = str(folder) if folder.exists() else source.dataset
    refusal = None if folder.exists() else hub.dataset_refused(source.dataset)
    if refusal and refusal.final:
        raise UnavailableError(f"sources.hub: {refusal}.")
    try:
        with hub.cache_only() if refusal else hub.short_timeout():
            rows = datasets.load_dataset(location, split=source.split)
    except ValueError as error:
        raise UsageError(f"sources.hub: {source.dataset} split {source.split!r}: {error}") from None
    except Exception as error:
        because = refusal or hub.in_words(error, source.dataset)
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UnavailableError(
            f"sources.hub: cannot load {source.dataset}: {because or first}; connect once, or fill HF_HOME."
        ) from None
    for row in _rows(rows):
        yield RawRecord(source.dataset, row, side=side if source.evaluate else "train", columns=source.columns)


def _rows(dataset: Any) -> Iterator[Any]:
    """The rows of a dataset. From the first row with a value that Python cannot represent, they are
    read from Arrow tables."""
    count = 0
    try:
        for row in dataset:
            count += 1
            yield row
    except parquet_values.UNREADABLE:
        rest = dataset.select(range(count, len(dataset))).with_format("arrow")
        for table in rest.iter(1000):
            for batch in table.to_batches():
                yield from parquet_values.rows(batch)
