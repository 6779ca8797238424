"""What makes a record a reject: one reason code, one condition in SQL over its fields, one detail that shows the value.

Rules are tried in this order and the first that holds is the reason. Conditions are TRUE if the record is DROPPED.
"""

from dataclasses import dataclass

from pipelines.experiments import Cleaning


@dataclass(frozen=True)
class Rule:
    reason: str
    condition: str
    detail: str


def field_rules(settings: Cleaning) -> list[Rule]:
    """Rules that look at one record alone. Thresholds are whole numbers from the checked configuration."""
    longest = "greatest(length(instruction), length(input), length(output), length(messages))"
    prompt, answer = _stripped("instruction || input"), _stripped("output")
    return [
        Rule("schema", "problem IS NOT NULL", "problem"),
        Rule("empty", f"{_stripped('instruction')} = '' OR {answer} = ''", "'instruction or output is blank'"),
        Rule(
            "too_short",
            f"length({prompt}) < {settings.min_prompt_chars} OR length({answer}) < {settings.min_output_chars}",
            f"format('instruction and input {{}} characters, output {{}}', length({prompt}), length({answer}))",
        ),
        Rule(
            "too_long",
            f"{longest} > {settings.max_chars}",
            f"format('longest field has {{}} characters, {settings.max_chars} allowed', {longest})",
        ),
    ]


def _stripped(text: str) -> str:
    """SQL for `text` without white space of any kind around it; trim() takes spaces only."""
    return f"regexp_replace({text}, '^[\\s\\v\\pZ]+|[\\s\\v\\pZ]+$', '', 'g')"


REASONS = ("schema", "empty", "too_short", "too_long", "exact_duplicate", "near_duplicate")
