"""Judging: the providers that score answers, and the teachers that give their own."""

from typing import Any, Literal

from pydantic import PositiveInt, field_validator, model_validator

from pipelines.settings.retrieval import Retrieval
from pipelines.settings.strict import Count, Strict

TEACHER = "teacher"


def is_teacher(method: str | None) -> bool:
    """Whether a row holds a provider's answers, which are no cell."""
    return method is not None and (method == TEACHER or method.startswith(f"{TEACHER}+"))


class Teacher(Strict):
    """A provider that answers the held-out prompts.

    A plain name is a provider without retrieval.
    """

    provider: str
    """Provider that answers the held-out prompts, as a row of its own."""
    retrieval: Retrieval | None = None
    """Retrieval for each prompt. Unset: nothing."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        return {"provider": data} if isinstance(data, str) else data

    @property
    def method(self) -> str:
        """The value in the table's column of methods."""
        return f"{TEACHER}+{self.retrieval.named}" if self.retrieval else TEACHER

    @property
    def run_id(self) -> str:
        """The value in the table's column of runs."""
        return f"{TEACHER}-{self.provider}{self.method.removeprefix(TEACHER)}"


class Judging(Strict):
    """Providers that judge the answers to held-out records, within their budgets.

    A change here does not run a model again.
    """

    judge: str | None = None
    """Provider that scores every answer: correct or not, helpful from 1 to 5. Unset: no judge."""
    teachers: list[Teacher] = []
    """Providers that answer the same prompts as the models."""
    pairs: Literal["base"] | None = None
    """`base`: the judge also compares every answer with the untouched model's, in both orders.
    Unset: no pairs."""
    repeat: Count = 4
    """Answers of each cell that are judged twice, for the judge's agreement with itself."""
    max_tokens: PositiveInt = 500
    """Tokens of one verdict, at most."""
    max_answer_chars: PositiveInt = 3000
    """Characters of an answer that the judge is shown, at most."""

    @model_validator(mode="after")
    def _require_judge(self) -> "Judging":
        if self.pairs and not self.judge:
            raise ValueError("pairs needs judge: the provider that compares the answers, such as judge: claude")
        return self

    @field_validator("teachers", mode="after")
    @classmethod
    def _check_teachers(cls, teachers: list[Teacher]) -> list[Teacher]:
        """Different teachers need different names of rows. A repeated teacher counts once."""
        known: dict[str, Teacher] = {}
        for teacher in teachers:
            if known.setdefault(teacher.run_id, teacher) != teacher:
                raise ValueError(
                    f"{teacher.provider}: two teachers would be rows with the name {teacher.method}: leave one out"
                )
        return list(known.values())
