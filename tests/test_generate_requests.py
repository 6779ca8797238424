"""Requests: prompts of the grid or of a user's file, in any domain, equal for every provider; and
refused settings."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.errors import UsageError
from pipelines.generate.answers import Usage
from pipelines.generate.generate import generated_records
from pipelines.generate.journal import Request
from pipelines.generate.prices import OVERHEAD_TOKENS, batch_share, costs_of, worst_cost, worst_usage
from pipelines.generate.requests import request_source
from pipelines.settings.providers import Provider
from tests.asking import Asking, asking, ready
from tests.fakes.behavior import Behavior, Fault
from tests.fakes.llm_server import Reply, chat_server, completion
from tests.fakes.provider import FakeProvider


@pytest.fixture
def ask(quick_path: Path, running: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> Asking:
    return asking(quick_path, ready(running, monkeypatch, Behavior()))


def requests_of(ask: Asking, name: str) -> list[Request]:
    with request_source(ask.data, ask.experiments) as reading:
        return reading.requests(name)


# --- the same cells for everybody


def test_every_provider_is_asked_the_same_cells_and_fewer_are_the_first_of_more(ask: Asking) -> None:
    ask.configure(providers={"gpt": {"requests": 3}})
    claude, gpt = requests_of(ask, "claude"), requests_of(ask, "gpt")
    assert [request.cell for request in gpt] == [request.cell for request in claude[:3]]
    assert not {request.key for request in gpt} & {request.key for request in claude}
    assert all(request.language == "en" for request in claude)


def test_replicates_ask_every_cell_more_than_once(ask: Asking) -> None:
    ask.configure(generation={"requests": 3, "replicates": 2})
    requests = requests_of(ask, "claude")
    assert len({request.key for request in requests}) == 6
    assert len({request.messages[-1]["content"] for request in requests}) == 3


def test_more_topics_than_the_grid_has_are_an_error_that_says_how_many_there_are(ask: Asking) -> None:
    ask.configure(generation={"requests": 49})
    with pytest.raises(UsageError, match=r"49 topics wanted for claude, the grid has 48: add values"):
        requests_of(ask, "claude")


# --- another domain needs no code


SUPPORT: dict[str, Any] = {
    "axes": {"product": ["kettle", "lamp", "radio"], "problem": ["is broken", "came late"]},
    "languages": {},
    "topic": ["product"],
    "prompt": "A customer's {product} {problem}.",
    "system": "You write support dialogues.",
    "schema": {
        "type": "object",
        "properties": {
            "question": {"type": "string"},
            "answer": {"type": "string"},
            "tone": {"enum": ["calm", "warm"]},
        },
        "required": ["question", "answer", "tone"],
        "additionalProperties": False,
    },
    "record": {"instruction": "{question}", "input": "Tone: {tone}", "output": "{answer}"},
}


def test_a_schema_of_ones_own_becomes_records_by_the_record_mapping(ask: Asking) -> None:
    ask.grid(**SUPPORT)
    assert ask.generate().complete
    for record in generated_records(ask.data, ask.experiments):
        assert record.problem is None
        assert set(record.value) == {"instruction", "input", "output"}
        assert record.value["input"] in ("Tone: calm", "Tone: warm")
        assert record.topic in ("kettle", "lamp", "radio")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"record": {"output": "{anwser}"}},
            "record.output: 'anwser' is not a field; expected one of answer, question",
        ),
        ({"record": {"outptu": "{answer}"}}, "record.outptu"),
        ({"schema": {"type": "objekt"}}, "schema: not a JSON schema: 'objekt'"),
    ],
)
def test_a_wrong_schema_or_mapping_is_named(ask: Asking, changes: dict[str, Any], message: str) -> None:
    ask.grid(**{**SUPPORT, **changes})
    with pytest.raises(UsageError) as raised:
        requests_of(ask, "claude")
    assert message in str(raised.value)


def test_what_does_not_fit_the_users_own_schema_is_no_record(ask: Asking) -> None:
    ask.generate()
    schema = {**asking_schema(ask), "properties": {"instruction": {"type": "string", "maxLength": 1}}}
    ask.grid(schema=schema)
    ask.configure(providers={"gpt": {"enabled": False}}, sources={"providers": ["claude"]})
    ask.server.behavior = Behavior(script=lambda wire, prompt, nth: "breaks_schema")
    ask.generate()
    assert all(
        "answer is not the JSON asked for: " in (r.problem or "") for r in generated_records(ask.data, ask.experiments)
    )


def asking_schema(ask: Asking) -> dict[str, Any]:
    return requests_of(ask, "claude")[0].schema


# --- the user's own instructions


def own_file(ask: Asking, *records: Any) -> None:
    path = ask.data.root / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    ask.configure(generation={"prompts": "file", "prompts_file": str(path), "system": "Answer briefly."})


def test_each_provider_answers_the_users_own_instructions(ask: Asking) -> None:
    own_file(
        ask,
        {"instruction": "Name a book."},
        {"instruction": "무슨 책이 좋아?", "input": "비 오는 날"},
        {"instruction": "Name a book."},
    )
    assert ask.generate().complete
    records = generated_records(ask.data, ask.experiments)
    assert len(records) == 4, "two providers, and the same instruction twice is asked once"
    assert {(r.value["instruction"], r.value["input"]) for r in records} == {
        ("Name a book.", ""),
        ("무슨 책이 좋아?", "비 오는 날"),
    }
    assert all(record.value["output"] and record.problem is None for record in records)
    body = next(r.body for r in ask.server.ledger.received if r.wire == "openai" and "무슨" in r.prompt)
    assert body["messages"][0] == {"role": "system", "content": "Answer briefly."}
    assert body["messages"][1]["content"] == "무슨 책이 좋아?\n\n비 오는 날"
    assert "response_format" not in body


@pytest.mark.parametrize("record", [{"instructions": "x"}, {"instruction": " "}, {"instruction": 5}, ["x"]])
def test_a_prompt_without_an_instruction_is_named_with_its_number(ask: Asking, record: Any) -> None:
    own_file(ask, {"instruction": "Name a book."}, record)
    with pytest.raises(UsageError, match=r"prompts\.jsonl: record 2: .*expected an object with the text `instruction`"):
        requests_of(ask, "claude")


def test_the_same_instruction_twice_is_asked_once_of_everybody_a_seed_or_not(ask: Asking) -> None:
    mine = {"kind": "openai-compatible", "model": "mine", "base_url": ask.server.openai_url, "enabled": True}
    ask.configure(providers={"mine": mine}, generation={"requests": 2})
    own_file(ask, {"instruction": "One?"}, {"instruction": "One?"}, {"instruction": "Two?"}, {"instruction": "Three?"})
    asked_of = [
        [request.messages[-1]["content"] for request in requests_of(ask, name)] for name in ("claude", "gpt", "mine")
    ]
    assert asked_of == [["One?", "Two?"]] * 3


def test_the_file_may_be_of_any_kind_and_hold_fewer_than_wanted(ask: Asking) -> None:
    path = ask.data.root / "prompts.csv"
    path.write_text("instruction,input,language\n무슨 책?,,ko\nWhich book?,for a train,en\n", encoding="utf-8-sig")
    ask.configure(generation={"prompts": "file", "prompts_file": str(path), "languages": None})
    assert [(r.messages[-1]["content"], r.language) for r in requests_of(ask, "claude")] == [
        ("무슨 책?", "ko"),
        ("Which book?\n\nfor a train", "en"),
    ]
    ask.configure(generation={"languages": ["en"]})
    assert [r.language for r in requests_of(ask, "claude")] == ["en"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prompts.jsonl", b'{"instruction": "half a character: \\ud83d"}'),
        ("prompts.csv", "instruction,input\n무슨 책?,\n".encode("cp949")),
    ],
)
def test_text_that_cannot_be_sent_is_named_before_anything_is(ask: Asking, name: str, content: bytes) -> None:
    path = ask.data.root / name
    path.write_bytes(content)
    ask.configure(generation={"prompts": "file", "prompts_file": str(path)})
    with pytest.raises(UsageError, match=rf"{name}: record 1: "):
        ask.generate()
    assert ask.server.ledger.received == []


BROKEN_OFF: list[tuple[Fault, str]] = [
    ("truncated", "answer is not whole (stopped by "),
    ("refusal", "answer is not a text (stopped by refusal): the answer holds no text"),
    ("content_filter", "answer is not "),
]


@pytest.mark.parametrize(("fault", "problem"), BROKEN_OFF)
def test_half_a_text_is_no_record(ask: Asking, fault: Fault, problem: str) -> None:
    own_file(ask, {"instruction": "Name a book."})
    ask.server.behavior = Behavior(script=lambda wire, prompt, nth: fault)
    ask.generate()
    records = generated_records(ask.data, ask.experiments)
    assert len(records) == 2 and all((record.problem or "").startswith(problem) for record in records)


def test_an_answer_without_a_field_that_the_record_needs_is_no_record(ask: Asking) -> None:
    optional = {**SUPPORT["schema"], "required": ["question"], "additionalProperties": True}
    ask.grid(**{**SUPPORT, "schema": optional})
    body = completion('{"question": "Is it broken?", "tone": {"text": "calm"}}')
    with chat_server(lambda *_: Reply(body)) as server:
        mine = {"kind": "openai-compatible", "model": "mine", "base_url": server.url, "enabled": True}
        ask.configure(providers={"mine": mine, "claude": {"enabled": False}, "gpt": {"enabled": False}})
        ask.generate()
    problems = {record.problem for record in generated_records(ask.data, ask.experiments, ["mine"])}
    assert problems == {"answer is not the JSON asked for: tone: {'text': 'calm'} is not one of ['calm', 'warm']"}
    del optional["properties"]["tone"]
    ask.grid(**{**SUPPORT, "schema": optional, "record": {"instruction": "{question}", "output": "{answer}"}})
    with chat_server(lambda *_: Reply(body)) as server:
        ask.configure(providers={"mine": {"base_url": server.url}})
        ask.generate()
    problems = {record.problem for record in generated_records(ask.data, ask.experiments, ["mine"])}
    assert problems == {"answer is not the JSON asked for: record.output: 'answer' is not a field of it"}


def test_an_axis_that_the_prompt_does_not_tell_makes_no_more_prompts(ask: Asking) -> None:
    ask.grid(prompt="A book for a {mood} {job}.")
    ask.configure(generation={"languages": None, "requests": 60})
    with pytest.raises(UsageError, match=r"60 topics wanted for claude, the grid has 48"):
        requests_of(ask, "claude")


# --- configuration


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "openai-compatible", "model": "m"}, "needs base_url"),
        ({"kind": "openai-compatible", "model": "m", "base_url": "ftp://x/v1"}, "expected http://host:port"),
        ({"kind": "openai", "model": "m", "base_url": "https://me:secret@x/v1"}, "keep secrets in the environment"),
        ({"kind": "openai", "model": "m", "parameters": {"n": 4}}, "parameters.n is set by the generator itself"),
        (
            {"kind": "anthropic", "model": "m", "parameters": {"service_tier": "auto"}},
            "parameters.service_tier may change",
        ),
        (
            {"kind": "anthropic", "model": "m", "parameters": {"max_tokens": 4}},
            "parameters.max_tokens is set by the generator",
        ),
        ({"kind": "local", "model": "m", "batch": True}, "kind local starts a server of its own"),
        (
            {"kind": "openai-compatible", "model": "m", "base_url": "http://x/v1", "batch": True},
            "batch needs kind anthropic or openai",
        ),
        ({"kind": "openai", "model": "m", "api_key": "sk-1"}, "unknown key 'api_key'; expected one of"),
    ],
)
def test_a_provider_that_cannot_be_is_refused(section: dict[str, Any], message: str) -> None:
    try:
        Provider.model_validate(section)
    except ValidationError as error:
        assert message in str(error)
        return
    pytest.fail(f"{section} was accepted")


# --- prices


def priced(**section: Any) -> Provider:
    return Provider.model_validate({"kind": "openai-compatible", "model": "m", "base_url": "http://x/v1", **section})


def test_prices_of_ones_own_go_by_the_million_with_cached_tokens_apart() -> None:
    costs = costs_of(priced(price={"input": 2, "output": 10, "cached_input": 0.5}))
    assert costs is not None
    assert costs(Usage(input=1000, cached_input=400, output=100)) == pytest.approx(
        (600 * 2 + 400 * 0.5 + 100 * 10) / 1e6
    )
    assert costs(Usage(input=1000)) is None, "half a usage is no cost"


def test_the_table_knows_the_shipped_models_and_says_so_of_no_other() -> None:
    costs = costs_of(Provider(kind="anthropic", model="claude-haiku-4-5"))
    assert costs is not None
    assert costs(Usage(input=1_000_000, output=1_000_000)) == pytest.approx(6.0)
    assert costs(Usage(input=1000, cache_write=1000, output=0)) == pytest.approx(0.00125)
    assert costs(Usage(input=1000, cached_input=1200, output=0)) == pytest.approx(0.0001), (
        "parts never exceed the whole"
    )
    assert costs_of(Provider(kind="openai", model="no-such-model")) is None
    assert costs_of(priced(model="gpt-5.4-mini")) is None, "a compatible server is another seller"
    assert costs_of(Provider(kind="local", model="tiny")) is not None


def test_the_worst_case_bounds_the_prompt_by_its_bytes_and_its_cache_write() -> None:
    messages = [{"role": "user", "content": "책 " * 1000}]
    request = Request("p", "m", messages, {"max_tokens": 50}, {"type": "object"})
    worst = worst_usage(request)
    assert worst.output == 50
    assert worst.input is not None and 4 * 1000 + OVERHEAD_TOKENS <= worst.input <= 4 * 1000 + OVERHEAD_TOKENS + 100
    claude = costs_of(Provider(kind="anthropic", model="claude-haiku-4-5"))
    assert worst_cost(claude, request) == pytest.approx((1.25 * worst.input + 5 * 50) / 1e6)
    assert worst_cost(None, request) is None


def test_a_batch_costs_half_unless_the_price_says_otherwise() -> None:
    assert batch_share(Provider(kind="openai", model="m")) == 0.5
    assert batch_share(priced(price={"input": 1, "output": 1, "batch_share": 0.8})) == 0.8


def test_a_loopback_server_is_reached_past_a_proxy(ask: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask.generate().complete


def test_the_shipped_grid_makes_prompts_that_both_apis_take(ask: Asking) -> None:
    (ask.data.root / "topics.yaml").unlink()
    assert not (ask.data.root / "topics.yaml").exists()
    assert ask.generate().complete, "the shipped schema, transformed as each API wants it"
    assert all(record.problem is None for record in generated_records(ask.data, ask.experiments))


def test_a_file_that_is_not_there_is_named(ask: Asking, tmp_path: Path) -> None:
    ask.configure(generation={"prompts": "file", "prompts_file": str(tmp_path / "nowhere.jsonl")})
    with pytest.raises(UsageError, match=r"nowhere\.jsonl: no such file"):
        requests_of(ask, "claude")
