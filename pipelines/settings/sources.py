"""Sources: the data that cells train on."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines.records.text_encoding import Encoding
from pipelines.settings.strict import NamesFiles, Strict

ColumnName = Literal[
    "instruction", "input", "output", "system", "history", "messages", "tools", "chosen", "label", "language", "topic"
]
Columns = dict[ColumnName, Annotated[str, Field(min_length=1)]]


def _require_answer_column(columns: Columns | None) -> Columns | None:
    if columns is not None and not (
        {"messages", "chosen"} & columns.keys() or {"instruction", "output"} <= columns.keys()
    ):
        raise ValueError(f"got {', '.join(columns) or 'none'}; expected instruction and output, or messages, or chosen")
    return columns


NamedColumns = Annotated[Columns | None, AfterValidator(_require_answer_column)]


class FileSource(NamesFiles):
    """A path or glob of the user's files. A plain path is a file without further settings."""

    path: str
    """Path or glob of JSON, JSONL, CSV, TSV or Parquet files."""
    encoding: Encoding = "utf-8"
    """Encoding of the files; with the default the encoding of a CSV file is detected."""
    evaluate: bool = True
    """False: its records only ever train."""
    columns: NamedColumns = None
    """Names of its fields, such as {instruction: 질문, output: 답변}; no other field is then read.
    Unset: known names are found."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data


class HubSource(NamesFiles):
    """A dataset of the hub."""

    dataset: str
    """Dataset of the hub, OWNER/NAME, or a folder that `datasets` can load."""
    split: str = "train"
    """Split of the dataset, such as train[:50%]."""
    evaluate: bool = True
    """False: its records only ever train."""
    columns: NamedColumns = None
    """Names of its fields; no other field is then read. Unset: known names are found."""


class Sources(Strict):
    """Sources of the training data.

    A user's own data (files, hub) replaces the other sources unless `mix` joins them.
    """

    corpus: bool = False
    """Whether cells train on data/corpus.json."""
    local_generator: bool = False
    """Whether the provider of kind local writes records to train on."""
    providers: list[str] = []
    """Providers whose answers are train records, once they are `enabled`."""
    files: list[FileSource] = []
    """Your own files, which replace all of the above unless `mix` is true."""
    hub: list[HubSource] = []
    """Datasets of the hub, which replace all of the above unless `mix` is true."""
    mix: bool = False
    """Whether files and hub join the sources named above instead of replacing them."""
    eval_files: list[FileSource] = []
    """A fixed evaluation set; all other records then only train."""

    @model_validator(mode="after")
    def _require_source(self) -> "Sources":
        if not (self.corpus or self.local_generator or self.providers or self.files or self.hub):
            raise ValueError("names nothing to train on; set corpus, local_generator, providers, files or hub")
        return self

    @property
    def own_only(self) -> bool:
        return bool(self.files or self.hub) and not self.mix

    @property
    def uses_corpus(self) -> bool:
        return self.corpus and not self.own_only

    @property
    def uses_local_generator(self) -> bool:
        return self.local_generator and not self.own_only

    @property
    def used_providers(self) -> list[str]:
        return [] if self.own_only else self.providers
