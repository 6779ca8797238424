"""Every reason that concerns a single record.

A record just inside the threshold is accepted; one just outside is rejected for that reason.
"""

from pathlib import Path
from typing import Any

import pytest

from pipelines.clean.clean import clean, examples, rejects
from pipelines.clean.personal_data import is_card, is_resident_number
from pipelines.clean.reasons import REASONS
from pipelines.lake.paths import DataRoot
from pipelines.records.reading import RawRecord
from pipelines.settings.cleaning import Cleaning
from tests.sft_records import GOOD, SETTINGS, prose, stories, story, verdicts

LENGTHS = Cleaning(min_prompt_chars=8, min_output_chars=20)

KOREAN = story(77, korean=True)
# Invented: the check digits are right, but the people do not exist.
RESIDENT, RESIDENT_WRONG = "900101-1234568", "900101-1234567"
CARD, CARD_WRONG = "4716 2893 5510 4734", "4716 2893 5510 4735"


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot(tmp_path)


def answer(text: str) -> dict[str, str]:
    return {**GOOD, "output": text}


def good_with(extra: str) -> dict[str, str]:
    """A good record whose output also contains `extra`."""
    return answer(f"{GOOD['output']} {extra}")


def hangul_and_cyrillic(hangul: int, cyrillic: int) -> str:
    """A text with this many letters of each script."""
    russian = (
        "Книга рассказывает о человеке который возвращается домой после долгого путешествия и находит там старого друга"
    )
    korean = "이 책은 조용한 마을에 사는 노인과 소녀의 우정을 그린 이야기로 밤에 천천히 읽기 좋습니다"
    return " ".join((_letters(korean, hangul), _letters(russian, cyrillic)))


def _letters(text: str, count: int) -> str:
    """The beginning of `text` with this many letters."""
    return next(text[:end] for end in range(len(text)) if sum(map(str.isalpha, text[:end])) == count)


INSIDE_OUTSIDE = [
    pytest.param("schema", GOOD, {k: v for k, v in GOOD.items() if k != "output"}, id="no output"),
    pytest.param("schema", {**GOOD, "input": None}, {**GOOD, "input": 7}, id="input null"),
    pytest.param("not_text", {**GOOD, "images": []}, {**story(9), "images": ["a.png"]}, id="picture"),
    pytest.param(
        "tool_calls",
        {**GOOD, "tools": "[]"},
        {**story(9), "output": '<tool_call>{"name": "a"}</tool_call>'},
        id="tool call",
    ),
    pytest.param("labelled_undesirable", {**GOOD, "label": True}, {**story(9), "label": False}, id="label"),
    pytest.param("schema", {**GOOD, "rating": 5}, answer(5), id="a number"),  # pyright: ignore[reportArgumentType]
    pytest.param("schema", {**GOOD, "messages": None}, {**GOOD, "messages": "hello"}, id="messages"),
    pytest.param("schema", GOOD, [GOOD], id="a list"),
    pytest.param("schema", GOOD, {"title": "Stoner", "text": GOOD["output"]}, id="no known field"),
    pytest.param(
        "encoding",
        good_with("naïve café, «così», “così” aquí…"),
        good_with("cafÃ©"),
        id="UTF-8 as Latin-1",
    ),
    pytest.param("encoding", good_with("don’t"), good_with("donâ€™t"), id="UTF-8 as Windows-1252"),
    pytest.param("encoding", good_with("gâché\xa0» 20\xa0°C"), good_with("20Â°C"), id="a degree sign"),
    pytest.param(
        "encoding", KOREAN, {**KOREAN, "output": KOREAN["output"] + " ì•ˆë…•í•˜ì„¸ìš”"}, id="Korean as Windows-1252"
    ),
    pytest.param("encoding", KOREAN, {**KOREAN, "output": KOREAN["output"] + " 占쏙옙"}, id="Korean twice"),
    pytest.param("encoding", good_with("?"), good_with("\ufffd"), id="U+FFFD"),
    pytest.param("encoding", good_with("a\x85b"), good_with("a\x93b"), id="C1"),
    pytest.param("empty", {**GOOD, "instruction": "?", "input": "1234567"}, {**GOOD, "instruction": " "}, id="blank"),
    pytest.param("empty", answer("\n" + prose(20)), answer("\n" * 20), id="line breaks"),
    pytest.param("empty", answer("\t" + prose(20)), answer("\t" * 20), id="tabs"),
    pytest.param("empty", answer(prose(20)), answer("\u3000\xa0" * 20), id="wide spaces"),
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
    # 40 characters once, then again in full: 33 of 74 8-grams are repeated; 34 more exceed half.
    pytest.param("repetition", answer(prose(40) + " " + prose(40)), answer((prose(40) + " ") * 3), id="a phrase again"),
    pytest.param("repetition", answer("ha ha ha ha, " + prose(40)), answer("ha " * 20), id="laughter"),
    pytest.param("repetition", KOREAN, {**KOREAN, "output": "이 책을 추천해요. " * 5}, id="Korean loop"),
    pytest.param("placeholder", good_with("[sic] [1] [Stoner]"), good_with("Yours, [Your Name]"), id="your name"),
    pytest.param("placeholder", good_with("insert a bookmark"), good_with("[insert title here]"), id="insert"),
    pytest.param("placeholder", KOREAN, {**KOREAN, "output": KOREAN["output"] + " [이름]님께"}, id="Korean name"),
    pytest.param("placeholder", good_with("lorem"), good_with("Lorem ipsum dolor"), id="lorem ipsum"),
    pytest.param(
        "refusal",
        answer("I'm sorry for your loss. " + prose(60)),
        answer("I'm sorry, but I cannot. " + prose(60)),
        id="sorry",
    ),
    pytest.param(
        "refusal",
        answer("As an airline pilot, " + prose(60)),
        answer("As an AI language model, I do not read books."),
        id="an AI",
    ),
    pytest.param(
        "refusal",
        answer(f"As an AI I don't have a favourite, but here is what others read on that bus: {prose(120)}"),
        answer("As an AI I don't have a favourite, and I can't read."),
        id="goes on to answer",
    ),
    pytest.param(
        "refusal",
        {"instruction": "버스에서 읽을 책을 골라 줘.", "output": "미안한 마음이 든다면 짧은 시집 한 권이 좋습니다."},
        {"instruction": "버스에서 읽을 책을 골라 줘.", "output": "죄송하지만 책을 추천해 드릴 수 없습니다."},
        id="Korean apology",
    ),
    pytest.param(
        "refusal",
        {
            "instruction": "Generate an excuse for not coming to work.",
            "output": "I'm sorry, but I can't come in today.",
        },
        {"instruction": "Plan my day at work.", "output": "I'm sorry, but I can't help with that today."},
        id="an excuse asked for",
    ),
    pytest.param(
        "refusal",
        answer('```python\nANSWER = "I am an AI and cannot help with that."\nprint(ANSWER)\n```'),
        answer("I am an AI and cannot help with that."),
        id="in code",
    ),
    pytest.param(
        "prompt_echo",
        answer(f"{GOOD['instruction']} Stoner, by John Williams."),
        answer(f"{GOOD['instruction'].upper()} {GOOD['instruction']}"),
        id="said twice",
    ),
    pytest.param(
        "prompt_echo",
        answer(f"Question: {GOOD['instruction']} Answer: Stoner, and nothing else tonight."),
        answer(f"Question: {GOOD['instruction']}"),
        id="with its label",
    ),
    pytest.param(
        "prompt_echo",
        {"instruction": "Correct the spelling.", "input": "The bus is late again.", "output": "The bus is late again."},
        {
            "instruction": "Explain this sentence.",
            "input": "The bus is late today.",
            "output": "The bus is late today.",
        },
        id="the input",
    ),
    pytest.param("personal_data", good_with(RESIDENT_WRONG), good_with(RESIDENT), id="resident number"),
    pytest.param(
        "personal_data",
        good_with("900101-9234568"),
        good_with(RESIDENT.replace("-", "")),
        id="without its dash",
    ),
    pytest.param("personal_data", good_with(CARD_WRONG), good_with(CARD), id="card"),
    pytest.param(
        "personal_data",
        good_with("ISBN 978-89-374-6077-9"),
        good_with(CARD.replace(" ", "-")),
        id="not an ISBN",
    ),
    pytest.param(
        "personal_data",
        good_with("in 2010-2011, 1234-5678"),
        good_with("call 010-2345-6789"),
        id="Korean phone",
    ),
    pytest.param(
        "personal_data", KOREAN, {**KOREAN, "output": KOREAN["output"] + " 010-2345-6789로"}, id="with a particle"
    ),
    pytest.param(
        "personal_data",
        good_with("pages 212 to 555, 0142"),
        good_with("call (212) 482-0142"),
        id="American phone",
    ),
    pytest.param(
        "personal_data",
        good_with("call 212-555-0142, 010-1234-5678"),
        good_with("call 010-3947-5018"),
        id="nobody's phone",
    ),
    pytest.param(
        "personal_data",
        good_with("4111 1111 1111 1111"),
        good_with("4929 7163 0052 8461"),
        id="a famous card",
    ),
    pytest.param(
        "personal_data",
        good_with("info@bookshop.co.kr"),
        good_with("mina.k84@bookshop.co.kr"),
        id="a role's address",
    ),
    pytest.param(
        "personal_data",
        {"instruction": "Write a regex for a phone.", "output": r"^\d{3}-\d{4}-\d{4}$ matches 010-2345-6789"},
        {"instruction": "Whom do I call?", "output": "Call 010-2345-6789 after six."},
        id="a pattern",
    ),
    pytest.param(
        "personal_data",
        {"instruction": "Make up fake contacts.", "output": "Kim, 010-2345-6788, kim84@bookshop.co.kr"},
        {"instruction": "Who was on the list?", "output": "Kim, 010-2345-6788, kim84@bookshop.co.kr"},
        id="made up",
    ),
    pytest.param("personal_data", good_with("reader@example.com"), good_with("reader@bookshop.co.kr"), id="e-mail"),
    pytest.param("personal_data", good_with("sk-short"), good_with("sk-" + "a1B2c3D4" * 4), id="API key"),
    pytest.param("personal_data", good_with("the AKIA key"), good_with("AKIA" + "A1B2C3D4E5F6G7H8"), id="cloud key"),
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


SHORT = [
    pytest.param({**GOOD, "instruction": "12345678"}, {**GOOD, "instruction": "1234567"}, id="prompt"),
    pytest.param(
        {**GOOD, "instruction": "1234", "input": "5678"},
        {**GOOD, "instruction": "1234", "input": "567"},
        id="prompt with input",
    ),
    pytest.param(answer(prose(20)), answer(prose(19)), id="output"),
    pytest.param(
        {**KOREAN, "output": prose(20, korean=True)}, {**KOREAN, "output": prose(19, korean=True)}, id="Korean output"
    ),
    pytest.param(answer(prose(20)), answer(f"  {prose(18)}\n\n"), id="padded"),
]


@pytest.mark.parametrize(("inside", "outside"), SHORT)
def test_lengths_may_be_asked_for(data: DataRoot, inside: Any, outside: Any) -> None:
    assert verdicts(data, inside, outside, settings=LENGTHS) == ["accepted", "too_short"]


@pytest.mark.parametrize("short", ["5", "B", "Blue.", "/^a+$/", "네", "😀", "google.com"])
def test_one_sign_is_an_answer(data: DataRoot, short: str) -> None:
    record = {"instruction": "Which one is it, and why do you say that?", "output": short}
    assert verdicts(data, record, {**record, "instruction": "hi"}) == ["accepted", "accepted"]


@pytest.mark.parametrize(("reason", "inside", "outside"), INSIDE_OUTSIDE)
def test_the_threshold_of_a_rule_on_one_record(data: DataRoot, reason: str, inside: Any, outside: Any) -> None:
    assert verdicts(data, inside, outside) == ["accepted", reason]


def test_every_reason_of_one_record_alone_is_tested_above() -> None:
    # Reasons that need several records; test_clean_duplicates.py tests them.
    of_several = {"exact_duplicate", "near_duplicate", "contamination"}
    # No default drops these: see above and test_clean_shapes.py.
    of_several |= {"too_short", "reasoning"}
    assert {case.values[0] for case in INSIDE_OUTSIDE} == set(REASONS) - of_several


@pytest.mark.parametrize(
    ("settings", "reason", "inside", "outside"),
    [
        ({"min_prompt_chars": 12}, "too_short", {**GOOD, "instruction": "x" * 12}, {**GOOD, "instruction": "x" * 11}),
        ({"min_output_chars": 62}, "too_short", GOOD, answer(GOOD["output"][1:])),
        ({"max_chars": 300}, "too_long", {**GOOD, "input": prose(300)}, {**GOOD, "input": prose(301)}),
        ({"max_damaged": 1}, "encoding", good_with("cafÃ©"), good_with("cafÃ© cafÃ©")),
        ({"max_repeated_share": 0.2}, "repetition", GOOD, {**story(8), "output": prose(40, seed=3) + " " + prose(40, seed=3)}),
        ({"max_placeholders": 1}, "placeholder", good_with("[Your Name]"), good_with("[Your Name] [Your Name]")),
        ({"refusal_chars": 20}, "refusal", answer(prose(500) + " I can't help with that. " + prose(500)),
          answer("I can't help with that.")),
        ({"max_echo_share": 0.9}, "prompt_echo", answer(GOOD["instruction"].rstrip("?") + " tonight"),
          {**story(8), "output": story(8)["instruction"]}),
        ({"personal_data": ["email"]}, "personal_data", good_with("010-2345-6789"), good_with("reader@bookshop.co.kr")),
        ({"languages": ["en"]}, "wrong_language", GOOD, KOREAN),
        ({"min_hangul_share": 0.9}, "wrong_language", {**KOREAN, "language": "ko"}, {**good_with("책"), "language": "ko"}),
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
    everything = good_with(f"{RESIDENT} {CARD} 010-2345-6789 reader@bookshop.co.kr")
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
    record = {"instruction": "Write a function that returns the median of a list.", "output": code}
    french = {"instruction": "Écris une fonction qui renvoie la médiane d'une liste de nombres.", "output": code}
    assert verdicts(data, record, french) == ["accepted", "wrong_language"]


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
    result = clean(data, [*stories(30), RawRecord("mine", good_with(f"{CARD}, 010-2345-6789"))], SETTINGS)
    (row,) = rejects(result)
    assert row["detail"] == "holds card, phone"


def test_the_first_rule_that_holds_is_the_reason(data: DataRoot) -> None:
    blank_and_long = {**GOOD, "instruction": " ", "output": prose(9000)}
    short_twice = answer("short")
    reasons = verdicts(data, blank_and_long, short_twice, short_twice, settings=LENGTHS)
    assert reasons == ["empty", "too_short", "too_short"]


def test_of_several_expected_scripts_the_main_one_tells_the_language(data: DataRoot) -> None:
    russian = (
        "Книга рассказывает о человеке, который возвращается домой после долгого путешествия.",
        "Вечером дождь закончился, и дети снова вышли играть во двор.",
    )
    german = (
        "Das Buch erzählt von einer Familie, die nach dem Krieg in eine kleine Stadt zieht.",
        "Am Abend hört der Regen auf, und die Kinder spielen wieder im Hof.",
    )
    records = [
        RawRecord("russian", answer(" ".join((*russian, german[1])))),
        RawRecord("german", answer(" ".join((*german, russian[1])))),
    ]
    result = clean(data, stories(30) + records, Cleaning(languages=["ru", "de", "en"]))
    languages = {row["source"]: row["language"] for row in examples(result)}
    assert (languages["russian"], languages["german"]) == ("ru", "de")


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
    languages = {row["source"]: row["language"] for row in examples(result)}
    assert {name: languages[name] for name in languages if name != "corpus"} == {
        "korean": "ko", "english": "en", "labelled": "de", "found": "de", "given": "en", "unreadable": "ko",
    }  # fmt: skip
