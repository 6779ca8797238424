"""Rules that need Python: SQL finds the few records that may break one, and Python reads the
answers of those.

Reading costs some microseconds per answer, so the SQL conditions let only suspicious records
through.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipelines.clean import echo, encoding, placeholders, refusals, repetition
from pipelines.clean.exchange import Exchange, exchanges
from pipelines.clean.rules import ANSWERS, TEXT, quoted
from pipelines.clean.work import Work
from pipelines.settings.cleaning import Cleaning

Judge = Callable[[list[Exchange]], str | None]
HOLES = r"[\[<({_○◯〇【«]|INSERT|YOUR|\$X|[OＯX]{2}|(?i:lorem ipsum|insert|enter your)|여기에|이곳에"
# Every refusal contains one of these: the answerer speaks of itself, or apologizes.
REFUSING = (
    r"(?i:^\W*(?:can|won|no\b|nope|never))|(?i:text-only|not possible for me)|제공되지|입력되지|정책|그려|"
    r"(?i:\bI(?:'|’)?(?:m|d|ll)?\b ?(?:rather|prefer|am |do |can ?n?o?t?|could|won|will not|don|have (?:no|to)|"
    r"must|would|need to|"
    r"lack|refuse|decline|regret|apolog|afraid|unable|not ))"
    r"|(?i:\b(?:sorry|apolog|unable|language model|artificial intelligence|an? AI\b|no comment|unfortunately|regret|"
    r"appropriate|irresponsible|unethical|training data|"
    r"beyond (?:my|what)|against my|outside (?:my|what|of my)|something I|not possible|no idea|no response|"
    r"no answer|something i|neutral|do your own|knowledge cut|"
    r"try again later|"
    r"impossible for me|chat ?bot|computer program|(?:could not|cannot|can(?:'|’)t) be))"
    r"|죄송|미안|아쉽|유감|안타깝|송구|인공 ?지능|언어 ?모델|챗봇|드릴|드리|답변|대답|응답|제공할|접근|접속|모르겠|"
    r"사양|거절|불가능|볼 수 ?없|저는|제가|저로|저에게|제게|나는|내가|곤란|어려|힘들|내가 왜|직접|능력|요청|지원|"
    r"작업|해당|학습|훈련|제한|금지|안내해"
)
# Words of denial. A refusal contains one of these, too.
DENYING = (
    r"(?i:\bnot\b|cannot|n['’]t\b|\bunable|\bno\b|\black|declin|refus|refrain|rather|beyond|outside|sorry|apolog|"
    r"regret|unfortunate|later|irrespons|unethic|impossib|inappropr|against|"
    r"\bonly\b|until|learning|\bpass\b|exceed)|없|않|못|왜|직접|어려|밖|제한|삼가|양해|부탁|금지|어렵|불가|힘들|힘듭|"
    r"모르겠|사양|거절|곤란|엔|에는|"
    r"안 됩니다|아니"
)
# An answer that is more times longer than its question is no echo.
ECHO_LEAST = 2.2


@dataclass(frozen=True)
class JudgedRule:
    """A rule in two steps.

    `condition` is SQL over `staged`, TRUE if `judge` must read the record. `judge` returns why the
    record is dropped, or None.
    """

    reason: str
    condition: str
    judge: Judge


def judged_rules(settings: Cleaning) -> list[JudgedRule]:
    longest = f"{ECHO_LEAST} * (length(instruction) + length(input)) + 40"
    return [
        JudgedRule(
            "repetition",
            f"repeated_share > {repetition.CANDIDATE_SHARE}",
            _any_answer(lambda exchange: repetition.judge(exchange, max_share=settings.max_repeated_share)),
        ),
        JudgedRule(
            "placeholder",
            f"regexp_matches({ANSWERS}, {quoted(HOLES)})",
            _any_answer(lambda exchange: placeholders.judge(exchange, allowed=settings.max_placeholders)),
        ),
        JudgedRule(
            "refusal",
            _may_refuse(settings.refusal_chars),
            _most_answers(lambda exchange: refusals.judge(exchange, head_chars=settings.refusal_chars)),
        ),
        JudgedRule(
            "prompt_echo",
            f"messages IS NOT NULL OR length(output) < {longest}",
            _any_answer(lambda exchange: echo.judge(exchange, max_share=settings.max_echo_share)),
        ),
    ]


def _may_refuse(chars: int) -> str:
    """SQL for whether an answer may contain words of refusal; of a long answer, its first `chars`
    characters and its end count.

    The complete patterns are expensive, so cheap ones run first.
    """
    head = (
        f"CASE WHEN said IS NULL AND length(output) > {refusals.SHORT_CHARS} THEN left(output, {chars}) ||"
        f" right(output, 200) ELSE {ANSWERS} END"
    )
    cheap = f"CASE WHEN {chars} > 0 AND regexp_matches({head}, {quoted(REFUSING)}) AND "
    expensive = " OR ".join(f"regexp_matches({head}, {quoted(pattern)})" for pattern in refusals.IN_SQL)
    return f"{cheap}regexp_matches({head}, {quoted(DENYING)}) THEN {expensive} ELSE false END"


def reject_by_reading(work: Work, settings: Cleaning) -> None:
    """Add a verdict for each record that one of the judged rules drops."""
    for rule in judged_rules(settings):
        _insert(work, rule.reason, _rejects(work, rule))


def _rejects(work: Work, rule: JudgedRule) -> Iterator[dict[str, object]]:
    rows = work.db.sql(f"""
        SELECT n, instruction, input, output, messages FROM staged ANTI JOIN verdicts USING (n) WHERE {rule.condition}
    """).to_arrow_reader(2000)
    for batch in rows:
        for row in batch.to_pylist():
            if detail := rule.judge(list(exchanges(row))):
                yield {"n": row["n"], "detail": detail}


def reject_damaged(work: Work, settings: Cleaning) -> None:
    """Add a verdict for each record with wrongly decoded text, in whatever field."""
    rows = work.db.sql(f"""
        SELECT n, {TEXT} AS text, regexp_extract_all({TEXT}, {quoted(encoding.DAMAGED)}) AS places
        FROM staged ANTI JOIN verdicts USING (n) WHERE regexp_matches({TEXT}, {quoted(encoding.DAMAGED)})
    """).to_arrow_reader(1000)
    rejects = [
        {"n": row["n"], "detail": f"{len(damaged)} damaged places, the first is {damaged[0]}"}
        for batch in rows
        for row in batch.to_pylist()
        if len(damaged := encoding.judge(row["text"], row["places"])) > settings.max_damaged
    ]
    _insert(work, "encoding", iter(rejects))


def _insert(work: Work, reason: str, rejects: Iterator[dict[str, object]]) -> None:
    rows = list(rejects)
    if not rows:
        return
    work.db.register("rejected", pa.Table.from_pylist(rows))
    work.db.execute(
        "INSERT INTO verdicts (n, reason, detail) SELECT n, $reason, detail FROM rejected", {"reason": reason}
    )
    work.db.unregister("rejected")


def _any_answer(judge: Callable[[Exchange], str | None]) -> Judge:
    """A judge of conversations: one bad answer is enough, since the model would learn it."""

    def judged(answers: list[Exchange]) -> str | None:
        return next((detail for each in answers if (detail := judge(each))), None)

    return judged


def _most_answers(judge: Callable[[Exchange], str | None]) -> Judge:
    """A judge of conversations: the last answer must be bad, or at least half of them. One refusal
    alone does no harm."""

    def judged(answers: list[Exchange]) -> str | None:
        details = [judge(each) for each in answers]
        bad = [detail for detail in details if detail]
        return bad[0] if bad and (details[-1] or 2 * len(bad) >= len(details)) else None

    return judged
