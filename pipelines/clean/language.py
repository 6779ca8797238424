"""Which language a record is written in: by its script and its function words in SQL; only where they leave doubt, by py3langid.

What is judged is the output; where it is code, what was asked; where it has hardly a letter, the whole record.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pyarrow as pa

from pipelines.clean.work import Work
from pipelines.experiments import Cleaning

MIN_LETTERS = 20  # fewer are not judged
JUDGED_CHARS = 1000
HARDLY_ANY = 0.05  # of the letters in a script: then it is no language of that script, whatever else it may be
CODE_SHARE = 0.06  # of the characters being signs that code is made of
ENGLISH_SHARE = 0.15  # of the words being function words of English; other languages share few of these
ENGLISH = "the|of|and|to|is|that|it|for|with|are|this|have|you|your|from|they|what|when|which|will|would|can|who|his|her|their|but"
HANGUL = "[가-힣ㄱ-ㅎㅏ-ㅣ]+"
LATIN = "[A-Za-zÀ-ɏ]+"


def reject_wrong_languages(work: Work, settings: Cleaning) -> None:
    """Fill the table `spoken` (n, language, wrong) and add a verdict for each record in a language it should not be in.

    It should be in the language that it declares, and in one of `languages` of the configuration.
    """
    _judge_by_script(work, settings)
    _judge_doubts(work, settings)
    expected = ", ".join(settings.languages or [])
    work.db.execute(
        """
        INSERT INTO verdicts (n, reason, detail)
        SELECT n, 'wrong_language', CASE
            WHEN NOT allowed THEN format('declares {}, expected one of {}', declared, $expected)
            WHEN declared IS NOT NULL THEN format('declares {}, but is written in {}', declared, language)
            ELSE format('is written in {}, expected one of {}', language, $expected) END
        FROM (SELECT *, $languages::VARCHAR[] IS NULL OR declared IS NULL
                     OR list_contains($languages::VARCHAR[], declared) AS allowed FROM spoken)
        WHERE NOT allowed OR wrong >= $sure
    """,
        {"expected": expected, "languages": settings.languages, "sure": settings.wrong_language_probability},
    )


def _judge_by_script(work: Work, settings: Cleaning) -> None:
    """The table `spoken`: `language` where script and function words tell, NULL where they do not.

    `wrong` is how probably the record is in a language that it should not be in: 0, 1, or what identification says.
    """
    letters, hangul, latin = (_matched(pattern) for pattern in (r"\pL+", HANGUL, LATIN))
    work.db.execute(
        rf"""
        CREATE TABLE spoken AS
        WITH told AS (
            SELECT n, {_declared()} AS declared, left({_judged()}, {JUDGED_CHARS}) AS judged
            FROM staged ANTI JOIN verdicts USING (n)
        ), counted AS (
            SELECT *, {letters} AS letters, {hangul} AS hangul, {latin} AS latin,
                   len(regexp_extract_all(judged, '\pL+')) AS words,
                   len(regexp_extract_all(judged, '(?i)\b(?:{ENGLISH})\b')) AS english,
                   CASE WHEN declared IS NULL THEN $languages::VARCHAR[] ELSE [declared] END AS expected
            FROM told
        )
        SELECT n, declared, judged, CASE
            WHEN letters < {MIN_LETTERS} THEN coalesce(declared, CASE WHEN hangul > 0 THEN 'ko' ELSE 'en' END)
            WHEN hangul >= $least * letters THEN 'ko'
            WHEN latin >= 0.9 * letters AND english >= {ENGLISH_SHARE} * words THEN 'en' END AS language,
            CASE WHEN letters < {MIN_LETTERS} THEN 0.0
                 WHEN expected = ['ko'] AND hangul < {HARDLY_ANY} * letters THEN 1.0
                 WHEN list_has_all(['ko', 'en'], expected) AND hangul + latin < {HARDLY_ANY} * letters THEN 1.0
            END::DOUBLE AS wrong
        FROM counted
    """,
        {"least": settings.min_hangul_share, "languages": settings.languages},
    )


def _matched(pattern: str) -> str:
    """SQL for how many characters of `judged` are in matches of the pattern."""
    return f"(length(judged) - length(regexp_replace(judged, '{pattern}', '', 'g')))"


def _declared() -> str:
    """SQL for the declared language as a code of two letters; NULL where it declares none that we can read."""
    return r"nullif(regexp_extract(lower(language), '^([a-z]{2})(?:[-_].*)?$', 1), '')"


def _judged() -> str:
    signs = r"(length(output) - length(regexp_replace(output, '[{}();=<>\[\]_]+', '', 'g')))"
    few_letters = rf"length(regexp_replace(left(output, {JUDGED_CHARS}), '\PL+', '', 'g')) < {MIN_LETTERS}"
    return f"""CASE WHEN contains(output, '```') OR {signs} >= {CODE_SHARE} * length(output)
        THEN concat_ws(' ', instruction, input)
        WHEN {few_letters} THEN concat_ws(' ', instruction, input, output) ELSE output END"""


def _judge_doubts(work: Work, settings: Cleaning) -> None:
    """Have the language that is left in doubt identified, and settle what is known of those that were not."""
    rows = work.db.sql("SELECT n, declared, judged, wrong FROM spoken WHERE language IS NULL").to_arrow_reader(2000)
    judged = [row for batch in rows for row in _identified(batch.to_pylist(), settings)]
    schema = pa.schema([("n", pa.int64()), ("language", pa.string()), ("wrong", pa.float64())])
    work.db.register("judged", pa.Table.from_pylist(judged, schema=schema))
    work.db.execute(
        """
        CREATE OR REPLACE TABLE spoken AS
        SELECT n, declared, coalesce(judged.language, spoken.language) AS language,
               coalesce(greatest(judged.wrong, spoken.wrong), CASE
                   WHEN declared IS NOT NULL THEN (declared <> spoken.language)::DOUBLE
                   WHEN $languages::VARCHAR[] IS NOT NULL THEN (NOT list_contains($languages::VARCHAR[], spoken.language))::DOUBLE
                   ELSE 0.0 END) AS wrong
        FROM spoken LEFT JOIN judged USING (n)
    """,
        {"languages": settings.languages},
    )
    work.db.unregister("judged")


def _identified(rows: list[dict[str, Any]], settings: Cleaning) -> Iterator[dict[str, Any]]:
    """The language of each text (where it may be another than it should be, the likeliest of those that it should be in), and
    the probability of the likeliest one that it should not be in."""
    for row in rows:
        text = " ".join(
            row["judged"].split()
        )  # other white space than a space is no word's end to it, capitals no word's
        ranked = _identifier().rank(text.lower() if text.isupper() else text)
        wanted = [row["declared"]] if row["declared"] else settings.languages
        inside = [name for name, _ in ranked if wanted is None or name in wanted]
        wrong = max((float(share) for name, share in ranked if wanted is not None and name not in wanted), default=0.0)
        wrong = max(wrong, row["wrong"] or 0.0)
        keeps = inside and wrong < settings.wrong_language_probability
        yield {"n": row["n"], "language": inside[0] if keeps else ranked[0][0], "wrong": wrong}


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
