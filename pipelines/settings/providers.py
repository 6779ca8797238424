"""The `providers` and `generation` sections of experiments.yaml: who may be asked, what for, and what it may cost."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipelines.settings.strict import NamesFiles, Strict, expected_one_of

Kind = Literal["local", "anthropic", "openai", "openai-compatible"]
KEY_ENV = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
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
    output: NonNegativeFloat
    cached_input: NonNegativeFloat | None = None  # None: as `input`
    batch_share: Annotated[float, Field(gt=0, le=1)] = 0.5


class Provider(Strict):
    """One model behind one API. It is asked only where `enabled`; a key in the environment alone asks nobody.

    `requests`, `max_tokens` and `languages` left out are those of `generation`.
    """

    kind: Kind
    model: str
    enabled: bool = False
    base_url: str | None = None
    api_key_env: str | None = None
    concurrency: PositiveInt = 8
    timeout_seconds: PositiveFloat = 120
    longest_retry_after_seconds: PositiveFloat = 60
    max_answer_mb: PositiveFloat = 8  # of one decoded response, in 10^6 bytes; a larger one is broken off
    budget_usd: NonNegativeFloat | None = None
    price: Price | None = None
    parameters: dict[str, JsonValue] = {}
    batch: bool = False
    requests: NonNegativeInt | None = None
    max_tokens: PositiveInt | None = None
    languages: list[str] | None = None

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
        if self.kind == "openai-compatible" and self.batch:
            raise ValueError("batch needs kind anthropic or openai")
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
    """Who compares the providers' answers, in pairs, both orders asked. The first of another family than both is taken."""

    providers: Annotated[list[str], Field(min_length=1)]
    max_cells: PositiveInt = 50
    max_tokens: PositiveInt = 400
    criteria: str = (
        "helpful to the person who asked, correct, natural in its language, and in the form that was asked for"
    )


class Generation(NamesFiles):
    """What every provider is asked. `budget_usd` is for all providers together, over everything the journal ever recorded."""

    prompts: Literal["topics", "file"] = "topics"
    prompts_file: str | None = None
    system: str = ""  # said before each prompt of the file; the topic grid has its own
    requests: NonNegativeInt = 24
    languages: list[str] | None = None
    max_tokens: PositiveInt = 320
    seed: int = 1
    replicates: PositiveInt = 1
    budget_usd: NonNegativeFloat | None = None
    judge: Judge | None = None

    @model_validator(mode="after")
    def _file_is_named(self) -> "Generation":
        if (self.prompts == "file") != (self.prompts_file is not None):
            raise ValueError(
                "prompts: file needs prompts_file (a JSON, JSONL, CSV or Parquet file with `instruction`), and only it"
            )
        return self
