"""Settings of the answers, from the command line or the page."""

from dataclasses import dataclass

from pipelines.errors import UsageError

MAX_TOKENS, MAX_TEMPERATURE = 8192, 5.0
MAX_PROMPT_CHARS = 20_000


@dataclass(frozen=True)
class Settings:
    """`max_new_tokens` limits an answer. `temperature` 0 always picks the likeliest token. `system`
    is the system prompt, if any.

    Raises:
        UsageError: an invalid value.
    """

    max_new_tokens: int
    temperature: float = 0.0
    system: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.max_new_tokens <= MAX_TOKENS:
            raise UsageError(f"max-new-tokens is {self.max_new_tokens}; expected 1 to {MAX_TOKENS}")
        # The comparison rejects NaN too.
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise UsageError(
                f"temperature is {self.temperature:g}; expected 0 (the likeliest token) to {MAX_TEMPERATURE:g}"
            )
        check_prompt(self.system, "the system prompt")


def check_prompt(text: str, what: str = "the prompt") -> None:
    """Raise UsageError for a text that exceeds the maximum length."""
    if len(text) > MAX_PROMPT_CHARS:
        raise UsageError(f"{what} has {len(text):,} characters; expected at most {MAX_PROMPT_CHARS:,}: shorten it")
