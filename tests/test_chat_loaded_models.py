"""A cell's words in a chat equal those of its evaluation token for token, also where several cells
share one model in memory."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.chat import loaded_models as loaded_models
from pipelines.chat.engine import _member_fields
from pipelines.chat.loaded_models import LoadedModels, Question, WindowFullError, as_record
from pipelines.chat.members import Member, Roster
from pipelines.clean.select import select
from pipelines.evaluate import answering
from pipelines.evaluate.answering import PromptedModel
from pipelines.evaluate.shots import Shots
from pipelines.runs.cells import CellKey
from pipelines.train.trainer import loading
from pipelines.train.trainer.prompts import PromptFormat
from tests import chats
from tests.fakes.planted import Lake

Json = dict[str, Any]
ASKED = ("A novel for a nurse?", "짧은 소설 한 권", "Why?")
LIMIT = 12


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Lake:
    made = chats.lake(tmp_path_factory.mktemp("chat") / "data", tiny_folder)
    for seed, method in enumerate(("lora-r8", "lora-r4")):
        chats.with_adapter(made.trained(method), seed=seed)
    return made


def member(lake: Lake, method: str) -> Member:
    return Roster(lake.project).member(CellKey("tiny", method, 1))


def description(lake: Lake, method: str) -> Json:
    return _member_fields(lake.project, member(lake, method))


def alone(lake: Lake, method: str) -> list[list[int]]:
    """Answers to `ASKED` as evaluation gives them, with a model loaded for this cell alone."""
    one = member(lake, method)
    recipe = dict(one.recipe)
    form = PromptFormat.of(one.folder, recipe)
    prompted_model = PromptedModel(
        loading.load_trained(one.folder, recipe, one.trained), form, recipe, torch.device("cpu")
    )
    prompts = [form.prompt({"instruction": prompt, "input": "", "output": ""}) for prompt in ASKED]
    return answering.answer(prompted_model, prompts, LIMIT)


def ask(loaded_models: LoadedModels, one: Json, *turns: str, limit: int = LIMIT, **more: Any) -> Any:
    roles = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    if not loaded_models.has(one):
        loaded_models.load(one)
    return loaded_models.answer(one, Question(roles, limit, **more), lambda _text: None, lambda: False)


def answer_as_alone(lake: Lake, held: LoadedModels, order: Sequence[str]) -> None:
    """Cells that answer repeatedly in `order` give the answers that separate processes give."""
    members = {method: description(lake, method) for method in order}
    expected = {method: alone(lake, method) for method in members}
    for method in order:
        for place, prompt in enumerate(ASKED):
            assert list(ask(held, members[method], prompt).tokens) == expected[method][place], (method, prompt)
    assert len({str(answers) for answers in expected.values()}) == len(members), "otherwise equal answers prove nothing"


def test_cells_that_share_a_base_answer_as_each_alone_in_any_order(lake: Lake) -> None:
    held = LoadedModels()
    answer_as_alone(lake, held, ("base", "lora-r8", "base", "lora-r4", "lora-r8", "base", "lora-r4"))
    assert len(held._models) == 1


@pytest.mark.slow
def test_whole_models_and_adapters_that_change_their_base_or_prompt_have_one_of_their_own(lake: Lake) -> None:
    chats.with_model(lake.trained("full"), seed=5)
    for method in (own := ("pissa", "prompt-tuning", "prefix-tuning")):
        chats.with_adapter(lake.trained(method), seed=6)
    held = LoadedModels()
    answer_as_alone(lake, held, ("base", "lora-r8", "full", *own, "base", "lora-r8", *own, "full", "base", "lora-r4"))
    assert len(held._models) == 5, "base and its two adapters in one"
    held.forget(description(lake, "base")["group"])
    assert not held.has(description(lake, "lora-r8")) and held.has(description(lake, "full"))
    assert list(ask(held, description(lake, "lora-r8"), ASKED[0]).tokens) == alone(lake, "lora-r8")[0]


def test_later_turns_and_a_system_prompt_are_asked_as_a_conversation_is_trained(lake: Lake, tiny_folder: Path) -> None:
    form = PromptFormat.of(tiny_folder, {"prompt": "chat"})
    turns = [("system", "Be brief."), ("user", "One?"), ("assistant", "Two."), ("user", " And now? ")]
    messages = [{"role": role, "content": text} for role, text in turns]
    record = {"messages": json.dumps([*messages, {"role": "assistant", "content": "Three."}])}
    assert form.prompt(as_record(messages)) == form.prompt(record)
    assert form.prompt(as_record(messages[3:])) == form.prompt({"instruction": "And now?", "input": "", "output": "x"})
    plain = PromptFormat(form.tokenizer, "alpaca")
    assert plain.prompt(as_record(messages)) == plain.prompt(record)
    assert plain.prompt(as_record(messages[3:])) == plain.prompt(
        {"instruction": "And now?", "input": "", "output": "x"}
    )


def test_few_shot_prompts_are_those_of_evaluation(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    one, prompts = description(lake, "few-shot"), []
    monkeypatch.setattr(
        answering, "answer", lambda _speaker, prompt_ids, _limit: prompts.append(prompt_ids[0]) or [[0]]
    )
    ask(LoadedModels(), one, "Where to begin?")
    form = PromptFormat.of(Path(one["folder"]), one["recipe"])
    train = select(Path(one["examples"]), lake.project.selection).train
    record = {
        "example_id": "y",
        "instruction": "Where to begin?",
        "input": "",
        "output": "Here.",
        "language": train[0]["language"],
    }
    shots = Shots(train, 2, form, room=512 - LIMIT).of(record)
    assert len(shots) == 2 and prompts == [form.prompt(record, shots)] != [form.prompt(record)]


def test_the_language_of_a_question_is_one_of_the_examples() -> None:
    assert loaded_models._language("오늘 밤에 읽을 소설을 추천해 주세요.", ["en", "ko"]) == "ko"
    assert loaded_models._language("Which novel should I read tonight?", ["en", "ko"]) == "en"
    assert loaded_models._language("무엇?", ["en"]) == "en" and loaded_models._language("x", []) is None


def test_text_comes_piece_by_piece_and_an_answer_can_be_stopped_and_ends_say_why(lake: Lake) -> None:
    held, one, pieces = LoadedModels(), description(lake, "lora-r8"), []
    whole = ask(held, one, ASKED[0])
    question = Question([{"role": "user", "content": ASKED[0]}], LIMIT)
    held.answer(one, question, pieces.append, lambda: False)
    assert len(pieces) > 2 and whole.text.rstrip("\ufffd ") == "".join(pieces), "all but half a character at its end"
    stopped = held.answer(one, question, pieces.append, lambda: len(pieces) > 4)
    assert stopped.ended == "stopped" and list(stopped.tokens) == list(whole.tokens[: len(stopped.tokens)])
    assert 0 < len(stopped.tokens) < len(whole.tokens) and whole.ended == "limit"
    window = held._models[one["group"]].config.max_position_embeddings
    assert ask(held, one, "a " * (window - 30), limit=64).ended in ("window", "itself")
    with pytest.raises(WindowFullError, match=f"holds {window}"):
        ask(held, one, "a " * window)
    assert list(ask(held, one, ASKED[0]).tokens) == list(whole.tokens), "none of these remains"


def test_a_temperature_draws_and_does_not_stay(lake: Lake) -> None:
    held, one = LoadedModels(), description(lake, "base")
    greedy = ask(held, one, ASKED[0])
    torch.manual_seed(1)
    drawn = {tuple(ask(held, one, ASKED[0], temperature=1.5).tokens) for _ in range(3)}
    assert len(drawn) > 1 and list(ask(held, one, ASKED[0]).tokens) == list(greedy.tokens)


def test_what_may_begin_a_stop_text_is_held_back() -> None:
    marks = ("### Instruction", "Below is")
    assert loaded_models._settled("Olive.\n\n### Inst", marks) == "Olive."
    assert loaded_models._settled("Olive. Be", marks) == "Olive."
    assert loaded_models._settled("Olive ### Ok", marks) == "Olive ### Ok"
    assert loaded_models._settled("소설\ufffd", ()) == "소설"


def test_an_adapter_that_cannot_be_loaded_leaves_nothing_half_done(lake: Lake) -> None:
    held, one = LoadedModels(), description(lake, "base")
    before = ask(held, one, ASKED[0])
    broken = {**description(lake, "lora-r4"), "trained": str(lake.data.root / "nowhere")}
    with pytest.raises(Exception, match="nowhere"):
        held.load(broken)
    assert not held.has(broken)
    assert list(ask(held, one, ASKED[0]).tokens) == list(before.tokens)


def test_only_adapters_that_leave_the_base_alone_share_it(lake: Lake) -> None:
    lora = member(lake, "lora-r8")
    assert member(lake, "base").group == lora.group == member(lake, "few-shot").group == member(lake, "lora-r4").group
    own = (
        {"init_lora_weights": "pissa_niter_4"},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"peft_type": "VERA"},
    )
    for settings in own:
        peft = {"peft_type": "LORA", "r": 4, **settings}
        other = replace(lora, recipe={**lora.recipe, "kind": "adapter", "peft": peft})
        assert not other.shares_base and other.group != lora.group, settings
    for name, value in (("quantization", "nf4"), ("precision", "bf16"), ("attention", "eager")):
        assert replace(lora, recipe={**lora.recipe, name: value}).group != lora.group
