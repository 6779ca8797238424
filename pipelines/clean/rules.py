"""What makes a record a reject: one reason code, one condition in SQL over its fields, one detail that shows the value.

Rules are tried in the order of REASONS and the first that holds is the reason. Conditions are TRUE if the record is DROPPED.
"""

from dataclasses import dataclass

from pipelines.clean.work import Work
from pipelines.experiments import Cleaning

REASONS = (
    "schema", "encoding", "empty", "too_short", "too_long", "repetition", "placeholder", "refusal", "prompt_echo",
    "personal_data", "wrong_language", "exact_duplicate", "contamination", "near_duplicate",
)  # fmt: skip
TEXT = "concat_ws(chr(10), instruction, input, output, messages)"

# UTF-8 that was read as Latin-1 or Windows-1252: a lead byte's letter, then signs that stand for continuation bytes. One of
# them must be a sign that no text has right after such a letter: «così», “così” and «gâché » (with its no-break space) are fine.
ODD = "\x80-\x9f¡-ª¬-º¼-¿€‚ƒ„†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ"
ANY = ODD + "‘’“”…–—\xa0«»"
DAMAGED = "|".join(
    (
        "\ufffd",
        f"[ÃÂ][{ODD}]",
        f"[â-ï](?:[{ANY}][{ODD}]|[{ODD}][{ANY}])",
        "[\xa1-\xff]{6,}",  # EUC-KR or CP949 read as Latin-1
        "占쏙|쏙옙",  # U+FFFD in UTF-8, read as CP949
        "[\x80-\x84\x86-\x9f]",  # C1 control characters; U+0085 is a line end
    )
)
PLACEHOLDERS = "|".join(
    (
        r"(?i:\[(?:your|insert|enter|add|fill in|name of|company|client|recipient|author|title|date|city)\b[^\]\n]{0,40}\])",
        r"\[(?:이름|성함|회사명|회사 이름|날짜|제목|책 제목|저자|작가|작가 이름|주소|연락처)\]",
        r"[\[(<](?:여기에|이곳에)[^\])>\n]{0,30}[\])>]",
        r"(?i:\blorem ipsum\b)",
        r"(?i:<(?:insert|your)[^<>\n]{0,40}>)",
        r"[○◯]{2,}",
    )
)
REFUSALS = "|".join(
    (
        r"(?i:\bI(?:'|’)?(?: a)?m (?:very |so |really )?sorry,? (?:but|I (?:can|am|don)|as an))",
        r"(?i:\bI apologi[sz]e,? (?:but|I (?:can|am|don)|for (?:the|any) (?:confusion|inconvenience|mistake|error)))",
        r"(?i:\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b)",
        r"(?i:\bI(?:'|’)?(?: a)?m (?:just |only )?an? (?:AI|(?:large )?language model)\b)",
        r"(?i:\bI (?:can ?not|can(?:'|’)t|am (?:unable|not able) to|(?:'|’)m (?:unable|not able) to)"
        r" (?:help|assist|comply|fulfil|provide|answer|do that|complete|engage)\b)",
        r"죄송(?:하지만|합니다만|스럽지만)|죄송합니다[.,!]? ?(?:저는|하지만|그|해당|요청)",
        r"(?:저는|나는|저로서는) ?(?:AI|인공지능|언어 ?모델)",
        r"(?:도와드릴|답변(?:을 )?드릴|답해 드릴|제공(?:해 드)?릴|제공할|답변할|도움을 드릴) 수(?:가|는)? 없",
    )
)


@dataclass(frozen=True)
class Rule:
    reason: str
    condition: str
    detail: str


def field_rules(settings: Cleaning) -> list[Rule]:
    """Rules that look at one record alone, in SQL. Thresholds are numbers from the checked configuration."""
    longest = "greatest(length(instruction), length(input), length(output), length(messages))"
    prompt, answer = _stripped("instruction || input"), _stripped("output")
    damaged, placeholders = _found(TEXT, DAMAGED), _found("output", PLACEHOLDERS)
    head = f"left(output, {settings.refusal_chars})"
    return [
        Rule("schema", "problem IS NOT NULL AND NOT damaged", "problem"),
        Rule(
            "encoding",
            f"damaged OR len({damaged}) > {settings.max_damaged}",
            f"coalesce(problem, format('{{}} damaged places, the first is {{}}', len({damaged}), {damaged}[1]))",
        ),
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
        Rule(
            "repetition",
            f"repeated_share > {settings.max_repeated_share}",
            "format('{:.0f} % of the output repeats what stood there before', 100 * repeated_share)",
        ),
        Rule(
            "placeholder",
            f"len({placeholders}) > {settings.max_placeholders}",
            f"format('{{}} placeholders, the first is {{}}', len({placeholders}), {placeholders}[1])",
        ),
        Rule(
            "refusal",
            f"regexp_matches({head}, {quoted(REFUSALS)})",
            f"'the output begins with ' || regexp_extract({head}, {quoted(REFUSALS)})",
        ),
        Rule(
            "prompt_echo",
            f"{_echoed()} > {settings.max_echo_share} * length(output)",
            f"format('{{:.0f}} % of the output is the prompt again', 100.0 * {_echoed()} / length(output))",
        ),
    ]


def _stripped(text: str) -> str:
    """SQL for `text` without white space of any kind around it; trim() takes spaces only."""
    return f"regexp_replace({text}, '^[\\s\\v\\pZ]+|[\\s\\v\\pZ]+$', '', 'g')"


def _found(text: str, pattern: str) -> str:
    """SQL for the list of all places in `text` that match."""
    return f"regexp_extract_all({text}, {quoted(pattern)})"


def _echoed() -> str:
    """SQL for how many characters of the output are the instruction again (with the input, where that follows too)."""
    inside = "contains(lower(output), lower(trim({0})))"
    return (
        f"CASE WHEN {inside.format('instruction')} THEN length(trim(instruction))"
        f" + CASE WHEN {inside.format('input')} THEN length(trim(input)) ELSE 0 END ELSE 0 END"
    )


def quoted(text: str) -> str:
    """`text` as a string of SQL."""
    return "'" + text.replace("'", "''") + "'"


def reject_by_fields(work: Work, settings: Cleaning) -> None:
    """Start the table `verdicts` with one row for each record that a rule of its own fields drops."""
    rules = field_rules(settings)
    reason = " ".join(f"WHEN {rule.condition} THEN '{rule.reason}'" for rule in rules)
    detail = " ".join(f"WHEN '{rule.reason}' THEN {rule.detail}" for rule in rules)
    work.db.execute("CREATE TABLE verdicts (n BIGINT, reason VARCHAR, detail VARCHAR, twin VARCHAR, similarity DOUBLE)")
    work.db.execute(f"""
        INSERT INTO verdicts (n, reason, detail)
        SELECT n, reason, CASE reason {detail} END
        FROM (SELECT *, CASE {reason} END AS reason FROM staged) WHERE reason IS NOT NULL
    """)
