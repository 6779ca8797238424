"""Every reason of one record alone: a record just inside the threshold is kept, one just outside is dropped for that reason."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.clean.clean import clean, examples, rejects
from pipelines.clean.personal_data import is_card, is_resident_number
from pipelines.clean.rules import REASONS
from pipelines.experiments import Cleaning
from pipelines.paths import DataRoot
from pipelines.records import RawRecord
from tests.sft_records import GOOD, SETTINGS, prose, stories, story, verdicts

KOREAN = story(77, korean=True)
# made up: the check digits are right, the people are not there
RESIDENT, RESIDENT_WRONG = "900101-1234568", "900101-1234567"
CARD, CARD_WRONG = "4111 1111 1111 1111", "4111 1111 1111 1112"


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot(tmp_path)


def answer(text: str) -> dict[str, str]:
    return {**GOOD, "output": text}


def told(extra: str) -> dict[str, str]:
    """A good record that says `extra` too."""
    return answer(f"{GOOD['output']} {extra}")


def hangul_and_cyrillic(hangul: int, cyrillic: int) -> str:
    """A text of so many letters of each script."""
    russian = (
        "Книга рассказывает о человеке который возвращается домой после долгого путешествия и находит там старого друга"
    )
    korean = "이 책은 조용한 마을에 사는 노인과 소녀의 우정을 그린 이야기로 밤에 천천히 읽기 좋습니다"
    return " ".join((_letters(korean, hangul), _letters(russian, cyrillic)))


def _letters(text: str, count: int) -> str:
    """The beginning of `text` that has so many letters."""
    return next(text[:end] for end in range(len(text)) if sum(map(str.isalpha, text[:end])) == count)


INSIDE_OUTSIDE = [
    pytest.param("schema", GOOD, {k: v for k, v in GOOD.items() if k != "output"}, id="no output"),
    pytest.param("schema", {k: v for k, v in GOOD.items() if k != "input"}, {**GOOD, "input": None}, id="input null"),
    pytest.param("schema", {**GOOD, "rating": 5}, answer(5), id="a number"),  # pyright: ignore[reportArgumentType]
    pytest.param("schema", {**GOOD, "messages": None}, {**GOOD, "messages": "hello"}, id="messages"),
    pytest.param("schema", GOOD, [GOOD], id="a list"),
    pytest.param("schema", GOOD, {"title": "Stoner", "text": GOOD["output"]}, id="no known field"),
    pytest.param("encoding", told("naïve café, «così», “così” aquí…"), told("cafÃ©"), id="UTF-8 as Latin-1"),
    pytest.param("encoding", told("don’t"), told("donâ€™t"), id="UTF-8 as Windows-1252"),
    pytest.param("encoding", told("gâché\xa0» 20\xa0°C"), told("20Â°C"), id="a degree sign"),
    pytest.param(
        "encoding", KOREAN, {**KOREAN, "output": KOREAN["output"] + " ì•ˆë…•í•˜ì„¸ìš”"}, id="Korean as Windows-1252"
    ),
    pytest.param("encoding", KOREAN, {**KOREAN, "output": KOREAN["output"] + " 占쏙옙"}, id="Korean twice"),
    pytest.param("encoding", told("?"), told("\ufffd"), id="U+FFFD"),
    pytest.param("encoding", told("a\x85b"), told("a\x93b"), id="C1"),
    pytest.param("empty", {**GOOD, "instruction": "?", "input": "1234567"}, {**GOOD, "instruction": " "}, id="blank"),
    pytest.param("empty", answer("\n" + prose(20)), answer("\n" * 20), id="line breaks"),
    pytest.param("empty", answer("\t" + prose(20)), answer("\t" * 20), id="tabs"),
    pytest.param("empty", answer(prose(20)), answer("\u3000\xa0" * 20), id="wide spaces"),
    pytest.param("too_short", {**GOOD, "instruction": "12345678"}, {**GOOD, "instruction": "1234567"}, id="prompt"),
    pytest.param(
        "too_short",
        {**GOOD, "instruction": "1234", "input": "5678"},
        {**GOOD, "instruction": "1234", "input": "567"},
        id="prompt with input",
    ),
    pytest.param("too_short", answer(prose(20)), answer(prose(19)), id="output"),
    pytest.param(
        "too_short",
        {**KOREAN, "output": prose(20, korean=True)},
        {**KOREAN, "output": prose(19, korean=True)},
        id="Korean output",
    ),
    pytest.param("too_short", answer(prose(20)), answer(f"  {prose(18)}\n\n"), id="padded"),
    pytest.param("too_long", answer(prose(8000)), answer(prose(8001)), id="output long"),
    pytest.param(
        "too_long",
        {**KOREAN, "output": prose(8000, korean=True)},
        {**KOREAN, "output": prose(8001, korean=True)},
        id="Korean long",
    ),
    pytest.param(
        "too_long", {**GOOD, "instruction": prose(8000)}, {**GOOD, "instruction": prose(8001)}, id="instruction long"
    ),
    pytest.param("too_long", {**GOOD, "input": prose(8000)}, {**GOOD, "input": prose(8001)}, id="input long"),
    # 40 characters once, then again in full: 33 of 74 8-grams stood there before; 34 more and it is over half
    pytest.param("repetition", answer(prose(40) + " " + prose(40)), answer((prose(40) + " ") * 3), id="a phrase again"),
    pytest.param("repetition", answer("ha ha ha ha, " + prose(40)), answer("ha " * 20), id="laughter"),
    pytest.param("repetition", KOREAN, {**KOREAN, "output": "이 책을 추천해요. " * 5}, id="Korean loop"),
    pytest.param("placeholder", told("[sic] [1] [Stoner]"), told("Yours, [Your Name]"), id="your name"),
    pytest.param("placeholder", told("insert a bookmark"), told("[insert title here]"), id="insert"),
    pytest.param("placeholder", KOREAN, {**KOREAN, "output": KOREAN["output"] + " [이름]님께"}, id="Korean name"),
    pytest.param("placeholder", told("lorem"), told("Lorem ipsum dolor"), id="lorem ipsum"),
    pytest.param(
        "refusal",
        answer("I'm sorry for your loss. " + prose(60)),
        answer("I'm sorry, but I cannot. " + prose(60)),
        id="sorry",
    ),
    pytest.param(
        "refusal",
        answer("As an airline pilot, " + prose(60)),
        answer("As an AI language model, " + prose(60)),
        id="an AI",
    ),
    pytest.param(
        "refusal",
        {**KOREAN, "output": "미안한 마음이 든다면 " + KOREAN["output"]},
        {**KOREAN, "output": "죄송하지만 " + KOREAN["output"]},
        id="Korean apology",
    ),
    pytest.param(
        "refusal",
        answer(f"{prose(120 - len('I apologize, but'))} I apologize, but " + prose(40)),
        answer(f"{prose(119 - len('I apologize, but'))} I apologize, but " + prose(40)),
        id="within 120 characters",
    ),
    pytest.param(
        "prompt_echo",
        answer(f"{GOOD['instruction']} {prose(len(GOOD['instruction']) - 1)}"),
        answer(f"{GOOD['instruction'].upper()} {prose(len(GOOD['instruction']) - 2)}"),
        id="half",
    ),
    pytest.param(
        "prompt_echo",
        {**GOOD, "input": prose(60), "output": f"{prose(60)} or else, who knows, nothing"},
        {**GOOD, "input": prose(60), "output": f"{GOOD['instruction']} {prose(60)} or else"},
        id="with its input",
    ),
    pytest.param("personal_data", told(RESIDENT_WRONG), told(RESIDENT), id="resident number"),
    pytest.param("personal_data", told("900101-9234568"), told(RESIDENT.replace("-", "")), id="without its dash"),
    pytest.param("personal_data", told(CARD_WRONG), told(CARD), id="card"),
    pytest.param("personal_data", told("ISBN 978-89-374-6077-9"), told(CARD.replace(" ", "-")), id="not an ISBN"),
    pytest.param("personal_data", told("in 2010-2011, 1234-5678"), told("call 010-2345-6789"), id="Korean phone"),
    pytest.param(
        "personal_data", KOREAN, {**KOREAN, "output": KOREAN["output"] + " 010-2345-6789로"}, id="with a particle"
    ),
    pytest.param("personal_data", told("pages 212 to 555, 0142"), told("call (212) 555-0142"), id="American phone"),
    pytest.param("personal_data", told("reader@example.com"), told("reader@bookshop.co.kr"), id="e-mail"),
    pytest.param("personal_data", told("sk-short"), told("sk-" + "a1B2" * 8), id="API key"),
    pytest.param("personal_data", told("the AKIA key"), told("AKIA" + "A1B2C3D4E5F6G7H8"), id="cloud key"),
    pytest.param("wrong_language", {**KOREAN, "language": "ko"}, {**GOOD, "language": "ko"}, id="declared Korean"),
    pytest.param("wrong_language", {**GOOD, "language": "en-GB"}, {**KOREAN, "language": "en"}, id="declared English"),
    pytest.param(
        "wrong_language",
        answer("It is a book about a family, and the house that they leave."),
        answer("Das Buch erzählt von einer Familie, die nach dem Krieg in eine kleine Stadt zieht."),
        id="German",
    ),
    pytest.param(
        "wrong_language", KOREAN, answer("この本は、静かな町で暮らす老人と少女の友情を描いた物語です。"), id="Japanese"
    ),
    pytest.param(
        "wrong_language", answer(hangul_and_cyrillic(30, 70)), answer(hangul_and_cyrillic(29, 71)), id="Hangul share"
    ),
    pytest.param("wrong_language", {**GOOD, "language": "en"}, {**GOOD, "language": "fr"}, id="declared French"),
]


@pytest.mark.parametrize(("reason", "inside", "outside"), INSIDE_OUTSIDE)
def test_the_threshold_of_a_rule_on_one_record(data: DataRoot, reason: str, inside: Any, outside: Any) -> None:
    assert verdicts(data, inside, outside) == ["accepted", reason]


def test_every_reason_of_one_record_alone_is_tested_above() -> None:
    of_several = {"exact_duplicate", "near_duplicate", "contamination"}  # in test_clean_duplicates.py
    assert {case.values[0] for case in INSIDE_OUTSIDE} == set(REASONS) - of_several


@pytest.mark.parametrize(
    ("settings", "reason", "inside", "outside"),
    [
        ({"min_prompt_chars": 12}, "too_short", {**GOOD, "instruction": "x" * 12}, {**GOOD, "instruction": "x" * 11}),
        ({"min_output_chars": 62}, "too_short", GOOD, answer(GOOD["output"][1:])),
        ({"max_chars": 300}, "too_long", {**GOOD, "input": prose(300)}, {**GOOD, "input": prose(301)}),
        ({"max_damaged": 1}, "encoding", told("cafÃ©"), told("cafÃ© cafÃ©")),
        ({"max_repeated_share": 0.2}, "repetition", GOOD, answer(prose(40) + " " + prose(40))),
        ({"max_placeholders": 1}, "placeholder", told("[Your Name]"), told("[Your Name] [Your Name]")),
        ({"refusal_chars": 20}, "refusal", answer(prose(30) + " as an AI I"), answer(prose(10) + " as an AI I like it")),
        ({"max_echo_share": 0.8}, "prompt_echo", answer(GOOD["instruction"] + " Stoner, maybe"),
          answer(GOOD["instruction"] + " Hm")),
        ({"personal_data": ["email"]}, "personal_data", told("010-2345-6789"), told("reader@bookshop.co.kr")),
        ({"languages": ["en"]}, "wrong_language", GOOD, KOREAN),
        ({"min_hangul_share": 0.9}, "wrong_language", {**KOREAN, "language": "ko"}, {**told("책"), "language": "ko"}),
    ],
)  # fmt: skip
def test_thresholds_come_from_the_configuration(
    data: DataRoot, settings: dict[str, Any], reason: str, inside: Any, outside: Any
) -> None:
    own = [RawRecord("inside", inside), RawRecord("outside", outside)]
    result = clean(data, stories(30) + own, Cleaning(**settings))
    dropped = {row["source"]: row["reason"] for row in rejects(result)}
    assert "inside" not in dropped and dropped["outside"] == reason


def test_kinds_that_are_not_asked_for_are_not_looked_for(data: DataRoot) -> None:
    everything = told(f"{RESIDENT} {CARD} 010-2345-6789 reader@bookshop.co.kr")
    assert verdicts(data, everything, settings=Cleaning(personal_data=[])) == ["accepted"]


def test_any_language_may_be_asked_for(data: DataRoot) -> None:
    german = answer("Das Buch erzählt von einer Familie, die nach dem Krieg in eine kleine Stadt zieht.")
    assert verdicts(data, german, {**answer(prose(200)), "language": "fr"}, settings=Cleaning(languages=None)) == [
        "accepted",
        "wrong_language",
    ]
    assert verdicts(data, german, settings=Cleaning(languages=["ko", "en", "de"])) == ["accepted"]


def test_code_is_judged_by_what_was_asked(data: DataRoot) -> None:
    code = "def median(numbers):\n    numbers = sorted(numbers)\n    return numbers[len(numbers) // 2]\n"
    asked = {"instruction": "Write a function that returns the median of a list.", "output": code}
    french = {"instruction": "Écris une fonction qui renvoie la médiane d'une liste de nombres.", "output": code}
    assert verdicts(data, asked, french) == ["accepted", "wrong_language"]


@pytest.mark.parametrize("number", ["900101-1234568", "850505-2345674"])
def test_one_wrong_digit_makes_no_resident_number(number: str) -> None:
    assert is_resident_number(number)
    wrong = [number[:i] + str((int(number[i]) + 1) % 10) + number[i + 1 :] for i in range(8, 14)]
    assert not any(map(is_resident_number, wrong))


@pytest.mark.parametrize("number", ["4111111111111111", "5555-5555-5555-4444", "378282246310005"])
def test_one_wrong_digit_makes_no_card(number: str) -> None:
    assert is_card(number)
    places = [i for i, sign in enumerate(number) if sign.isdigit()]
    assert not any(is_card(number[:i] + str((int(number[i]) + 1) % 10) + number[i + 1 :]) for i in places)


def test_the_detail_of_personal_data_names_the_kind_and_not_the_number(data: DataRoot) -> None:
    result = clean(data, [*stories(30), RawRecord("mine", told(f"{CARD}, 010-2345-6789"))], SETTINGS)
    (row,) = rejects(result)
    assert row["detail"] == "holds card, phone"


def test_the_first_rule_that_holds_is_the_reason(data: DataRoot) -> None:
    blank_and_long = {**GOOD, "instruction": " ", "output": prose(9000)}
    short_twice = answer("short")
    assert verdicts(data, blank_and_long, short_twice, short_twice) == ["empty", "too_short", "too_short"]


def test_the_language_is_what_the_record_says_else_what_it_is_written_in(data: DataRoot) -> None:
    german = "Das Buch erzählt von einer Familie, die nach dem Krieg in eine kleine Stadt zieht."
    records = [
        RawRecord("korean", story(101, korean=True)),
        RawRecord("english", story(102)),
        RawRecord("labelled", {**answer(german), "language": "de"}),
        RawRecord("found", answer("Ein stiller Roman über zwei Freunde, die sich nach vielen Jahren wiedersehen.")),
        RawRecord("given", story(104), language="en-GB"),
        RawRecord("unreadable", story(105, korean=True), language="Korean"),
    ]
    result = clean(data, stories(30) + records, Cleaning(languages=None))
    found = {row["source"]: row["language"] for row in examples(result)}
    assert {name: found[name] for name in found if name != "corpus"} == {
        "korean": "ko", "english": "en", "labelled": "de", "found": "de", "given": "en", "unreadable": "ko",
    }  # fmt: skip
