"""Other people's files, kind by kind: accepted records, rejected ones with their reasons, and the
messages about both."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import clean_quality
from pipelines.clean.clean import CleaningResult, clean, examples, rejects
from pipelines.cli import main
from pipelines.lake.paths import DataRoot
from pipelines.records.reading import RawRecord
from pipelines.records.shapes.mapping import map_fields
from pipelines.settings.cleaning import Cleaning
from tests.project import TinyProject
from tests.sft_records import SETTINGS, prose, stories, verdicts, words

HERON = "What does a heron eat in winter?"
FISH = "Mostly fish, where the water is open, and mice from the fields when it is not."
OTTER = "And an otter?"
CRABS = "Fish as well, and crabs wherever a river meets the sea."
LONG_PROMPT = prose(1100, seed=21)


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot(tmp_path)


def exchange(question: str, answer: str, given: str = "") -> dict[str, str]:
    return {"instruction": question, "input": given, "output": answer}


def cleaned(data: DataRoot, *values: Any, settings: Cleaning = SETTINGS, source: str = "mine") -> CleaningResult:
    """The values as one source, among thirty good records of another."""
    return clean(data, [*stories(30), *(RawRecord(source, value) for value in values)], settings)


def accepted_rows(result: CleaningResult, source: str = "mine") -> list[dict[str, Any]]:
    return [row for row in examples(result) if row["source"] == source]


# --- faults of an answer, in any wording


@pytest.mark.parametrize(
    ("reason", "value"),
    [
        ("prompt_echo", exchange("Describe the nest of a heron in winter.", "The heron's winter nest.")),
        ("prompt_echo", exchange("Name three birds that dive for their food.", "Three birds that dive for their food.")),
        ("prompt_echo", exchange("Tell me about the call of the heron.", "The call of the heron.")),
        ("prompt_echo", exchange("왜 왜가리는 서서 자나요?", "왜가리는 왜 서서 자나요?")),
        ("prompt_echo", exchange("물가에 사는 새 세 가지를 소개해 주세요.", "네, 물가에 사는 새 세 가지를 소개해 드리겠습니다.")),
        ("prompt_echo", exchange("Find a synonym.", "shallow", "shallow")),
        ("prompt_echo", exchange("Give this note a title.", f"{FISH} {CRABS}", f"{FISH} {CRABS}")),
        ("refusal", exchange("Write a song about my neighbour's weight.", "I'm sorry, but I can't write songs that mock a body.")),
        ("refusal", exchange("Tell me a tale.", "This response could not be generated, as it may violate our content policy.")),
        ("refusal", exchange("왜가리 흉내를 내 봐.", "그 부분은 제가 아직 배우지 못했어요. 다른 걸 물어봐 주세요.")),
        ("placeholder", exchange("Invite the club to the pond.", "Meet at <time> by the pond; [the route goes here].")),
        ("placeholder", exchange("인사말을 써 줘.", "[계절]의 바람이 부는 __월 __일, 물가에서 만나요.")),
        ("personal_data", exchange("Where do I send it?", "To hkr.otterby71 [at] outlook [dot] com, please.")),
        ("personal_data", exchange("Who has the key?", "Call the warden on +91 98417 30652.")),
        ("personal_data", exchange("제 주민등록번호는 820317-2046814예요. 무슨 뜻인가요?", "뒤의 첫 자리는 성별입니다.")),
        ("wrong_language", exchange("How many legs has a spider?", "La araña tiene ocho patas.")),
        ("wrong_language", exchange("태국 여행에서 볼 만한 새를 알려 줘.", "นกกระสาและนกยางอยู่ตามทุ่งนา ตื่นแต่เช้าแล้วจะได้เห็น")),
        ("repetition", exchange("Three causes?", "".join(f"**{i}**\nThe water is too cold for what they eat.\n" for i in "ABCD"))),
        ("repetition", exchange("The root of 2?", "1.41421 " * 14)),
        ("encoding", exchange("What is in it?", "-Â 200 g flour\n-Â two eggs")),
        ("refusal", exchange("Write a note to my heron.", "I'm not comfortable writing a personal note on your behalf.")),
        ("placeholder", exchange("Do otters help a pond?", "They do [citation needed: insert study here], as most agree.")),
        ("not_text", exchange("I'm uploading a photo of my pond. Is it too warm?", "The water in it looks green, so yes.")),
        ("not_text", exchange("첨부한 녹음을 듣고 무슨 새인지 알려 줘.", "두 번 길게 우는 것으로 보아 왜가리입니다.")),
        ("tool_calls", exchange("How deep is the pond?", "<search>depth of the pond</search>\n<result>3 m</result>\n\n3 m.")),
        ("tool_calls", exchange("Text the warden.", 'Action: send_text\n{"to": "warden"}\nTool output: sent\nDone.')),
        ("tool_calls", exchange("Open the sluice.", '{"tool_calls": [{"name": "sluice", "arguments": {"open": true}}]}')),
    ],
)  # fmt: skip
def test_bad_answers_are_found_in_other_words(data: DataRoot, reason: str, value: dict[str, Any]) -> None:
    assert verdicts(data, value) == [reason]


@pytest.mark.parametrize(
    "value",
    [
        exchange("한글 문서에서 사진을 넣으려면?", "[삽입] > [사진]을 누르고, [날짜] 탭에서 날짜를 고릅니다."),
        exchange("A note to any of our members, with gaps I can reuse.", "Dear [Name], the pond opens on [Date]."),
        {"input": "In other words: the pond is full.", "target": "There is no room left in the pond."},
        exchange("What is the capital of New Zealand?", "The capital of New Zealand is Wellington."),
        exchange("Is a heron larger than an egret?", "A heron is larger than an egret."),
        exchange("Convert the line to title case.", "A Heron in the Reeds", "a heron in the reeds"),
        exchange("Write this in other words, if needed.", "The heron waits for a fish.", "The heron waits for a fish."),
        exchange("Which colour is best?", "As a program I don't have a favourite, but blue is what most people name in surveys."),
        exchange(
            "Can you book me a boat?",
            "I can't book it myself, but here is how to: call the harbour and say how many you are.",
        ),
        exchange("한국어로 번역하세요.", "[이름]님, [날짜]에 만나요.", "Dear [name], see you on [date]."),
        exchange("'같이'는 어떻게 읽어?", "[가치]로 읽습니다."),
        exchange("Correct it: Je suis allé à le lac avec mes amis.", "Je suis allé au lac avec mes amis."),
        exchange("List five towns with odd letters.", "Tromsø, Ålesund, Ærøskøbing, Þingvellir, Skellefteå"),
        exchange("How do you count to three in Japanese?", "一 (ichi), 二 (ni), 三 (san)"),
        exchange("Write 'I will not shout at the heron' twice.", "I will not shout at the heron.\nI will not shout at the heron."),
        exchange("Give an example of a function call as JSON.", '{"name": "add", "arguments": {"a": 1, "b": 2}}'),
    ],
)  # fmt: skip
def test_good_answers_that_look_bad_are_kept(data: DataRoot, value: dict[str, Any]) -> None:
    assert verdicts(data, value) == ["accepted"]


# --- code, short answers, templates, translations


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(exchange("How many bits has a nibble?", "4"), id="one digit"),
        pytest.param(exchange("In which order does ORDER BY x DESC sort?", "Descending."), id="one word"),
        pytest.param(
            exchange("A regex for lines that begin with cat and end with mouse", "/^cat.*mouse$/"), id="a pattern"
        ),
        pytest.param(
            exchange(
                "Make a table of three rows in HTML", "<table>\n" + "  <tr><td>1</td><td>2</td></tr>\n" * 6 + "</table>"
            ),
            id="rows of HTML",
        ),
        pytest.param(
            exchange(
                "Write merge sort in Python",
                "def sort(xs):\n    if len(xs) < 2:\n        return xs\n    mid = len(xs) // 2\n    left, right = sort(xs[:mid]), "
                "sort(xs[mid:])\n    out = []\n    while left and right:\n        if left[0] < right[0]:\n            "
                "out.append(left.pop(0))\n        else:\n            out.append(right.pop(0))\n    return out + left + right\n",
            ),
            id="a loop in code",
        ),
        pytest.param(
            exchange("Print today's name", "const names = ['Sun', 'Mon'];\nconsole.log(names[date.getDay()]);"),
            id="an index",
        ),
        pytest.param(exchange("How many words?", "5", "Lorem ipsum dolor sit amet"), id="lorem ipsum in an input"),
        pytest.param(exchange("Whom does the sample mail go to?", "It goes to reader@example.com."), id="example.com"),
        pytest.param(
            exchange("Match an e-mail address in JavaScript", r"/^[\w.+-]+@[\w-]+\.[a-z]{2,}$/.test('me@host.org')"),
            id="a pattern for addresses",
        ),
        pytest.param(
            exchange(
                "Write a bot that refuses", "def reply(text):\n    return 'I am an AI and cannot help with that.'\n"
            ),
            id="a refusal in code",
        ),
        pytest.param(exchange("Is this a question or a statement? You left.", "Statement."), id="a class"),
        pytest.param(exchange("Which search engine's address is shortest?", "x.com"), id="an address"),
        pytest.param(
            exchange(
                "Think of an excuse for missing the rehearsal", "I'm sorry, but I can't come tonight, my train is late."
            ),
            id="an excuse asked for",
        ),
        pytest.param(
            exchange("Give me a template for a thank-you note", "Dear [Name],\nthank you for the [gift].\n[Your Name]"),
            id="a template asked for",
        ),
        pytest.param(
            exchange("Translate into French: The heron waits.", "Le héron attend au bord de la rivière."),
            id="a translation",
        ),
        pytest.param(exchange("'왜가리'를 일본어로 뭐라고 해?", "アオサギ（蒼鷺）です。"), id="a word of Japanese"),
        pytest.param(exchange("What is 256620 + 1646615806005?", "1646616062625"), id="a sum"),
        pytest.param({**exchange(HERON, FISH), "input": None}, id="input null"),
        pytest.param({**exchange(HERON, FISH), "input": "<noinput>"}, id="Alpaca's word for no input"),
    ],
)
def test_good_records_that_look_odd_are_kept(data: DataRoot, value: dict[str, Any]) -> None:
    assert verdicts(data, value) == ["accepted"]


@pytest.mark.parametrize(
    "value",
    [
        exchange("说出三种水鸟。", "苍鹭、白鹭和野鸭，它们都住在水边。"),
        exchange("解释下面的句子。", "句子 “The heron waits” 的意思是苍鹭在等待。", "The heron waits."),
        exchange("推荐一些笔记本电脑。", "ThinkPad（商务）、MacBook Air（轻薄）、Dell XPS（高端）。"),
        exchange("你好", "你好！"),
        exchange("解方程 2x = 6。", "两边除以 2，得 x = 3。"),
        exchange("用 Python 打印一行。", "```python\nprint('ok')\n```"),
    ],
)
def test_chinese_is_no_english_whatever_stands_in_it(data: DataRoot, value: dict[str, str]) -> None:
    assert verdicts(data, value) == ["wrong_language"]


def test_other_languages_may_be_wanted(data: DataRoot) -> None:
    chinese = exchange("说出三种水鸟。", "苍鹭、白鹭和野鸭，它们都住在水边。")
    assert verdicts(data, chinese, settings=Cleaning(languages=["ko", "en", "zh"])) == ["accepted"]
    assert verdicts(data, chinese, settings=Cleaning(languages=None)) == ["accepted"]


# --- preferences and labels

USER, BOT = {"role": "user", "content": HERON}, {"role": "assistant", "content": FISH}
BAD = {"role": "assistant", "content": "Go away."}
PREFERENCES = [
    pytest.param({"prompt": HERON, "chosen": FISH, "rejected": "Go away."}, id="texts"),
    pytest.param({"prompt": [USER], "chosen": [BOT], "rejected": [BAD]}, id="messages"),
    pytest.param({"chosen": [USER, BOT], "rejected": [USER, BAD]}, id="whole conversations"),
    pytest.param({"prompt": HERON, "chosen": [USER, BOT], "rejected": [USER, BAD]}, id="with the prompt beside"),
    pytest.param({"instruction": HERON, "input": "", "chosen": FISH, "rejected": "No."}, id="an instruction"),
    pytest.param(
        {
            "conversations": [{"from": "human", "value": HERON}],
            "chosen": {"from": "gpt", "value": FISH},
            "rejected": {"from": "gpt", "value": "No."},
        },
        id="ShareGPT",
    ),
    pytest.param(
        {"chosen": f"\n\nHuman: {HERON}\n\nAssistant: {FISH}", "rejected": f"\n\nHuman: {HERON}\n\nAssistant: No."},
        id="one text",
    ),
]


@pytest.mark.parametrize("value", PREFERENCES)
def test_of_a_preference_pair_the_chosen_answer_is_learned(data: DataRoot, value: dict[str, Any]) -> None:
    result = cleaned(data, value)
    (row,) = accepted_rows(result)
    assert (row["instruction"], row["output"], row["messages"]) == (HERON, FISH, None)
    assert result.notes["mine"] == {"rejected answers": 1}


def test_the_last_question_of_a_preference_pair_is_not_cut_off(data: DataRoot) -> None:
    turns = [{"from": "human", "value": HERON}, {"from": "gpt", "value": FISH}, {"from": "human", "value": OTTER}]
    (row,) = accepted_rows(
        cleaned(data, {"conversations": turns, "chosen": {"from": "gpt", "value": CRABS}, "rejected": "No."})
    )
    assert [turn["content"] for turn in json.loads(row["messages"])] == [HERON, FISH, OTTER, CRABS]


@pytest.mark.parametrize("bad", [False, "false", "False", "undesirable"])
def test_an_answer_labelled_bad_is_not_learned(data: DataRoot, bad: Any) -> None:
    values = [{"messages": [USER, BOT], "label": bad}, {"prompt": OTTER, "completion": CRABS, "label": True}]
    assert verdicts(data, *values, {**exchange("And a newt?", "Worms, I think."), "kto_tag": bad}) == [
        "labelled_undesirable", "accepted", "labelled_undesirable",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "review",
    [
        {"reaction": "👎"},
        {"vote": -1},
        {"quality": "bad"},
        {"annotation": {"label": "rejected"}},
        {"metadata": {"is_correct": False}},
        {"user_feedback": "negative"},
        {"feedback": {"rating": "thumbsDown", "tags": []}},
        {"is_helpful": False},
        {"desirable": 0},
        {"thumbs_up": False},
        {"chosen": False},
        {"preference": "rejected"},
        {"satisfaction": "DSAT"},
        {"평가": "싫어요"},
    ],
)
def test_a_reviewer_may_say_so_under_other_names(data: DataRoot, review: dict[str, Any]) -> None:
    # A loan classifier's label, and a count of helpful votes.
    good = {"label": "rejected", "metadata": {"is_correct": True}, "helpful": 0, "chosen": True, "feedback": "thanks!"}
    assert verdicts(data, {**exchange(HERON, FISH), **review}, {**exchange(OTTER, CRABS), **good}) == [
        "labelled_undesirable",
        "accepted",
    ]


def test_a_turn_may_say_so_of_itself(data: DataRoot) -> None:
    turns = [USER, BOT, {"role": "user", "content": OTTER}, {"role": "assistant", "content": CRABS}]
    # A rating of -1 may mean that nobody rated the answer.
    good = [
        *turns[:3],
        {**turns[3], "rating": -1, "annotation": {"rating": 5}},
    ]
    bad = [turns[0], {**BOT, "annotation": {"thumbs": "down"}}, *turns[2:]]
    # The rating belongs to the question, which is not learned.
    asker = [{**USER, "feedback": -1}, BOT]
    assert verdicts(data, {"messages": good}, {"messages": bad}, {"messages": asker}) == [
        "accepted", "labelled_undesirable", "accepted",
    ]  # fmt: skip


def test_a_zero_is_bad_only_in_a_file_whose_labels_are_zero_and_one(data: DataRoot) -> None:
    questions = ["What is a heron?", "Where do newts sleep?", "Why do otters dive?"]
    values = [{"prompt": q, "completion": f"{q} {FISH[i * 9 :]} {i}"} for i, q in enumerate(questions)]
    binary = cleaned(data, {**values[0], "label": 0}, {**values[1], "label": 1})
    topics = cleaned(data, *({**value, "label": i} for i, value in enumerate(values)))
    assert binary.reasons == {"labelled_undesirable": 1}
    assert topics.reasons == {}


# --- tools

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "pond"}'}}
OPENAI_TOOLS = [
    {"role": "user", "content": "How many herons are there?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "3"},
    {"role": "assistant", "content": "I have counted three."},
]
SHAREGPT_TOOLS = [
    {"from": "human", "value": "How many herons are there?"},
    {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "pond"}}'},
    {"from": "observation", "value": "3"},
    {"from": "gpt", "value": "I have counted three."},
]
TOOL = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
TEXTS_WITH_CALLS = [
    '<tool_call>\n{"name": "look"}\n</tool_call>',
    '<functioncall> {"name": "look"}',
    '[TOOL_CALLS] [{"name": "look"}]',
    "Thought: look\nAction: look\nAction Input: pond",
    '{"name": "look", "arguments": {"at": "pond"}}',
    '[look(at="pond")]',
    '<function_calls>\n<invoke name="look">',
]


@pytest.mark.parametrize(
    "value",
    [
        {"messages": OPENAI_TOOLS},
        {"conversations": SHAREGPT_TOOLS},
        {
            "messages": [
                OPENAI_TOOLS[0],
                {"role": "assistant", "content": [{"type": "tool_use", "name": "look", "input": {}}]},
            ]
        },
        {
            "chat": 'USER: Look.\n\n\nASSISTANT: <functioncall> {"name": "look"}\n\n\nFUNCTION RESPONSE: 3\n\n\nASSISTANT: Three.'
        },
        {"query": "Look.", "tools": "[]", "answers": '[{"name": "look", "arguments": {}}]'},
        *({"instruction": "How many herons?", "output": text} for text in TEXTS_WITH_CALLS),
    ],
)
def test_a_record_with_calls_is_rejected_whole(data: DataRoot, value: dict[str, Any]) -> None:
    assert verdicts(data, value) == ["tool_calls"]


def test_tools_that_nobody_calls_do_not_matter(data: DataRoot) -> None:
    result = cleaned(data, {"messages": [USER, BOT], "tools": [TOOL]})
    assert len(accepted_rows(result)) == 1 and result.notes["mine"] == {"field tools": 1}


@pytest.mark.parametrize(
    ("value", "declared"),
    [
        ({"messages": OPENAI_TOOLS, "tools": [{"type": "function", "function": TOOL}]}, "objects"),
        ({"conversations": SHAREGPT_TOOLS, "tools": json.dumps([TOOL])}, "a text"),
    ],
)
def test_kept_calls_have_one_form(data: DataRoot, value: dict[str, Any], declared: str) -> None:
    (row,) = accepted_rows(cleaned(data, value, settings=Cleaning(tool_calls="keep")))
    asks, calls, result, answers = json.loads(row["messages"])
    called = calls["tool_calls"][0]
    assert called["function"] == {"name": "look", "arguments": {"at": "pond"}}, declared
    assert (calls["role"], calls["content"], result["role"], result["content"]) == ("assistant", "", "tool", "3")
    assert (asks["content"], answers["content"]) == (OPENAI_TOOLS[0]["content"], "I have counted three.")
    assert json.loads(row["tools"]) == [{"type": "function", "function": TOOL}]


# --- parts, pictures, history, weights, reasoning


@pytest.mark.parametrize("name", ["text", "value"])
def test_content_in_parts_is_text(data: DataRoot, name: str) -> None:
    turns = [{"role": turn["role"], "content": [{"type": "text", name: turn["content"]}]} for turn in (USER, BOT)]
    (row,) = accepted_rows(cleaned(data, {"messages": turns}))
    assert (row["instruction"], row["output"]) == (HERON, FISH)


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [{"role": "user", "content": "<image>Who is it?"}, BOT], "images": ["a.jpg"]},
        {"messages": [{"role": "user", "content": "Who is it?"}, BOT], "images": ["a.jpg"]},
        {"conversations": [{"from": "human", "value": "<image>\nWho is it?"}, {"from": "gpt", "value": FISH}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, BOT]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, BOT]},
        {"instruction": "<video>What sport is it?", "output": "Tennis.", "videos": ["a.mp4"]},
        {"instruction": "What do you see in this picture?", "output": "A heron."},
        {"instruction": "In the figure, how long is the side marked x?", "output": "Ten."},
        {
            "instruction": "What is wrong with the circuit?",
            "input": "![photo](photo.png)",
            "output": "R2 is across the battery.",
        },
        {
            "contents": [
                {"role": "user", "parts": [{"fileData": {"fileUri": "a.mp3"}}, {"text": "Sum it up."}]},
                {"role": "model", "parts": [{"text": FISH}]},
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": "I just uploaded a painting. What style is it?"},
                {"from": "gpt", "value": FISH},
            ]
            * 2
        },
    ],
)
def test_what_needs_eyes_or_ears_is_not_text(data: DataRoot, value: dict[str, Any]) -> None:
    assert verdicts(data, value) == ["not_text"]


def test_talk_of_pictures_is_text(data: DataRoot) -> None:
    svg = exchange(
        "How do I use the <image> element in SVG?", 'Write <image href="heron.png"/> inside the svg element.'
    )
    prompt = exchange(
        "Write a prompt for an image generator: a heron at dawn.", "A heron in the mist, soft light, wide angle."
    )
    assert verdicts(data, {**svg, "images": []}, prompt) == ["accepted", "accepted"]


TRANSCRIPTS = [
    f"<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n{HERON}<|im_end|>\n<|im_start|>assistant\n{FISH}<|im_end|>\n",
    f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{HERON}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{FISH}<|eot_id|>",
    f"<bos><start_of_turn>user\n{HERON}<end_of_turn>\n<start_of_turn>model\n{FISH}<end_of_turn>\n",
    f"<s>[INST] <<SYS>>\nBe short.\n<</SYS>>\n\n{HERON} [/INST] {FISH} </s>",
    f"### Human: {HERON}### Assistant: {FISH}",
    f"Below is an instruction.\n\n### Instruction:\n{HERON}\n\n### Response:\n{FISH}",
    f"### 질문: {HERON}\n\n### 답변: {FISH}",
    f"Human: {HERON}\n\nAssistant: {FISH}",
]


@pytest.mark.parametrize("text", TRANSCRIPTS)
def test_a_dialogue_in_one_text_is_turns(data: DataRoot, text: str) -> None:
    result = cleaned(data, {"text": text})
    (row,) = accepted_rows(result)
    assert (row["instruction"], row["output"]) == (HERON, FISH)
    assert not result.notes.get("mine") or text.startswith("Below")
    assert row["messages"] is None or [turn["role"] for turn in json.loads(row["messages"])] == [
        "system",
        "user",
        "assistant",
    ]


def test_a_dialogue_in_one_text_may_have_an_input_and_more_turns(data: DataRoot) -> None:
    given = f"### Instruction:\nSum it up.\n### Input:\n{FISH}\n### Response:\nFish and mice."
    longer = f"### Human: {HERON}### Assistant: {FISH}### Human: {OTTER}### Assistant: {CRABS}"
    short, long = sorted(
        accepted_rows(cleaned(data, {"text": given}, {"text": longer})), key=lambda row: len(row["output"])
    )
    assert (short["instruction"], short["output"]) == (f"Sum it up.\n{FISH}", "Fish and mice.")
    assert [turn["content"] for turn in json.loads(long["messages"])] == [HERON, FISH, OTTER, CRABS]


@pytest.mark.parametrize(
    "value",
    [
        {"text": f"<s>Below is an instruction.\n\n### Instruction:\n{HERON}\n\n### Response:\n{FISH}</s>"},
        {"text": f"You answer questions about birds.\n\nHuman: {HERON}\n\nAssistant: {FISH}"},
        {"text": f"Birds. [INST] {HERON} [/INST] {FISH}"},
        {"chosen": f"Birds.\n\nHuman: {HERON}\n\nAssistant: {FISH}"},
    ],
)
def test_a_text_in_front_of_the_first_turn_is_counted(data: DataRoot, value: dict[str, Any]) -> None:
    result = cleaned(data, value)
    assert [(row["instruction"], row["output"]) for row in accepted_rows(result)] == [(HERON, FISH)]
    assert result.notes["mine"] == {"texts in front of the first turn": 1}


@pytest.mark.parametrize(
    "text", ["A heron stands in the reeds.", "### Notes: nothing", "[INST] ", "<|im_start|>user\nHi", ""]
)
def test_a_text_without_an_answer_is_no_dialogue(data: DataRoot, text: str) -> None:
    assert verdicts(data, {"text": text}) == ["schema"]


def test_of_several_instances_the_first_is_used_and_the_others_counted(data: DataRoot) -> None:
    value = {
        "instruction": "Sum it up.",
        "instances": [{"input": FISH, "output": "Fish."}, {"input": CRABS, "output": "Crabs."}],
    }
    result = cleaned(data, value)
    assert [(row["input"], row["output"]) for row in accepted_rows(result)] == [(FISH, "Fish.")]
    assert result.notes["mine"] == {"further instances": 1}


def test_history_and_system_are_turns(data: DataRoot) -> None:
    value = {**exchange(OTTER, CRABS), "history": [[HERON, FISH]], "system": "You know rivers."}
    (row,) = accepted_rows(cleaned(data, value))
    turns = json.loads(row["messages"])
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn["content"] for turn in turns] == ["You know rivers.", HERON, FISH, OTTER, CRABS]


@pytest.mark.parametrize("switch", [{"weight": 0}, {"loss_weight": 0.0}, {"train": False}])
def test_an_answer_switched_off_is_context(data: DataRoot, switch: dict[str, Any]) -> None:
    turns = [USER, {**BOT, **switch}, {"role": "user", "content": OTTER}, {"role": "assistant", "content": CRABS}]
    result = cleaned(data, {"messages": turns})
    (row,) = accepted_rows(result)
    assert [turn.get("train") for turn in json.loads(row["messages"])] == [None, False, None, None]
    assert result.notes["mine"] == {"answers that are context only, as the file says": 1}
    assert verdicts(data, {"messages": [USER, {**BOT, **switch}]}) == ["schema"]


THOUGHT_PARTS = [{"type": "reasoning", "value": "Herons fish."}, {"type": "text", "value": FISH}]
THOUGHTS = [
    {"instruction": HERON, "output": f"<think>\nHerons fish.\n</think>\n\n{FISH}"},
    {"messages": [USER, {**BOT, "reasoning_content": "Herons fish."}]},
    {"messages": [USER, {"role": "assistant", "content": THOUGHT_PARTS}]},
]


@pytest.mark.parametrize("value", THOUGHTS)
def test_reasoning_is_stripped_kept_or_a_reason(data: DataRoot, value: dict[str, Any]) -> None:
    stripped = cleaned(data, value)
    assert accepted_rows(stripped)[0]["output"] == FISH
    assert stripped.notes["mine"] == {"answers whose reasoning was taken off": 1}
    whole = cleaned(data, value, settings=Cleaning(reasoning="keep"))
    assert accepted_rows(whole)[0]["output"] == f"<think>\nHerons fish.\n</think>\n\n{FISH}"
    assert verdicts(data, value, settings=Cleaning(reasoning="reject")) == ["reasoning"]


def test_reasoning_that_never_ends_is_no_answer(data: DataRoot) -> None:
    endless = {"instruction": HERON, "output": "<think>\nHerons fish, or do they"}
    empty = {"instruction": OTTER, "output": f"<think>\n\n</think>\n\n{CRABS}"}
    assert verdicts(data, endless, empty) == ["empty", "accepted"]


# --- texts that many records share


def dialogue(number: int, system: str) -> dict[str, Any]:
    rng = random.Random(number)
    turns = [("system", system), ("user", words(rng, 8)), ("assistant", words(rng, 16))]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


@pytest.mark.parametrize("count", [3, 40])
def test_dialogues_under_one_system_prompt_are_not_alike(data: DataRoot, count: int) -> None:
    result = cleaned(data, *(dialogue(i, LONG_PROMPT) for i in range(count)))
    assert len(accepted_rows(result)) == count


@pytest.mark.parametrize("templates", [1, 3])
def test_records_in_one_mould_are_not_alike(data: DataRoot, templates: int) -> None:
    heads = [prose(500, seed=40 + i) for i in range(templates)]
    values = [
        exchange(heads[i % templates], f"It is about {words(random.Random(900 + i), 6)}.", words(random.Random(i), 9))
        for i in range(90)
    ]
    assert len(accepted_rows(cleaned(data, *values))) == 90


def test_copies_in_a_mould_still_go(data: DataRoot) -> None:
    head = prose(500, seed=40)
    values = [exchange(head, words(random.Random(900 + i), 30), words(random.Random(i), 30)) for i in range(60)]
    copies = [{**value, "output": value["output"] + " indeed"} for value in values[:20]]
    result = cleaned(data, *values, *copies)
    assert len(accepted_rows(result)) == 60
    assert set(result.reasons) <= {"near_duplicate", "contamination"}


def test_copies_of_a_common_record_still_go(data: DataRoot) -> None:
    common = exchange(words(random.Random(1), 12), words(random.Random(2), 40))
    copies = [{**common, "output": f"{common['output']} {word}"} for word in words(random.Random(3), 300).split()[:60]]
    others = [exchange(words(random.Random(100 + i), 9), words(random.Random(500 + i), 20)) for i in range(60)]
    result = cleaned(data, *copies, *others)
    assert len([row for row in accepted_rows(result) if row["instruction"] == common["instruction"]]) == 1
    assert len(accepted_rows(result)) == 61


def test_many_alike_are_warned_of_and_shown(data: DataRoot) -> None:
    record = exchange(words(random.Random(1), 12), words(random.Random(2), 40))
    values = [{**record, "output": f"{record['output']}{'!' * i}"} for i in range(8)]
    others = [exchange(words(random.Random(100 + i), 9), words(random.Random(500 + i), 20)) for i in range(20)]
    (warning,) = cleaned(data, *values, *others).warnings
    assert '"mine": 7 of 28 records (25%) are near-duplicates; the largest cluster has 8:' in warning
    assert warning.count("dropped  ") == 2 and record["instruction"][:30] in warning


def test_dialogues_that_begin_alike_do_not_give_questions_away(data: DataRoot) -> None:
    hello = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, what is it?"}]

    def goes_on(question: str, answer: str) -> dict[str, Any]:
        return {"messages": [*hello, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    held_out = RawRecord("held out", goes_on(HERON, FISH), side="eval")
    trains = RawRecord("mine", goes_on(OTTER, CRABS), side="train")
    leaks = RawRecord("leaks", goes_on(HERON, "Fish."), side="train")
    result = clean(data, [*stories(30), held_out, trains, leaks], SETTINGS)
    assert [(row["source"], row["reason"]) for row in rejects(result)] == [("leaks", "contamination")]


# --- a failure explains itself


def saved(folder: Path, name: str, values: list[Any]) -> str:
    path = folder / name
    path.write_text("\n".join(json.dumps(value, ensure_ascii=False) for value in values), encoding="utf-8")
    return str(path)


def test_where_nothing_is_left_the_message_shows_why(
    project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [{"frage": f"Was ist {i}?", "antwort": "Eine Zahl."} for i in range(5)] + [{"messages": OPENAI_TOOLS}]
    assert main(["clean", "--input", saved(tmp_path, "mine.jsonl", values)]) == 1
    errors = capsys.readouterr().err
    assert "kept 0 train and 0 eval of 6 records" in errors
    assert '"mine.jsonl": 0 of 6 accepted; its first record has the fields frage (text), antwort (text)' in errors
    assert (
        '5 × schema (no question and answer in a known shape), such as {"antwort": "Eine Zahl.", "frage": "Was ist 0?"}'
        in errors
    )
    assert "its fields are frage, antwort; expected instruction, input, output" in errors
    assert "1 × tool_calls" in errors and "turn 2 calls look" in errors and "{tool_calls: keep}" in errors
    assert "--columns instruction=…,output=…" in errors
    assert (project.data.clean / "failed" / "rejects.parquet").exists()


def test_columns_are_named_on_the_command_line_and_in_sources(
    project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [
        {"질문": words(random.Random(i), 9), "답변": words(random.Random(900 + i), 20), "label": 0}
        for i in range(1, 40)
    ]
    path = saved(tmp_path, "mine.jsonl", values)
    assert main(["clean", "--input", path, "--columns", "instruction=질문,output=답변"]) == 0
    output = capsys.readouterr().out
    assert "39 records read = 39 accepted + 0 rejected" in output and "not used or changed: 39 × field label" in output
    project.change(sources={"files": [{"path": path, "columns": {"instruction": "질문", "output": "답변"}}]})
    assert main(["clean"]) == 0
    assert main(["clean", "--input", path, "--columns", "instruction=nothing,output=답변"]) == 1
    assert "has no field 'nothing' (columns.instruction); its fields are 질문, 답변, label" in capsys.readouterr().err


@pytest.mark.parametrize("columns", ["instruction", "instruction=", "nonsense=a,output=b", "output=a"])
def test_wrong_columns_are_bad_usage(
    project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    path = saved(tmp_path, "mine.jsonl", [exchange(HERON, FISH)])
    try:
        code = main(["clean", "--input", path, "--columns", columns])
    except SystemExit as ended:
        code = ended.code
    assert code == 2 and "Traceback" not in capsys.readouterr().err


def test_every_reason_comes_with_three_examples(
    project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [exchange(words(random.Random(i), 9), words(random.Random(900 + i), 20)) for i in range(1, 40)]
    bad = [exchange(f"Question {i}?", " ") for i in range(5)] + [{"a": "\x1b[31m"}]
    assert main(["clean", "--input", saved(tmp_path, "mine.jsonl", good + bad)]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith("empty"))
    assert lines[at].split() == ["5", "empty"]
    assert all(line.startswith("          the answer is blank | ") for line in lines[at + 1 : at + 4])
    assert not any("\x1b" in line for line in lines)
    assert any("FROM '" in line and "rejects.parquet" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.jsonl", json.dumps([exchange(HERON, FISH)]), "line 1 holds a list, not a record: name the file .json"),
        ("pretty.jsonl", json.dumps(exchange(HERON, FISH), indent=1), "a .jsonl file holds one whole record a line"),
        (
            "rows.csv",
            f"instruction,output\nWhy?,{FISH} Yes, no, and why\n",
            "cells, the header has 2; quote cells that hold commas",
        ),
        ("twice.csv", "instruction,output,output\na,b,c\n", "the column 'output' stands twice"),
    ],
)
def test_a_file_in_another_form_says_which(
    project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert main(["clean", "--input", str(tmp_path / name)]) in (1, 2)
    assert message in capsys.readouterr().err


# --- personal data taken out


def test_personal_data_may_be_taken_out(data: DataRoot) -> None:
    value = exchange("Whom do I ask?", "Ask kim84@bookshop.co.kr or call 010-3947-5018 after six.")
    talk = {
        "messages": [USER, BOT, {"role": "user", "content": OTTER}, {"role": "assistant", "content": value["output"]}]
    }
    result = cleaned(data, value, talk, settings=Cleaning(on_personal_data="redact"))
    instead = "Ask user@example.com or call 000-0000-0000 after six."
    assert sorted(row["output"] for row in accepted_rows(result)) == [instead, instead]
    assert all("bookshop" not in str(row) for row in accepted_rows(result))
    (conversation,) = [json.loads(row["messages"]) for row in accepted_rows(result) if row["messages"]]
    assert conversation[-1]["content"] == instead and conversation[0]["content"] == HERON


# --- hostile records

KEYS = (
    "instruction", "input", "output", "messages", "conversations", "chosen", "rejected", "prompt", "completion", "label",
    "history", "system", "tools", "images", "role", "content", "value", "from", "type", "text", "tool_calls", "function_call",
    "weight", "parts", "data", "chat", "query", "answers", "reasoning_content", "kto_tag", "context",
)  # fmt: skip
LEAVES = (
    "x", "", None, 1, 0, False, True, 3.5, float("nan"), "<think>", "[]", "{}", "[1]", '{"name": "a"}', "user", "assistant",
    "function_call", "tool", "system", "\n\nHuman: a\n\nAssistant: b", "\ud800", "\0",
)  # fmt: skip


def nonsense(rng: random.Random, depth: int) -> Any:
    drawn = rng.random()
    if depth <= 0 or drawn < 0.35:
        return rng.choice(LEAVES)
    if drawn < 0.65:
        return [nonsense(rng, depth - 1) for _ in range(rng.randint(0, 4))]
    return {rng.choice(KEYS): nonsense(rng, depth - 1) for _ in range(rng.randint(0, 6))}


@pytest.mark.parametrize(
    "settings", [SETTINGS, Cleaning(tool_calls="keep", reasoning="keep", on_personal_data="redact")]
)
def test_nonsense_under_known_names_costs_itself_only(data: DataRoot, settings: Cleaning) -> None:
    rng = random.Random(12)
    values = [{rng.choice(KEYS): nonsense(rng, 4) for _ in range(rng.randint(0, 7))} for _ in range(6000)]
    result = cleaned(data, *values, settings=settings)
    assert result.accepted + result.rejected == result.read == 6030
    assert all(row["detail"] for row in rejects(result))


def test_variables_that_nobody_filled_in_are_said(data: DataRoot) -> None:
    result = cleaned(data, exchange("Who are you?", "I am {{name}}, and I know birds."))
    assert list(result.notes["mine"]) == ["answers with a variable such as {{name}}, to be filled in before training"]


# --- the fast way, and the labelled set


@pytest.mark.parametrize(
    "value",
    [
        exchange(HERON, FISH),
        {**exchange(HERON, FISH), "id": 7, "topic": "birds/water", "language": "en"},
        {**exchange(HERON, FISH), "image": "a.png"},
        {**exchange(HERON, FISH), "img_path": "a.png"},
        {**exchange(HERON, FISH), "rating": "thumbs down"},
        exchange(HERON, f"<think>\nIt fishes.\n</think>\n{FISH}"),
        exchange(HERON, f"It fishes.\n</think>\n{FISH}"),
        exchange("<image>\nWhat is it?", "A heron."),
        exchange("[IMG]What is it?", "A heron."),
        exchange("What is in this picture?", "A heron."),
        exchange("Describe it.", "A heron.", "birds/heron.jpg"),
        exchange(HERON, FISH, "<noinput>"),
        *(exchange(HERON, text) for text in TEXTS_WITH_CALLS),
        {"instruction": HERON, "output": FISH},
    ],
)
def test_the_short_way_says_what_the_long_one_does(value: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    short = map_fields(value)
    monkeypatch.setattr("pipelines.records.shapes.mapping.plain_pair", lambda _: None)
    long = map_fields(value)
    assert short._replace(plain=False) == long._replace(plain=False)


def test_the_labelled_records_are_judged_as_by_hand() -> None:
    judged = clean_quality.judge(clean_quality.labelled())
    assert len(judged) >= 600
    for rule in clean_quality.SCORED:
        quality = clean_quality.scores(judged, rule)
        wrong = [each.record["id"] for each in clean_quality.by_rule(judged).get(rule, [])]
        assert quality["positives"] >= 40, rule
        assert quality["precision"] >= 0.95 and quality["recall"] >= 0.95, (quality, wrong)
    assert clean_quality.good_dropped(judged)["dropped_share"] <= 0.005
