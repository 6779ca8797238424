"""The `providers` and `generation` sections of experiments.yaml: who may be asked, what for, and what it may cost."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipelines.records.expected import expected_one_of
from pipelines.settings.strict import NamesFiles, Strict

Kind = Literal["local", "anthropic", "openai", "openai-compatible"]
KEY_ENV = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
HAVE_BATCHES = ("anthropic", "openai")
EMBED = ("openai", "openai-compatible")
# Parameters that change neither what is asked for nor what a token costs. At a priced API nothing else may be handed through,
# since the budget's worst case would no longer hold (`service_tier`, `n`, tools with prices of their own, ...).
PLAIN_PARAMETERS = (
    "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "logit_bias", "seed", "stop",
    "stop_sequences", "reasoning_effort", "verbosity", "thinking", "output_config", "metadata", "user",
)  # fmt: skip
OURS = (
    "model",
    "messages",
    "system",
    "max_tokens",
    "max_completion_tokens",
    "response_format",
    "stream",
    "extra_headers",
    "n",  # one answer a request; generation.replicates asks for more
    "best_of",
)


class Price(Strict):
    """Dollars per million tokens, over what the bundled price table says, or where it says nothing."""

    input: NonNegativeFloat
    """Price of input tokens."""
    output: NonNegativeFloat
    """Price of output tokens."""
    cached_input: NonNegativeFloat | None = None
    """Price of input tokens that the provider read from its cache. Unset: as `input`."""
    batch_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the price that a batch costs."""


class Provider(Strict):
    """One model behind one API. A key in the environment alone asks nobody."""

    kind: Kind
    """Whose API it speaks; `local` is a server that Featherweight starts on this machine."""
    model: str
    """The model's name at the provider; of kind local its name under `models`."""
    enabled: bool = False
    """Whether it is asked over its API; kind local goes by `sources.local_generator` instead."""
    base_url: str | None = None
    """Address of the API, which openai-compatible needs. Unset: the provider's own."""
    api_key_env: str | None = None
    """Environment variable that holds the key. Unset: ANTHROPIC_API_KEY or OPENAI_API_KEY; openai-compatible: no key."""
    concurrency: PositiveInt = 8
    """Requests under way at once, at most."""
    timeout_seconds: PositiveFloat = 120
    """Time after which a request counts as lost, and so as in doubt."""
    longest_retry_after_seconds: PositiveFloat = 60
    """Longest pause that is made at a provider's wish, however long it asks for."""
    max_answer_mb: PositiveFloat = 8
    """Size of one decoded response, beyond which it is broken off."""
    budget_usd: NonNegativeFloat | None = None
    """Dollars of this provider, over everything the journal ever recorded. Unset: the common budget alone."""
    price: Price | None = None
    """Prices that go over those of the bundled table. Unset: the table's."""
    parameters: dict[str, JsonValue] = {}
    """Further parameters of a request, such as temperature."""
    batch: bool = False
    """Whether requests go out as batches, at half the price (kinds anthropic and openai)."""
    requests: NonNegativeInt | None = None
    """Requests to this provider. Unset: those of `generation`."""
    max_tokens: PositiveInt | None = None
    """Tokens of one answer, at most. Unset: those of `generation`."""
    languages: list[str] | None = None
    """Languages that it writes records in. Unset: those of `generation`."""

    @property
    def key_env(self) -> str | None:
        """The environment variable that holds the key; None where none is needed."""
        return self.api_key_env or KEY_ENV.get(self.kind)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "Provider":
        if self.kind == "openai-compatible" and not self.base_url:
            raise ValueError("kind openai-compatible needs base_url, such as http://127.0.0.1:8000/v1")
        if self.kind == "local" and (self.base_url or self.api_key_env or self.batch):
            raise ValueError(
                "kind local starts a server of its own: base_url, api_key_env and batch do not belong here"
            )
        if self.batch and self.kind not in HAVE_BATCHES:
            raise ValueError(f"batch needs kind {' or '.join(HAVE_BATCHES)}")
        if self.base_url is not None:
            _check_url(self.base_url)
        return self

    @model_validator(mode="after")
    def _plain_parameters(self) -> "Provider":
        priced = self.kind in KEY_ENV
        for name in self.parameters:
            if name in OURS:
                raise ValueError(f"parameters.{name} is set by the generator itself; leave it out")
            if priced and name not in PLAIN_PARAMETERS:
                raise ValueError(
                    f"parameters.{name} may change what a request costs; {expected_one_of(name, list(PLAIN_PARAMETERS))}"
                )
        return self


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url {url!r}: expected http://host:port/... or https://...")
    _ = parts.port  # a ValueError that says so where it is none
    if parts.username or parts.password:
        raise ValueError("base_url holds a user or password: keep secrets in the environment (api_key_env)")


class Judge(Strict):
    """Who compares the providers' records, in pairs, both orders asked."""

    providers: Annotated[list[str], Field(min_length=1)]
    """Who may judge; the first of another family than both providers is taken."""
    max_cells: PositiveInt = 50
    """Topic cells that are compared for each pair of providers, at most."""
    max_tokens: PositiveInt = 400
    """Tokens of one verdict, at most."""
    criteria: str = (
        "helpful to the person who asked, correct, natural in its language, and in the form that was asked for"
    )
    """The definition of a good record that the judge gets."""


class Generation(NamesFiles):
    """What every provider is asked."""

    prompts: Literal["topics", "file"] = "topics"
    """Where prompts come from: the grid of data/topics.yaml, or a file of your own."""
    prompts_file: str | None = None
    """JSON, JSONL, CSV or Parquet file with `instruction`, for `prompts: file`."""
    system: str = ""
    """System prompt before each prompt of the file; the grid has its own."""
    requests: NonNegativeInt = 24
    """Prompts that each provider is asked."""
    languages: list[str] | None = None
    """Languages that records are asked for in. Unset: all of the grid."""
    max_tokens: PositiveInt = 320
    """Tokens of one answer, at most."""
    seed: int = 1
    """Number that the order of the grid and the local model's sampling follow from."""
    replicates: PositiveInt = 1
    """Answers to each prompt, so that `requests` × `replicates` are sent."""
    budget_usd: NonNegativeFloat | None = None
    """Dollars of all providers together, over everything the journal ever recorded. Unset: no common budget."""
    judge: Judge | None = None
    """Who compares the providers' records in pairs. Unset: nobody."""

    @model_validator(mode="after")
    def _file_is_named(self) -> "Generation":
        if (self.prompts == "file") != (self.prompts_file is not None):
            raise ValueError(
                "prompts: file needs prompts_file (a JSON, JSONL, CSV or Parquet file with `instruction`), and only it"
            )
        return self
