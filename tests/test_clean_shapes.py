"""The shapes of instruction data: each is mapped onto instruction, input, output and messages, and
reported."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.clean.clean import clean, examples
from pipelines.clean.summary import lines
from pipelines.lake.paths import DataRoot
from pipelines.records.reading import RawRecord
from pipelines.records.shapes.mapping import map_fields
from tests.sft_records import SETTINGS, stories, verdicts

ASKED = "Which book is good for a long night shift?"
ANSWER = "Stoner, by John Williams: it is quiet, and the chapters are short."
AGAIN = "And which one for the morning after it?"
LAST = "A book of poems, which you can put down when the kettle boils."
SYSTEM = "You are a librarian who has all the time in the world."
PLAIN = {"instruction": ASKED, "output": ANSWER}
TWO_ROUNDS = [
    {"role": "user", "content": ASKED},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": AGAIN},
    {"role": "assistant", "content": LAST},
]
WHOLE = [{"role": "system", "content": SYSTEM}, *TWO_ROUNDS]


def sharegpt(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot(tmp_path)


@pytest.mark.parametrize(
    ("value", "shape", "expected"),
    [
        (PLAIN, "instruction/output", PLAIN),
        ({**PLAIN, "input": "in"}, "instruction/input/output", {**PLAIN, "input": "in"}),
        ({"instruction": ASKED, "context": "in", "response": ANSWER}, "instruction/context/response", {**PLAIN, "input": "in"}),
        ({"instruction": ASKED, "context": None, "response": ANSWER}, "instruction/context/response", {**PLAIN, "input": ""}),
        ({"prompt": ASKED, "completion": ANSWER}, "prompt/completion", PLAIN),
        ({"prompt": ASKED, "response": ANSWER}, "prompt/response", PLAIN),
        ({"question": ASKED, "answer": ANSWER}, "question/answer", PLAIN),
        ({"messages": TWO_ROUNDS[:2]}, "messages", PLAIN),
        ({"conversations": sharegpt(TWO_ROUNDS[:2])}, "conversations", PLAIN),
        ({"prompt": TWO_ROUNDS[:1], "completion": TWO_ROUNDS[1:2]}, "prompt/completion", PLAIN),
        (
            {"question": ASKED, "answer": ANSWER, "language": "en", "topic": "a/b"}, "question/answer",
            {**PLAIN, "language": "en", "topic": "a/b"},
        ),
    ],
)  # fmt: skip
def test_a_question_and_its_answer_are_a_record_whatever_they_are_called(
    value: dict[str, Any], shape: str, expected: dict[str, Any]
) -> None:
    mapped = map_fields(value)
    assert (mapped.shape, dict(mapped.fields), mapped.dropped_turns, mapped.problem) == (shape, expected, 0, None)


@pytest.mark.parametrize("value", [{"messages": WHOLE}, {"conversations": sharegpt(WHOLE)}])
def test_all_turns_and_the_system_prompt_are_kept(value: dict[str, Any]) -> None:
    mapped = map_fields(value)
    assert mapped.fields == {"instruction": ASKED, "output": LAST, "messages": WHOLE}
    assert mapped.dropped_turns == 0


def test_a_system_prompt_beside_a_pair_is_kept(data: DataRoot) -> None:
    value = {"system_prompt": SYSTEM, "question": ASKED, "response": ANSWER}
    mapped = map_fields(value)
    assert mapped.shape == "system_prompt/question/response"
    assert mapped.fields["messages"] == [WHOLE[0], *TWO_ROUNDS[:2]]
    assert verdicts(data, value) == ["accepted"]


@pytest.mark.parametrize(
    ("turns", "expected", "dropped"),
    [
        pytest.param([*TWO_ROUNDS, {"role": "user", "content": "Thanks!"}], TWO_ROUNDS, 1, id="no answer to the last"),
        pytest.param([{"role": "assistant", "content": "Hello!"}, *TWO_ROUNDS], TWO_ROUNDS, 1, id="an answer first"),
        pytest.param([*TWO_ROUNDS[:2], {"role": "user", "content": " "}, *TWO_ROUNDS[2:]], TWO_ROUNDS, 1, id="blank"),
        pytest.param([*TWO_ROUNDS[:2], None, 7, *TWO_ROUNDS[2:]], TWO_ROUNDS, 2, id="no turns at all"),
        pytest.param([*TWO_ROUNDS, {"role": "system", "content": SYSTEM}], TWO_ROUNDS, 1, id="a late system prompt"),
        pytest.param(
            [{"role": "user", "content": [{"type": "text", "text": ASKED}]}, *TWO_ROUNDS[1:]], TWO_ROUNDS, 0, id="parts",
        ),
    ],
)  # fmt: skip
def test_turns_that_cannot_be_shown_are_dropped_and_counted(
    turns: list[Any], expected: list[Any], dropped: int
) -> None:
    mapped = map_fields({"messages": turns})
    assert (mapped.fields["messages"], mapped.dropped_turns) == (expected, dropped)


def test_neighbours_of_one_role_are_joined() -> None:
    turns = [TWO_ROUNDS[0], {"role": "user", "content": "Please."}, *TWO_ROUNDS[1:]]
    assert map_fields({"messages": turns}).fields["messages"][0]["content"] == f"{ASKED}\n\nPlease."


@pytest.mark.parametrize(
    "value",
    [
        {"messages": []},
        {"messages": "hello"},
        {"messages": [{"role": "user", "content": ASKED}]},
        {"conversations": [{"from": "gpt", "value": ANSWER}]},
        {"title": "Stoner", "text": ANSWER},
        {},
    ],
)
def test_what_has_no_question_and_answer_says_what_it_has(data: DataRoot, value: dict[str, Any]) -> None:
    assert map_fields(value).problem
    assert verdicts(data, value) == ["schema"]


def test_the_same_conversation_in_two_shapes_is_one(data: DataRoot) -> None:
    outcomes = verdicts(data, {"messages": WHOLE}, {"conversations": sharegpt(WHOLE)})
    assert sorted(outcomes) == ["accepted", "exact_duplicate"]
    outcomes = verdicts(data, PLAIN, {"messages": TWO_ROUNDS[:2]}, {"question": ASKED, "answer": ANSWER})
    assert sorted(outcomes) == ["accepted", "exact_duplicate", "exact_duplicate"]


def test_shapes_and_dropped_turns_are_stated_per_source(data: DataRoot) -> None:
    records = [
        RawRecord("mine.jsonl", {"messages": [*WHOLE, {"role": "user", "content": "Thanks!"}]}),
        RawRecord("mine.jsonl", {"question": "What is the shortest of all?", "answer": "The one with 40 pages."}),
        RawRecord("mine.jsonl", {"title": "nothing"}),
    ]
    result = clean(data, stories(30) + records, SETTINGS)
    assert result.shapes["mine.jsonl"] == {"messages": 1, "question/answer": 1, "unknown": 1}
    assert result.dropped_turns == {"mine.jsonl": 1}
    (line,) = [line for line in lines(result) if "mine.jsonl" in line]
    assert line == 'fields of "mine.jsonl": 1 as messages, 1 as question/answer, 1 as unknown; 1 turns dropped'
    (row,) = [row for row in examples(result) if row["messages"]]
    assert json.loads(row["messages"]) == WHOLE
