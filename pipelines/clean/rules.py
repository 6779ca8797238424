"""What makes a record a reject: one reason code, one condition in SQL over its fields, one detail that shows the value.

Rules are tried in the order of `reasons.REASONS` and the first that holds is the reason. Conditions are TRUE if the record is
DROPPED. Rules that must read what they judge are in `judged.py`.
"""

from dataclasses import dataclass

from pipelines.clean.comparable import UNSEEN
from pipelines.clean.work import Work
from pipelines.settings.experiments import Cleaning

TEXT = "concat_ws(chr(10), instruction, input, output, messages)"
ANSWERS = "coalesce(said, output)"  # every answer that is learned
_BLANK = rf"\s\v\pZ\x{{2800}}{UNSEEN}"  # white space, and signs that show nothing
BLANK, SHOWN = f"[{_BLANK}]", f"[^{_BLANK}]"
NO_ANSWER_CHARS = 40
NO_ANSWER = r"(?i)^<?no ?output>?\.?$"  # Alpaca's word for an answer that there is none of
ZERO_MEANS_BAD = """source IN (
    FROM (SELECT source FROM staged GROUP BY source HAVING min(numbered_label) = 0 AND max(numbered_label) = 1)
)"""


@dataclass(frozen=True)
class Rule:
    reason: str
    condition: str
    detail: str


def shape_rules() -> list[Rule]:
    """What reading a record's fields already said of it."""
    read = ("not_text", "tool_calls", "reasoning", "empty")
    return [
        Rule("schema", "verdict IS NULL AND problem IS NOT NULL AND NOT damaged", "problem"),
        *(Rule(reason, f"verdict = '{reason}'", "problem") for reason in read),
        Rule(
            "labelled_undesirable",
            f"verdict = 'labelled_undesirable' OR (numbered_label = 0 AND {ZERO_MEANS_BAD})",
            "coalesce(problem, 'its label is 0, in a file whose labels are 0 and 1')",
        ),
        Rule("encoding", "damaged", "problem"),
    ]


def length_rules(settings: Cleaning) -> list[Rule]:
    """Limits of length. Thresholds are numbers from the checked configuration."""
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
    """SQL for `text` without white space of any kind around it; trim() takes spaces only."""
    return f"regexp_replace({text}, '^{BLANK}+|{BLANK}+$', '', 'g')"


def quoted(text: str) -> str:
    """`text` as a string of SQL."""
    return "'" + text.replace("'", "''") + "'"


def start_verdicts(work: Work) -> None:
    """The table of verdicts, with what reading the fields already said."""
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
