"""The language of a record: by its script and function words in SQL; doubtful records are read in
Python.

The rule judges the answer without code, quotations and URLs. If the answer is code or has hardly a
letter, the rule judges the question. Text in a script that no expected language uses is in none of
them; py3langid identifies the rest. An answer in another language is right if the question asks for
that language.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pyarrow as pa

from pipelines.clean import prose
from pipelines.clean.asked_languages import asks_for_another
from pipelines.clean.scripts import FUNCTION_WORDS, letters_of, main_script, script_shares, scripts_of
from pipelines.clean.work import Work
from pipelines.settings.cleaning import Cleaning

# A text with fewer letters is not judged by itself.
MIN_LETTERS = 20
JUDGED_CHARS = 1000
READ_CHARS = 4000
# Share of English function words from which a text is English. Other languages share few of these
# words.
ENGLISH_SHARE = 0.15
# Share of the letters' weight in scripts of no expected language from which a text is in none of
# them.
OTHER_SCRIPT = 0.4
# Share of a language's function words that is evidence for the language.
FUNCTION_SHARE = 0.1
MIN_SURE_WORDS = 4
# If the question is in another script, this share of it in the answer is enough.
SOME_OTHER_SCRIPT = 0.05
SOME_SCRIPT = 0.25
LIKELY = 0.5
LITTLE = 0.2
ALL_BUT = 0.98
# Share of non-ASCII letters from which a text is not English.
OWN_LETTERS = 0.12
ENGLISH = (
    "the|of|and|to|is|that|it|for|with|are|this|have|you|your|from|they|what|when|which|will|would|can|who|his|"
    "her|their|but"
)
HANGUL = "[가-힣ㄱ-ㅎㅏ-ㅣ]+"
LATIN = "[A-Za-zÀ-ɏ]+"
Row = dict[str, Any]


def reject_wrong_languages(work: Work, settings: Cleaning) -> None:
    """Fill the table `spoken` (n, language, wrong) and add a verdict for each record in a wrong
    language.

    The right language is the one that the record declares, and one of the configured `languages`.
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
    """Create the table `spoken`: `language` is NULL if script and function words leave doubt and
    the record must be read."""
    ascii_letters, any_letters, latin = (_matched(pattern) for pattern in ("[A-Za-z]+", r"\pL+", LATIN))
    # Counting by pattern takes most of the time. Two shortcuts help: ASCII text holds no Hangul,
    # and Korean text without its Hangul is short.
    work.db.execute(
        rf"""
        CREATE TABLE spoken AS
        WITH answers AS (
            SELECT n, {_declared()} AS declared, left(output, {JUDGED_CHARS}) AS judged, {_signs()} AS has_code,
                   strlen(judged) = length(judged) AS is_ascii
            FROM staged ANTI JOIN verdicts USING (n)
        ), counted AS (
            SELECT *, CASE WHEN is_ascii THEN judged ELSE regexp_replace(judged, '{HANGUL}', '', 'g') END AS rest,
                   length(judged) - length(rest) AS hangul,
                   hangul + CASE WHEN is_ascii THEN {ascii_letters} ELSE {any_letters} END AS letters
            FROM answers
        )
        SELECT n, declared, CASE
            WHEN letters < {MIN_LETTERS} OR has_code THEN NULL
            WHEN hangul >= greatest($least, 0.5) * letters THEN 'ko'
            WHEN (is_ascii OR {latin} >= 0.97 * letters)
                AND len(regexp_extract_all(judged, '(?i)\b(?:{ENGLISH})\b'))
                    >= {ENGLISH_SHARE} * len(regexp_extract_all(judged, '\pL+')) THEN 'en' END AS language
        FROM counted
    """,
        {"least": settings.min_hangul_share},
    )


def _matched(pattern: str) -> str:
    """SQL for the number of characters of `rest` that match the pattern; `rest` holds no Hangul."""
    return f"(length(rest) - length(regexp_replace(rest, '{pattern}', '', 'g')))"


def _declared() -> str:
    """SQL for the declared language as a two-letter code; NULL if the record declares none or an
    unreadable one."""
    return r"nullif(regexp_extract(lower(language), '^([a-z]{2})(?:[-_].*)?$', 1), '')"


def _signs() -> str:
    """SQL for whether an answer may contain code; then Python must find its prose."""
    signs = r"(length(output) - length(regexp_replace(output, '[{}();=<>\[\]_]+', '', 'g')))"
    return f"(contains(output, '```') OR {signs} >= 0.06 * length(output))"


def _judge_doubts(work: Work, settings: Cleaning) -> None:
    """Read the doubtful records, and fill in `language` and `wrong` for all."""
    rows = work.db.sql(f"""
        SELECT n, declared, left(instruction, {READ_CHARS}) AS instruction, left(input, {READ_CHARS}) AS input,
               left(output, {READ_CHARS}) AS output
        FROM spoken JOIN staged USING (n) WHERE spoken.language IS NULL
    """).to_arrow_reader(2000)
    judged = [{"n": row["n"], **read(row, settings)} for batch in rows for row in batch.to_pylist()]
    schema = pa.schema([("n", pa.int64()), ("language", pa.string()), ("wrong", pa.float64())])
    work.db.register("judged", pa.Table.from_pylist(judged, schema=schema))
    work.db.execute(
        """
        CREATE OR REPLACE TABLE spoken AS
        SELECT n, declared, coalesce(judged.language, spoken.language) AS language,
               coalesce(judged.wrong, CASE
                   WHEN declared IS NOT NULL THEN (declared <> spoken.language)::DOUBLE
                   WHEN $languages::VARCHAR[] IS NOT NULL THEN (NOT list_contains($languages::VARCHAR[], spoken.language))::DOUBLE
                   ELSE 0.0 END) AS wrong
        FROM spoken LEFT JOIN judged USING (n)
    """,
        {"languages": settings.languages},
    )
    work.db.unregister("judged")


def read(row: Row, settings: Cleaning) -> Row:
    """The language of a doubtful record, and the probability that the record is in a wrong
    language.

    If the record rightly answers in another language than asked in, its language is that of the
    question.
    """
    expected, request = _expected(row, settings), _request_text(row)
    question = _question(row["instruction"] if _letters(row["instruction"]) >= 4 else request)
    sample = next((text for text in _samples(row, question) if _is_sufficient(text, expected, settings)), None)
    if sample is None:
        return {"language": row["declared"] or _script_language(f"{request}\n{row['output']}"), "wrong": 0.0}
    language, wrong = _identified(sample, expected, settings)
    if wrong >= settings.wrong_language_probability:
        return _judge_other_language(row, question, sample, language, wrong, settings)
    if foreign := _foreign_question(question, sample, expected, settings):
        return {"language": foreign, "wrong": 1.0}
    return {"language": language, "wrong": wrong}


def _judge_other_language(row: Row, question: str, sample: str, language: str, wrong: float, settings: Cleaning) -> Row:
    """The same for a record whose answer is in the unexpected `language`, which the question may
    have asked for."""
    # The question itself must be in an expected language. One with too few letters counts as in
    # the language of the answer.
    expected, request = _expected(row, settings), _request_text(row)
    question_language, question_wrong = (
        _identified(question, expected, settings) if _letters(question) >= 4 else (language, wrong)
    )
    foreign_question = question_wrong >= settings.wrong_language_probability and _is_foreign(
        question, question_language
    )
    asked_in_expected = (
        not foreign_question
        and not _in_no_script_of(row["declared"], question, sample)
        and (question_language != language or not _is_sure(question, question_language))
    )

    # The answer is right if the question asks for the language or the answer returns text from the
    # question. It also passes if its language is not certain.
    script = _other_script(sample, expected, settings) or main_script(sample)
    is_wanted = asks_for_another(request, script, language, _weight(sample)) or _is_returned_text(
        question, request, sample
    )
    if asked_in_expected and (is_wanted or not _is_sure(sample, language)):
        return {
            "language": question_language
            if question_wrong < settings.wrong_language_probability
            else (expected or ["en"])[-1],
            "wrong": 0.0,
        }
    return {"language": language, "wrong": wrong}


def _expected(row: Row, settings: Cleaning) -> list[str] | None:
    return [row["declared"]] if row["declared"] else settings.languages


def _request_text(row: Row) -> str:
    return f"{row['instruction']}\n{row['input']}".strip()


def _weight(text: str) -> int:
    """The length of a text in letters of an alphabet; one Chinese or Japanese character counts as
    three."""
    return _letters(text) * (3 if main_script(text) in ("han", "kana") else 1)


def _is_returned_text(question: str, request: str, sample: str) -> bool:
    """Whether an answer returns, corrected or sorted, foreign text from a question in English or
    Korean."""
    if not (_ENGLISH_WORDS.search(question) or main_script(question) == "hangul"):
        return False
    words = re.findall(r"\w+", sample.lower())
    known = set(re.findall(r"\w+", request.lower()))
    # Chinese has no spaces between words.
    enough = len(words) >= 3 or main_script(sample) != "latin"
    return enough and 2 * sum(word in known for word in words) >= len(words)


def _in_no_script_of(declared: str | None, question: str, sample: str) -> bool:
    """Whether neither question nor answer is mostly in a script of the declared language."""
    return declared is not None and not {main_script(question), main_script(sample)} & {*scripts_of(declared), None}


def _foreign_question(question: str, sample: str, expected: list[str] | None, settings: Cleaning) -> str | None:
    """The language of a question in no expected language; None for other questions, and if the
    answer contradicts it.

    This is for answers that are too short, or too full of names, to be judged by themselves.
    """
    if expected is None:
        return None
    if script := _other_script(question, expected, settings):
        return _language_in(question, script) if script_shares(sample).get(script, 0.0) >= SOME_OTHER_SCRIPT else None
    latin = main_script(sample) == main_script(question) == "latin"
    if _letters(sample) >= 2 * MIN_LETTERS or not latin or _ENGLISH_WORDS.search(f"{question} {sample}"):
        return None
    name, share = _ranked(" ".join(question.split()), "latin")[0]
    own_words = FUNCTION_WORDS.get(name, frozenset()) & {word.strip(".,;:!?¿¡\"'") for word in question.lower().split()}
    foreign = name not in expected and (bool(own_words) or not question.isascii())
    return name if foreign and share >= LIKELY else None


def _samples(row: Row, question: str) -> Iterator[str]:
    """Texts to judge a record by, the best first. A one-word answer shows no language, but with its
    question it does."""
    answer = _readable(row["output"])
    # Code counts only if it has non-ASCII text around it.
    if not prose.is_code(row["output"]) or not answer.isascii():
        yield answer
    yield f"{question}\n{answer}"
    yield f"{row['instruction']}\n{row['input']}\n{row['output']}"


def _is_sufficient(text: str, expected: list[str] | None, settings: Cleaning) -> bool:
    return _letters(text) >= MIN_LETTERS or _other_script(text, expected, settings) is not None


def _question(text: str) -> str:
    """The question without quotations, URLs and text after a colon, if enough is left."""
    outside = prose.unquoted(prose.URL.sub(" ", text)).partition(":")[0]
    return outside if _letters(outside) >= 6 else _readable(text)


def _is_foreign(question: str, language: str) -> bool:
    """Whether a question identified as `language` really is in it, not only through names."""
    if _ENGLISH_WORDS.search(question) and not _is_sure(question, language):
        return False
    return _is_sure(question, language) or (main_script(question) == "latin" and not question.isascii())


def _readable(text: str) -> str:
    """The text without code, URLs and quotations; quotations stay if hardly anything else is
    left."""
    bare = prose.URL.sub(" ", prose.prose(text))
    outside = prose.unquoted(bare)
    return outside if _letters(outside) >= min(MIN_LETTERS, _letters(bare)) or _letters(outside) >= 8 else bare


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def _other_script(text: str, expected: list[str] | None, settings: Cleaning) -> str | None:
    """The main script of a text that is in scripts of no expected language; None otherwise.

    A text with at least `min_hangul_share` of Hangul is Korean, however much Hanja it holds.
    """
    if expected is None:
        return None
    shares = script_shares(text)
    if "ko" in expected and _is_korean(text, settings):
        return None
    used = {script for language in expected for script in scripts_of(language)}
    other = {script: share for script, share in shares.items() if script not in used and script != "greek"}
    # A few Greek letters are mathematics.
    if shares.get("greek", 0.0) >= 0.8 and "greek" not in used and _letters(text) >= MIN_LETTERS:
        other["greek"] = shares["greek"]
    total = sum(other.values())
    return max(other, key=lambda script: other[script]) if total >= OTHER_SCRIPT else None


def _is_korean(text: str, settings: Cleaning) -> bool:
    hangul = len(letters_of(text, "hangul").replace(" ", ""))
    return hangul > 0 and hangul >= settings.min_hangul_share * _letters(text)


def _script_language(text: str) -> str:
    return {"hangul": "ko", "han": "zh", "kana": "ja", "cyrillic": "ru", "arabic": "ar"}.get(
        main_script(text) or "", "en"
    )


def _identified(text: str, expected: list[str] | None, settings: Cleaning) -> tuple[str, float]:
    """The likeliest language, and the probability of the likeliest unexpected language.

    If that probability is too low to reject the record, the language is the likeliest expected one.
    """
    # py3langid takes only spaces as word ends and does not know words in capitals.
    text = " ".join(text[:JUDGED_CHARS].split())
    if beyond_doubt := _beyond_doubt(text, expected, settings):
        return beyond_doubt
    script = _judged_script(text, expected)
    text = _in_script(text, script)
    capitals = sum(map(str.isupper, text))
    ranked = _ranked(text.lower() if capitals > 0.5 * max(1, _letters(text)) else text, script)
    inside = [name for name, _ in ranked if expected is None or name in expected]
    wrong = 0.0 if expected is None else _unexpected(text, ranked, expected)
    keeps = inside and wrong < settings.wrong_language_probability
    return (inside[0] if keeps else ranked[0][0]), wrong


def _beyond_doubt(text: str, expected: list[str] | None, settings: Cleaning) -> tuple[str, float] | None:
    """The same, if script or function words show it without a model; None otherwise."""
    if script := _other_script(text, expected, settings):
        return _language_in(text, script), 1.0
    if (expected is None or "ko" in expected) and _is_korean(text, settings):
        return "ko", 0.0
    if (expected is None or "en" in expected) and _is_english(text):
        return "en", 0.0
    # Filler text is in no language. If it is a placeholder, another rule rejects it.
    if _LOREM.search(text):
        return (expected or ["en"])[0], 0.0
    return None


def _unexpected(text: str, ranked: list[tuple[str, float]], expected: list[str]) -> float:
    """The probability of the likeliest unexpected language."""
    shares = [share for name, share in ranked if name not in expected]
    wrong, others = max(shares, default=0.0), sum(shares)
    # The model is not sure of a short sentence, but its function words are clear.
    if wrong >= LITTLE and any(_shows_language(text, name) for name, _ in ranked[:3] if name not in expected):
        wrong = 1.0
    # The probability is split among similar languages: Indonesian and Malay, Norwegian and Danish.
    if others >= ALL_BUT and ranked[0][0] in FUNCTION_WORDS and _is_sure(text, ranked[0][0]):
        wrong = max(wrong, others)
    return wrong


def _shows_language(text: str, language: str) -> bool:
    """Whether a short text has enough function words of a language, and none of English."""
    known = FUNCTION_WORDS.get(language, frozenset())
    words = [word.strip(".,;:!?()«»\"'’") for word in text.split()]
    function_words = [word for word in words if word.lower() in known]
    others = [word for word in words if word.lower() not in known]
    names = sum(word[:1].isupper() for word in others) > 0.7 * len(others)
    if len(words) < MIN_SURE_WORDS or names or _ENGLISH_WORDS.search(text):
        return False
    marked = any(sign.isalpha() and not sign.isascii() for sign in text)
    return len(function_words) >= max(2, 0.3 * len(words)) or (bool(function_words) and marked)


def _judged_script(text: str, expected: list[str] | None) -> str | None:
    """The script by which to identify a text: the main one if an expected language uses it.

    Otherwise it is a script of an expected language with a share of at least SOME_SCRIPT, else the
    main one.
    """
    shares, main = script_shares(text), main_script(text)
    used = dict.fromkeys(script for language in expected or [] for script in scripts_of(language))
    if main in used:
        return main
    return next((script for script in used if shares.get(script, 0.0) >= SOME_SCRIPT), main)


_LOREM = re.compile(r"\blorem ipsum\b", re.IGNORECASE)


def _is_english(text: str) -> bool:
    """Whether English function words are as frequent as only English text has them."""
    words = re.findall(r"[A-Za-zÀ-ɏ']+", text)
    return (
        len(words) >= MIN_SURE_WORDS - 1
        and len(_ENGLISH_WORDS.findall(text)) >= ENGLISH_SHARE * len(words)
        and text.isascii()
    )


_ENGLISH_WORDS = re.compile(rf"\b(?:{ENGLISH}|how|a|my|me|do|does|on|by|we|not|be|at|as)\b", re.IGNORECASE)


def _in_script(text: str, script: str | None) -> str:
    """The words of the text in `script`. Names and terms in other scripts say nothing about the
    language."""
    if script is None or text.isascii():
        return text
    letters = letters_of(text, "kana" if script == "kana" else script)
    return letters if len(letters) >= MIN_LETTERS else text


def _ranked(text: str, script: str | None) -> list[tuple[str, float]]:
    """The languages that use the script, with their probabilities among those, the likeliest
    first."""
    ranked = [
        (name, float(share)) for name, share in _identifier().rank(text) if script is None or script in scripts_of(name)
    ]
    total = sum(share for _, share in ranked)
    return [(name, share / total) for name, share in ranked] if total > 0 else [("en", 1.0)]


def _language_in(text: str, script: str) -> str:
    """The likeliest language among those that use a script."""
    return _ranked(text, script)[0][0]


def _is_sure(text: str, language: str) -> bool:
    """Whether a text is in a language, not only through names and loan words: by its script or by
    function words."""
    if (script := main_script(text)) and script != "latin":
        return True
    known = FUNCTION_WORDS.get(language)
    words = text.lower().split()
    # A list of names is in no language.
    capitals = sum(word[:1].isupper() for word in text.split())
    if len(words) >= MIN_SURE_WORDS - 1 and capitals < 0.8 * len(words) and _has_letters_of_its_own(text):
        return True
    if known is None:
        return len(words) >= MIN_SURE_WORDS and _letters(text) >= 60 and capitals < 0.4 * len(words)
    function_words = sum(word.strip(".,;:!?()«»\"'’") in known for word in words)
    return (function_words >= 2 and function_words >= FUNCTION_SHARE * len(words)) or _shows_language(text, language)


def _has_letters_of_its_own(text: str) -> bool:
    """Whether a text has many non-ASCII letters and no English function word."""
    marked = sum(sign.isalpha() and not sign.isascii() for sign in text)
    return marked >= OWN_LETTERS * _letters(text) and not _ENGLISH_WORDS.search(text)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
