"""Measures of a cell's quality: batched answers and their ends, examples in the prompt, text
scores, general texts."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import UsageError
from pipelines.evaluate import answering, scores, serving
from pipelines.evaluate.answering import PromptedModel
from pipelines.evaluate.general import plain_text, read_general
from pipelines.evaluate.shots import Shots
from pipelines.lake.paths import PROJECT
from pipelines.settings.methods import traits_of
from pipelines.train.trainer.examples import IGNORE
from pipelines.train.trainer.prompts import PromptFormat
from tests.tiny import ARCHITECTURES, MORE_ARCHITECTURES, TARGETS, only, tiny_model, tiny_tokenizer

RECIPE: dict[str, Any] = {"kind": "none", "precision": "fp32", "quantization": None}
RECORDS: list[dict[str, Any]] = [
    {"example_id": "a", "instruction": "For a nurse?", "input": "After a night shift.", "output": "Olive.", "language": "en"},
    {"example_id": "b", "instruction": "한 권만", "input": "", "output": "『보건교사 안은영』이요.", "language": "ko"},
    {"example_id": "c", "instruction": "One sentence about the sea and tides.", "input": "", "output": "Moby.", "language": "en"},
    {"example_id": "d", "instruction": "Why?", "input": "", "output": "Because.", "language": "en"},
]  # fmt: skip
CPU = torch.device("cpu")


def prompted_model(
    architecture: str = "llama", style: str = "chat", *, bos: bool = False, **more: Any
) -> PromptedModel:
    return PromptedModel(tiny_model(architecture), PromptFormat(tiny_tokenizer(bos=bos), style), RECIPE, CPU, **more)


def prompts_of(one: PromptedModel) -> list[list[int]]:
    return [one.form.prompt(record) for record in RECORDS]


def plain_greedy(model: Any, prompt: list[int], limit: int, stops: list[int]) -> list[int]:
    """The plain computation: the whole row again for every token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + limit:
        row = torch.tensor([ids])
        with torch.no_grad():
            logits = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


# answers


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MORE_ARCHITECTURES])
def test_answers_in_batches_are_those_of_each_prompt_alone(architecture: str) -> None:
    one = prompted_model(architecture)
    prompts = prompts_of(one)
    expected = [plain_greedy(one.model, prompt, 12, one.form.stop_tokens) for prompt in prompts]
    assert len({len(prompt) for prompt in prompts}) > 2
    assert answering.answer(one, prompts, 12) == expected
    longest = max(map(len, prompts)) + 12
    assert answering.answer_all(one, prompts, 12, max_tokens=2 * longest) == expected
    assert [answering.answer(one, [prompt], 12)[0] for prompt in prompts] == expected


def test_batches_are_by_length_and_within_their_size() -> None:
    prompts = [[0] * length for length in (5, 30, 6, 29, 100, 5)]
    batches = answering.groups(prompts, 10, max_tokens=80)
    assert sorted(place for group in batches for place in group) == list(range(6))
    assert batches == [[4], [1, 3], [2, 0, 5]]
    assert answering.groups([], 10, max_tokens=80) == []


def test_an_answer_ends_at_its_end_token_and_what_a_folder_says_of_generation_changes_nothing() -> None:
    one = prompted_model()
    prompts = prompts_of(one)
    free = answering.answer(one, prompts, 12, exactly=True)
    assert [len(tokens) for tokens in free] == [12] * 4
    one.model.generation_config.update(repetition_penalty=9.0, min_new_tokens=12, max_length=3)
    # Declare a token of every row an end token: the rows end at different places, and the others
    # go on.
    end = free[0][3]
    one.form.tokenizer.eos_token = one.form.tokenizer.convert_ids_to_tokens(end)
    answers = answering.answer(one, prompts, 12)
    for tokens, whole in zip(answers, free, strict=True):
        ends = [i for i, token in enumerate(whole) if token in one.form.stop_tokens]
        assert tokens == whole[: ends[0] + 1 if ends else 12]
    assert len(answers[0]) == free[0].index(end) + 1


def test_alpaca_answers_end_before_the_next_block(monkeypatch: pytest.MonkeyPatch) -> None:
    one = prompted_model(style="alpaca")
    prompts = prompts_of(one)
    whole = answering.answer(one, prompts, 12)
    mark = one.form.tokenizer.decode(whole[0][4:6])
    monkeypatch.setattr(answering, "NEXT_BLOCK", (mark,))
    together = answering.answer(one, prompts, 12)
    assert together == [answering.answer(one, [prompt], 12)[0] for prompt in prompts]
    before = one.form.tokenizer.decode(whole[0], skip_special_tokens=True).split(mark)[0].strip()
    assert answering.text_of(one, together[0]) == before
    assert len(together[0]) <= 6
    assert "### Instruction" not in one.form.tokenizer.decode(together[0]), "the prompt is no part of an answer"


# serving


def test_adapters_attached_mixed_in_a_batch_and_merged_say_the_same(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(r=4, target_modules=TARGETS["llama"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(3)
    get_peft_model(tiny_model("llama"), config).save_pretrained(str(tmp_path))
    recipe = {**RECIPE, "kind": "lora", "dora": False}
    form = PromptFormat(tiny_tokenizer(), "chat")
    attached = PromptedModel(PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path)).eval(), form, recipe, CPU)
    prompts = prompts_of(attached)
    answers = answering.answer(attached, prompts, 10)
    assert answers != answering.answer(PromptedModel(tiny_model("llama"), form, RECIPE, CPU), prompts, 10)

    assert serving.why_not_mixed(recipe, attached.model) is None
    assert "DoRA" in (serving.why_not_mixed({**recipe, "dora": True}, attached.model) or "")
    mixed = serving.several_adapters(attached, tmp_path, 4)
    assert set(mixed.more["adapter_names"]) == set(serving.ADAPTERS)
    assert answering.answer(mixed, prompts, 10) == answers
    (row,) = serving.measure(mixed, "mixed", prompts, 5, [4])
    assert (row["mode"], row["batch_size"], row["new_tokens"]) == ("mixed", 4, 5)
    assert row["tokens_per_second"] == pytest.approx(4 * 5 / (row["p50_latency_ms"] / 1000))
    serving.one_adapter(attached)

    assert traits_of(recipe).can_merge and not traits_of({**recipe, "quantization": "nf4"}).can_merge
    merged = serving.merged(attached, recipe)
    assert serving.is_whole(merged) and not serving.is_whole(attached)
    assert not hasattr(merged.model, "peft_config") or not isinstance(merged.model, PeftModel)
    assert answering.answer(merged, prompts, 10) == answers


@pytest.mark.parametrize(("targets", "mixes"), [(TARGETS["opt"], False), (["q_proj", "v_proj"], True)])
def test_adapters_of_opt_mix_in_a_batch_only_beside_its_flat_layers(targets: list[str], mixes: bool) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model("opt"), LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")).eval()
    prompted_model = PromptedModel(
        model, PromptFormat(tiny_tokenizer(), "chat"), {**RECIPE, "kind": "lora", "dora": False}, CPU
    )
    reason = serving.why_not_mixed(prompted_model.recipe, model)
    assert (reason is None) == mixes
    mixed = replace(prompted_model, more={"adapter_names": ["default"] * 4})
    with nullcontext() if mixes else pytest.raises(ValueError, match="adapter_names"):
        assert len(answering.answer(mixed, prompts_of(prompted_model), 3)) == 4


# examples in the prompt


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("style", ["chat", "alpaca"])
def test_shots_stand_before_the_question_and_count_for_nothing(style: str, bos: bool) -> None:
    form = PromptFormat(tiny_tokenizer(bos=bos), style)
    record, shots = RECORDS[0], RECORDS[1:3]
    bare, shown = only(form, record), only(form, record, shots)
    assert shown.completion_bytes == bare.completion_bytes and shown.learned == bare.learned
    assert [t for t in shown.labels if t != IGNORE] == [t for t in bare.labels if t != IGNORE]
    first = next(i for i, label in enumerate(shown.labels) if label != IGNORE)
    assert shown.input_ids[:first] == form.prompt(record, shots)
    text = form.tokenizer.decode(shown.input_ids)
    order = [
        text.index(part) for part in (*(shot["output"] for shot in shots), record["instruction"], record["output"])
    ]
    assert order == sorted(order)
    assert form.prompt(record, []) == form.prompt(record)
    # A chat template writes its own BOS, or none.
    if bos and style == "alpaca":
        assert shown.input_ids.count(form.tokenizer.bos_token_id) == 1


def test_shots_are_always_the_same_in_the_questions_language_first_and_fit_the_window() -> None:
    form = PromptFormat(tiny_tokenizer(), "chat")
    question = {**RECORDS[1], "example_id": "q", "instruction": "짧게요"}
    shots = Shots(RECORDS, 3, form, room=10_000)
    shot_ids = [shot["example_id"] for shot in shots.of(question)]
    assert shot_ids[0] == "b" and len(shot_ids) == 3
    assert [shot["example_id"] for shot in Shots(RECORDS[::-1], 3, form, room=10_000).of(question)] == shot_ids
    one_fits = len(only(form, question, shots.of(question)[:1]))
    assert [shot["example_id"] for shot in Shots(RECORDS, 3, form, room=one_fits).of(question)] == shot_ids[:1]
    assert Shots(RECORDS, 3, form, room=5).of(question) == []


# general texts


def test_the_shipped_general_texts_are_in_both_languages_and_scored_whole() -> None:
    file = PROJECT / "data" / "general.json"
    texts = read_general(file, None, None)
    assert len(texts) == 40 and {one["language"] for one in read_general(file, None, 2)} == {"en", "ko"}
    assert {one["language"] for one in read_general(file, ["ko"], None)} == {"ko"}
    for bos in (False, True):
        form = PromptFormat(tiny_tokenizer(bos=bos), "chat")
        example = plain_text(form, texts[1]["text"], "1")
        scored = [token for token, counts in zip(example.input_ids, example.scored, strict=True) if counts]
        assert form.tokenizer.decode(scored) == texts[1]["text"]
        assert example.completion_bytes == len(texts[1]["text"].encode()) and example.learned == len(scored)
        assert example.input_ids[0] == (form.tokenizer.bos_token_id if bos else form.tokenizer.eos_token_id)


# text scores

EN = ("Read The Summer Book by Tove Jansson tonight.", "Try The Summer Book, by Tove Jansson.")
KO = ("오늘 밤에는 『여름의 책』을 읽어 보세요.", "『여름의 책』을 오늘 읽으세요.")


def row(answer: str, reference: str, language: str | None) -> dict[str, Any]:
    values = scores.answer_scores(answer, reference, language)
    return {"answer": answer, "reference": reference, "language": language, **values}


def test_text_scores_are_the_libraries_own() -> None:
    import sacrebleu

    rows = [row(*EN, "en"), row("Nothing at all.", "Something else entirely here.", "en")]
    answers, references = [r["answer"] for r in rows], [[r["reference"] for r in rows]]
    cell = scores.cell_scores(rows)
    assert cell["bleu"] == pytest.approx(sacrebleu.corpus_bleu(answers, references).score)
    assert cell["chrf"] == pytest.approx(sacrebleu.corpus_chrf(answers, references).score)
    korean = [row(*KO, "ko"), row("모르겠어요.", "『소년이 온다』요.", None)]
    answers, references = [r["answer"] for r in korean], [[r["reference"] for r in korean]]
    expected = sacrebleu.corpus_bleu(answers, references, tokenize="char").score
    assert scores.cell_scores(korean)["bleu"] == pytest.approx(expected) and expected > 0
    assert rows[0]["bleu"] == pytest.approx(sacrebleu.sentence_bleu(EN[0], [EN[1]]).score)


def test_rouge_and_meteor_by_hand() -> None:
    # Of 8 and 7 words six are common and in order: the summer book by tove jansson.
    english = scores.answer_scores(*EN, "en")
    assert english["rouge_l"] == pytest.approx(100 * 2 * (6 / 8) * (6 / 7) / (6 / 8 + 6 / 7))
    # METEOR: m = 6, one chunk; F = PR / (0.9 P + 0.1 R), penalty 0.5 (1/6)^3.
    mean = (6 / 8) * (6 / 7) / (0.9 * (6 / 8) + 0.1 * (6 / 7))
    assert english["meteor"] == pytest.approx(100 * mean * (1 - 0.5 * (1 / 6) ** 3))
    # Of 7 and 5 words three are common and in order: 여름의 책 을.
    korean = scores.answer_scores(*KO, "ko")
    assert scores.words(KO[1]) == ["여름의", "책", "을", "오늘", "읽으세요"]
    assert korean["rouge_l"] == pytest.approx(100 * 2 * (3 / 7) * (3 / 5) / (3 / 7 + 3 / 5))
    stems = scores.answer_scores("running dogs", "runs dog", "en")
    assert stems["meteor"] > 90 and stems["rouge_l"] == 0, "matched by their stems"


def test_equal_answers_score_all_empty_ones_nothing_and_spelling_does_not_count() -> None:
    import unicodedata

    for text, language in ((EN[0], "en"), (KO[0], "ko")):
        values = scores.answer_scores(unicodedata.normalize("NFD", text), text, language)
        assert [values[name] for name in ("bleu", "chrf", "rouge_l")] == pytest.approx([100, 100, 100])
        assert values["meteor"] > 99
        empty = scores.answer_scores("", text, language)
        assert set(empty.values()) == {0.0}
    assert set(scores.cell_scores([]).values()) == {None}
    both = scores.cell_scores([row(*EN, "en"), row(*KO, "ko")])
    assert all(value is not None and 0 < value < 100 for value in both.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "not JSON that can be read: Expecting"),
        ("3", "is missing, or is no text"),
        ('[{"text": 3, "language": "en"}]', "is missing, or is no text"),
        ('[{"language": "en"}]', "is missing, or is no text"),
    ],
)
def test_general_texts_that_cannot_be_read_are_refused_in_words(
    content: str | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "general.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        read_general(file, None, None)
    assert str(refused.value).startswith(f"{file}: ") and message in str(refused.value)
    assert "Error" not in str(refused.value)
