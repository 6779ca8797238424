"""Rules that reject records: a reason code, a SQL condition over the fields, and a detail that
shows the value.

Rules are tried in the order of `reasons.REASONS`, and the first that applies is the reason. A
condition is TRUE if the record is DROPPED. Rules that need Python are in `judged.py`.
"""

from dataclasses import dataclass

from pipelines.clean.comparable import UNSEEN
from pipelines.clean.work import Work
from pipelines.settings.cleaning import Cleaning

TEXT = "concat_ws(chr(10), instruction, input, output, messages)"
# SQL for every answer that is learned.
ANSWERS = "coalesce(said, output)"
# White space and invisible characters.
_BLANK = rf"\s\v\pZ\x{{2800}}{UNSEEN}"
BLANK, SHOWN = f"[{_BLANK}]", f"[^{_BLANK}]"
NO_ANSWER_CHARS = 40
# Alpaca's word for a missing answer.
NO_ANSWER = r"(?i)^<?no ?output>?\.?$"
# SQL for whether all labels of a source are 0 and 1, so that 0 marks bad answers.
ZERO_MEANS_BAD = """source IN (
    FROM (SELECT source FROM staged GROUP BY source HAVING min(numbered_label) = 0 AND max(numbered_label) = 1)
)"""


@dataclass(frozen=True)
class Rule:
    reason: str
    condition: str
    detail: str


def shape_rules() -> list[Rule]:
    """Rules for problems that were found when the record's fields were read."""
    reasons = ("not_text", "tool_calls", "reasoning", "empty")
    return [
        Rule("schema", "verdict IS NULL AND problem IS NOT NULL AND NOT damaged", "problem"),
        *(Rule(reason, f"verdict = '{reason}'", "problem") for reason in reasons),
        Rule(
            "labelled_undesirable",
            f"verdict = 'labelled_undesirable' OR (numbered_label = 0 AND {ZERO_MEANS_BAD})",
            "coalesce(problem, 'its label is 0, in a file whose labels are 0 and 1')",
        ),
        Rule("encoding", "damaged", "problem"),
    ]


def length_rules(settings: Cleaning) -> list[Rule]:
    """Rules for blank, too short and too long records. The limits are numbers from the validated
    configuration."""
    longest = "greatest(length(instruction), length(input), length(output), coalesce(longest_turn, 0))"
    unasked = f"(NOT regexp_matches(instruction, '{SHOWN}') AND NOT regexp_matches(input, '{SHOWN}'))"
    no_answer = f"(length(output) < {NO_ANSWER_CHARS} AND regexp_matches({_stripped('output')}, '{NO_ANSWER}'))"
    rules = [
        Rule(
            "empty",
            f"{unasked} OR NOT regexp_matches(output, '{SHOWN}') OR {no_answer}",
            f"CASE WHEN {unasked} THEN 'nothing is asked: instruction and input are blank' ELSE 'the answer is blank' END",
        ),
        Rule(
            "too_long",
            f"{longest} > {settings.max_chars}",
            f"format('longest field or turn has {{}} characters, {settings.max_chars} allowed', {longest})",
        ),
    ]
    least = (settings.min_prompt_chars, settings.min_output_chars)
    return rules if least == (1, 1) else [rules[0], _too_short(*least), rules[1]]


def _too_short(prompt_chars: int, output_chars: int) -> Rule:
    prompt, answer = _stripped("instruction || input"), _stripped("output")
    return Rule(
        "too_short",
        f"length({prompt}) < {prompt_chars} OR length({answer}) < {output_chars}",
        f"format('instruction and input {{}} characters, output {{}}; expected at least {prompt_chars} and {output_chars}', "
        f"length({prompt}), length({answer}))",
    )


def _stripped(text: str) -> str:
    """SQL for `text` without any white space around it; trim() removes only spaces."""
    return f"regexp_replace({text}, '^{BLANK}+|{BLANK}+$', '', 'g')"


def quoted(text: str) -> str:
    """`text` as a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def start_verdicts(work: Work) -> None:
    """Create the table of verdicts, with those for problems found when the fields were read."""
    work.db.execute("CREATE TABLE verdicts (n BIGINT, reason VARCHAR, detail VARCHAR, twin VARCHAR, similarity DOUBLE)")
    _reject(work, shape_rules())


def reject_by_length(work: Work, settings: Cleaning) -> None:
    """Add a verdict for each record that is blank, too short or too long."""
    _reject(work, length_rules(settings))


def _reject(work: Work, rules: list[Rule]) -> None:
    reason = " ".join(f"WHEN {rule.condition} THEN '{rule.reason}'" for rule in rules)
    detail = " ".join(f"WHEN '{rule.reason}' THEN {rule.detail}" for rule in rules)
    work.db.execute(f"""
        INSERT INTO verdicts (n, reason, detail)
        SELECT n, reason, CASE reason {detail} END
        FROM (SELECT *, CASE {reason} END AS reason FROM staged ANTI JOIN verdicts USING (n)) WHERE reason IS NOT NULL
    """)
