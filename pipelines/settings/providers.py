"""The `providers` and `generation` sections of experiments.yaml: APIs, requests and budgets."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipelines.records.expected import expected_one_of
from pipelines.settings.strict import NamesFiles, Strict

Kind = Literal["local", "anthropic", "openai", "openai-compatible"]
KEY_ENV = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
HAVE_BATCHES = ("anthropic", "openai")
EMBED = ("openai", "openai-compatible")
# Parameters that change neither the number of answers nor the price of a token. A priced API
# accepts no others: they would break the budget's worst case (`service_tier`, `n`, tools with
# prices of their own, ...).
PLAIN_PARAMETERS = (
    "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "logit_bias", "seed", "stop",
    "stop_sequences", "reasoning_effort", "verbosity", "thinking", "output_config", "metadata", "user",
)  # fmt: skip
# Parameters that the generator sets itself. One request gets one answer; generation.replicates asks
# for more.
GENERATOR_PARAMETERS = (
    "model",
    "messages",
    "system",
    "max_tokens",
    "max_completion_tokens",
    "response_format",
    "stream",
    "extra_headers",
    "n",
    "best_of",
)


class Price(Strict):
    """Dollars per million tokens, in place of the bundled price table or of its gaps."""

    input: NonNegativeFloat
    """Price of input tokens."""
    output: NonNegativeFloat
    """Price of output tokens."""
    cached_input: NonNegativeFloat | None = None
    """Price of input tokens from the provider's cache. Unset: as `input`."""
    batch_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Price of a batch as a share of the normal price."""


class Provider(Strict):
    """One model behind one API. A key in the environment alone sends no request."""

    kind: Kind
    """Type of the API; `local` is a server that Featherweight starts on this machine."""
    model: str
    """The model's name at the provider; for kind local its name under `models`."""
    enabled: bool = False
    """Whether requests go to its API; kind local depends on `sources.local_generator` instead."""
    base_url: str | None = None
    """URL of the API, which openai-compatible needs. Unset: the provider's own."""
    api_key_env: str | None = None
    """Environment variable that holds the key. Unset: ANTHROPIC_API_KEY or OPENAI_API_KEY;
    openai-compatible: no key."""
    concurrency: PositiveInt = 8
    """Requests under way at once, at most."""
    timeout_seconds: PositiveFloat = 120
    """Time after which a request counts as lost, and so as in doubt."""
    longest_retry_after_seconds: PositiveFloat = 60
    """Longest pause before a retry, even if the provider asks for a longer one."""
    max_answer_mb: PositiveFloat = 8
    """Size limit of one decoded response, which is cut off beyond it."""
    budget_usd: NonNegativeFloat | None = None
    """Dollars of this provider, over all entries of the journal. Unset: only the common budget."""
    price: Price | None = None
    """Prices in place of the bundled table's. Unset: the table's."""
    parameters: dict[str, JsonValue] = {}
    """Further parameters of a request, such as temperature."""
    batch: bool = False
    """Whether requests go out as batches, at half the price (kinds anthropic and openai)."""
    requests: NonNegativeInt | None = None
    """Requests to this provider. Unset: those of `generation`."""
    max_tokens: PositiveInt | None = None
    """Tokens of one answer, at most. Unset: those of `generation`."""
    languages: list[str] | None = None
    """Languages of its records. Unset: those of `generation`."""

    @property
    def key_env(self) -> str | None:
        """The environment variable that holds the key; None if none is needed."""
        return self.api_key_env or KEY_ENV.get(self.kind)

    @model_validator(mode="after")
    def _check_kind(self) -> "Provider":
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
    def _check_parameters(self) -> "Provider":
        priced = self.kind in KEY_ENV
        for name in self.parameters:
            if name in GENERATOR_PARAMETERS:
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
    # Raises ValueError for an invalid port.
    _ = parts.port
    if parts.username or parts.password:
        raise ValueError("base_url holds a user or password: keep secrets in the environment (api_key_env)")


class Judge(Strict):
    """Judge of the providers' records, which compares them in pairs, in both orders."""

    providers: Annotated[list[str], Field(min_length=1)]
    """Providers that may judge; each pair gets the first that is of another family than both."""
    max_cells: PositiveInt = 50
    """Highest number of topic cells to compare for each pair of providers."""
    max_tokens: PositiveInt = 400
    """Tokens of one verdict, at most."""
    criteria: str = (
        "helpful to the person who asked, correct, natural in its language, and in the form that was asked for"
    )
    """The definition of a good record that the judge gets."""


class Generation(NamesFiles):
    """Requests to every provider."""

    prompts: Literal["topics", "file"] = "topics"
    """Source of the prompts: the grid of data/topics.yaml, or a file of your own."""
    prompts_file: str | None = None
    """JSON, JSONL, CSV or Parquet file with `instruction`, for `prompts: file`."""
    system: str = ""
    """System prompt before each prompt of the file; the grid has its own."""
    requests: NonNegativeInt = 24
    """Prompts for each provider."""
    languages: list[str] | None = None
    """Languages of the requested records. Unset: all of the grid."""
    max_tokens: PositiveInt = 320
    """Tokens of one answer, at most."""
    seed: int = 1
    """Seed of the grid's order and of the local model's sampling."""
    replicates: PositiveInt = 1
    """Answers to each prompt; `requests` × `replicates` requests are sent."""
    budget_usd: NonNegativeFloat | None = None
    """Dollars of all providers together, over all entries of the journal. Unset: no common
    budget."""
    judge: Judge | None = None
    """Judge that compares the providers' records in pairs. Unset: no judge."""

    @model_validator(mode="after")
    def _check_prompts_file(self) -> "Generation":
        if (self.prompts == "file") != (self.prompts_file is not None):
            raise ValueError(
                "prompts: file needs prompts_file (a JSON, JSONL, CSV or Parquet file with `instruction`), and only it"
            )
        return self
