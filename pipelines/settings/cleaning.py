"""Cleaning: thresholds of the rules that drop records, and the resources of a run."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from pipelines.records.shapes.options import Options, Reasoning, ToolCalls
from pipelines.settings.strict import Share, Strict

PersonalData = Literal["resident_number", "card", "phone", "email", "api_key"]


class Cleaning(Strict):
    """Thresholds of the rules that drop records, limits of checks, and resources."""

    tool_calls: ToolCalls = "reject"
    """Treatment of records that call tools: a reject, or kept in one form."""
    reasoning: Reasoning = "strip"
    """Treatment of reasoning in front of an answer: stripped, kept in `<think>` tags, or a
    reject."""
    min_prompt_chars: PositiveInt = 1
    """Characters of instruction and input together, at least."""
    min_output_chars: PositiveInt = 1
    """Characters of an answer, at least."""
    max_chars: PositiveInt = 8000
    """Characters of any one field or turn, at most."""
    max_damaged: Annotated[int, Field(ge=0)] = 0
    """Places of broken encoding that a record may have."""
    max_repeated_share: Share = 0.5
    """Share of an answer's prose that may repeat the text right before it."""
    max_placeholders: Annotated[int, Field(ge=0)] = 0
    """Placeholders such as [Your Name] that an answer may have without a request for them."""
    refusal_chars: Annotated[int, Field(ge=0)] = 120
    """Length of the beginning of a long answer in which a refusal counts; 0 keeps refusals."""
    max_echo_share: Share = 0.5
    """Share of an answer that may repeat the question."""
    personal_data: list[PersonalData] = ["resident_number", "card", "phone", "email", "api_key"]
    """Kinds of personal data to look for."""
    on_personal_data: Literal["drop", "redact"] = "drop"
    """Treatment of a record with personal data: a reject, or the data replaced."""
    languages: Annotated[list[str], Field(min_length=1)] | None = ["ko", "en"]
    """Languages that records may be in; null: any."""
    min_hangul_share: Share = 0.3
    """Share of a Korean text's letters that must be Hangul."""
    wrong_language_probability: Share = 0.9
    """Probability from which a text counts as one in another language."""
    near_duplicate_jaccard: Annotated[float, Field(gt=0.5, le=1)] = 0.85
    """Jaccard similarity of character 3-shingles from which two records are near-duplicates."""
    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the records that is held out for evaluation."""
    split_seed: int = 1
    """Seed of the split's hash."""
    min_train_examples: PositiveInt = 8
    """Train examples, at least; fewer stop the graph before anything trains."""
    min_eval_examples: PositiveInt = 3
    """Held-out examples, at least; fewer stop the graph before anything trains."""
    reject_share: tuple[Share, Share] = (0.0, 0.5)
    """Lowest and highest share of rejects of one source that is no warning."""
    min_language_share: Share = 0.05
    """Share of each side below which a language is a warning."""
    memory_limit_gb: Annotated[float, Field(ge=0.25)] = 2.0
    """Memory limit of DuckDB during cleaning; larger work spills to disk."""
    threads: PositiveInt | None = None
    """Threads of DuckDB during cleaning. Unset: one for each core."""

    @property
    def shape_options(self) -> Options:
        return Options(self.tool_calls, self.reasoning)

    @model_validator(mode="after")
    def _check_reject_share(self) -> "Cleaning":
        if self.reject_share[0] > self.reject_share[1]:
            raise ValueError(f"reject_share: expected the lower share first (got {list(self.reject_share)})")
        return self
