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
    longest = "greatest(length(instruction), length(input), length(output))"
    return [
        Rule("schema", "problem IS NOT NULL", "problem"),
        Rule("empty", "trim(instruction) = '' OR trim(output) = ''", "'instruction or output is blank'"),
        Rule(
            "too_short",
            f"length(trim(instruction || input)) < {settings.min_prompt_chars}"
            f" OR length(trim(output)) < {settings.min_output_chars}",
            "format('instruction and input {} characters, output {}',"
            " length(trim(instruction || input)), length(trim(output)))",
        ),
        Rule(
            "too_long",
            f"{longest} > {settings.max_chars}",
            f"format('longest field has {{}} characters, {settings.max_chars} allowed', {longest})",
        ),
    ]


REASONS = ("schema", "empty", "too_short", "too_long", "exact_duplicate", "near_duplicate")
