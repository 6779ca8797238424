"""Judging: the providers that score answers, and the teachers whose answers are rows of their own."""

from typing import Any, Literal

from pydantic import PositiveInt, field_validator, model_validator

from pipelines.settings.retrieval import Retrieval
from pipelines.settings.strict import Count, Strict

TEACHER = "teacher"


def is_teacher(method: str | None) -> bool:
    """Whether a row's method is that of a provider's answers, which are no cell."""
    return method is not None and (method == TEACHER or method.startswith(f"{TEACHER}+"))


class Teacher(Strict):
    """A provider that answers the held-out prompts. A name alone is a provider without retrieval."""

    provider: str
    """Provider that answers the held-out prompts, as a row of its own."""
    retrieval: Retrieval | None = None
    """What is looked up for each prompt. Unset: nothing."""

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, data: Any) -> Any:
        return {"provider": data} if isinstance(data, str) else data

    @property
    def method(self) -> str:
        """In the column of the table that names a cell's method."""
        return f"{TEACHER}+{self.retrieval.named}" if self.retrieval else TEACHER

    @property
    def run_id(self) -> str:
        """In the place of an attempt's."""
        return f"{TEACHER}-{self.provider}{self.method.removeprefix(TEACHER)}"


class Judging(Strict):
    """Who is asked about answers to held-out records, within the providers' budgets. Not part of what is measured with the model,
    so a change needs no model again."""

    judge: str | None = None
    """Provider that scores every answer: correct or not, helpful from 1 to 5. Unset: nobody judges."""
    teachers: list[Teacher] = []
    """Providers that answer the prompts that the models were asked."""
    pairs: Literal["base"] | None = None
    """`base`: the judge also compares every answer with the untouched model's, in both orders. Unset: no pairs."""
    repeat: Count = 4
    """Answers of each cell that are judged twice, for the judge's agreement with itself."""
    max_tokens: PositiveInt = 500
    """Tokens of one verdict, at most."""
    max_answer_chars: PositiveInt = 3000
    """Characters of an answer that the judge is shown, at most."""

    @model_validator(mode="after")
    def _somebody_judges_pairs(self) -> "Judging":
        if self.pairs and not self.judge:
            raise ValueError("pairs needs judge: the provider that compares the answers, such as judge: claude")
        return self

    @field_validator("teachers", mode="after")
    @classmethod
    def _each_once(cls, teachers: list[Teacher]) -> list[Teacher]:
        """A row is named by its provider and how it looks things up."""
        known: dict[str, Teacher] = {}
        for one in teachers:
            if known.setdefault(one.run_id, one) != one:
                raise ValueError(
                    f"{one.provider}: two teachers would be rows with the name {one.method}: leave one out"
                )
        return list(known.values())
