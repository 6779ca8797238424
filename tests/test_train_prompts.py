"""Tokens and labels: the prompt in the model's own form, the answer learned up to its end, exactly
one BOS."""

import json

import pytest
from transformers import AddedToken

from pipelines.train.trainer import checks
from pipelines.train.trainer.examples import IGNORE, Tokenized
from pipelines.train.trainer.prompts import PromptFormat
from tests.in_process import clean_for, trained
from tests.project import TinyProject
from tests.tiny import only, tiny_tokenizer

TURNS = [
    {"role": "user", "content": "Poetry?"},
    {"role": "assistant", "content": "Larkin."},
    {"role": "user", "content": "And prose?"},
    {"role": "assistant", "content": "Strout."},
]
RECORD = {"example_id": "r1", "instruction": "A book?", "input": "I am tired.", "output": "책은 『여름의 책』이에요."}


def learned_text(form: PromptFormat, example: Tokenized) -> str:
    return form.tokenizer.decode([label for label in example.labels if label != IGNORE])


def scored_text(form: PromptFormat, example: Tokenized) -> str:
    return form.tokenizer.decode([t for t, counts in zip(example.input_ids, example.scored, strict=True) if counts])


@pytest.mark.parametrize("style", ["chat", "alpaca"])
def test_only_the_answer_and_its_end_are_learned(style: str) -> None:
    form = PromptFormat(tiny_tokenizer(), style)
    example = only(form, RECORD)
    assert learned_text(form, example) == RECORD["output"] + "<|im_end|>"
    assert example.completion_bytes == len(RECORD["output"].encode())
    first = next(i for i, label in enumerate(example.labels) if label != IGNORE)
    assert example.input_ids[:first] == form.prompt(RECORD)


def test_alpaca_leaves_the_input_section_out_where_there_is_none() -> None:
    form = PromptFormat(tiny_tokenizer(), "alpaca")
    text = form.tokenizer.decode(form.prompt({**RECORD, "input": "  "}))
    assert "### Input" not in text and "### Response:" in text


def test_a_tokenizer_with_bos_puts_exactly_one_in_front_of_plain_text() -> None:
    form = PromptFormat(tiny_tokenizer(bos=True), "alpaca")
    example = only(form, RECORD)
    assert example.input_ids.count(form.tokenizer.bos_token_id) == 1 == example.input_ids[:1].count(form.prefix[0])
    checks.tokens_are_sound([example], [example], form)


def test_a_template_that_writes_bos_itself_gets_no_second() -> None:
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = "<s>" + tokenizer.chat_template
    example = only(PromptFormat(tokenizer, "chat"), RECORD)
    assert example.input_ids.count(tokenizer.bos_token_id) == 1


def test_a_bos_that_the_template_does_not_write_is_not_added() -> None:
    tokenizer = tiny_tokenizer(bos=True)
    form = PromptFormat(tokenizer, "chat")
    sent = tokenizer.apply_chat_template(
        [{"role": "user", "content": "A book?\n\nI am tired."}], add_generation_prompt=True, return_dict=False
    )
    assert form.prompt(RECORD) == sent
    assert form.prefix == [] and tokenizer.bos_token_id not in only(form, RECORD).input_ids


def test_a_tokenizer_that_is_not_as_the_models_record_says_is_refused() -> None:
    plain, with_bos = PromptFormat(tiny_tokenizer(), "chat"), PromptFormat(tiny_tokenizer(bos=True), "alpaca")
    checks.tokenizer_is_as_recorded(plain, {"bos": "none", "end": "<|im_end|>"})
    checks.tokenizer_is_as_recorded(with_bos, {"bos": "<s>", "end": None})
    with pytest.raises(ValueError, match=r"bos: the tokenizer has '<s>', experiments.yaml says 'none'"):
        checks.tokenizer_is_as_recorded(with_bos, {"bos": "none"})
    with pytest.raises(ValueError, match=r"end: the tokenizer has '<\|im_end\|>'"):
        checks.tokenizer_is_as_recorded(plain, {"end": "</s>"})


def test_every_assistant_turn_is_learned_and_nothing_else() -> None:
    turns = [{"role": "system", "content": "Be brief."}, *TURNS]
    form = PromptFormat(tiny_tokenizer(), "chat")
    example = only(form, {**RECORD, "messages": json.dumps(turns)})
    assert learned_text(form, example) == "Larkin.<|im_end|>Strout.<|im_end|>"
    whole = form.tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
    assert form.tokenizer.decode(example.input_ids) == whole


def test_alpaca_learns_every_answer_of_a_conversation() -> None:
    turns = TURNS
    form = PromptFormat(tiny_tokenizer(bos=True), "alpaca")
    record = {**RECORD, "instruction": "", "output": "", "messages": json.dumps(turns)}
    example = only(form, record)
    checks.tokens_are_sound([example], [example], form)
    assert learned_text(form, example) == "Larkin.<|im_end|>Strout.<|im_end|>"
    prompt = form.tokenizer.decode(form.prompt(record))
    assert prompt == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nPoetry?\n\n### Response:\nLarkin.<|im_end|>\n\n### Instruction:\nAnd prose?\n\n### Response:\n"
    )
    assert example.input_ids[: len(form.prompt(record))] == form.prompt(record)
    assert example.completion_bytes == len("Larkin.Strout.")
    single = {**record, "messages": json.dumps(turns[:2])}
    plain = {**RECORD, "instruction": "Poetry?", "input": "", "output": "Larkin."}
    assert only(form, single) == only(form, plain)
    messages = [{"role": "system", "content": "Be brief."}, *turns[:2]]
    with_system = form.tokenizer.decode(form.prompt({**record, "messages": json.dumps(messages)}))
    assert with_system == "<s>Be brief.\n\n### Instruction:\nPoetry?\n\n### Response:\n"


# Like Gemma's template: it refuses system prompts, and trims.
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_system_prompt_that_the_template_refuses_goes_to_the_head_of_the_first_question() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = GEMMA
    form = PromptFormat(tokenizer, "chat")
    turns = [{"role": "system", "content": "Be brief."}, *TURNS]
    folded = [{"role": "user", "content": "Be brief.\n\nPoetry?"}, *turns[2:]]
    record, expected = ({**RECORD, "messages": json.dumps(one)} for one in (turns, folded))
    assert only(form, record) == only(form, expected)
    assert form.prompt(record) == form.prompt(expected)
    assert learned_text(form, only(form, record)) == "Larkin.<|im_end|>Strout.<|im_end|>"
    plain = PromptFormat(tiny_tokenizer(), "chat")
    assert "<|im_start|>system\nBe brief." in plain.tokenizer.decode(plain.prompt(record))


def written(before: str, after: str) -> str:
    """A template of ChatML's turns that writes `before` in front of the last answer and `after`
    behind every one."""
    return (
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}<|im_start|>assistant\n"
        f"{{% if loop.last %}}{before}{{% endif %}}{{{{ message['content'] }}}}{after}\n"
        "{% else %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


@pytest.mark.parametrize(
    ("before", "after", "end"),
    [
        pytest.param(
            "<think>\n\n</think>\n\n", "<|im_end|>", "<|im_end|>", id="an empty think block in front of the last answer"
        ),
        pytest.param(" ", " <|im_end|>", "<|im_end|>", id="a space before and behind the answer"),
        pytest.param("", "<end_of_turn>", "<end_of_turn>", id="an end without a named role"),
        pytest.param("<think>\n\n</think>\n\n", "<end_of_turn>", "<end_of_turn>", id="both"),
        pytest.param("", "", "<|im_end|>", id="nothing behind the answer: EOS"),
    ],
)
def test_the_end_is_what_stands_behind_an_answer_however_it_is_shown(before: str, after: str, end: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<end_of_turn>", special=True)])
    assert tokenizer.convert_tokens_to_ids("<end_of_turn>") not in tokenizer.all_special_ids
    tokenizer.chat_template = written(before, after)
    form = PromptFormat(tokenizer, "chat")
    assert tokenizer.decode([form.end_of_answer]) == end
    example = only(form, RECORD)
    assert learned_text(form, example) == before + RECORD["output"] + after.removesuffix(end) + end
    assert scored_text(form, example).strip() == RECORD["output"]
    assert example.completion_bytes == len(RECORD["output"].encode())
    assert form.end_of_answer in form.stop_tokens


def test_an_end_that_stops_no_generation_is_refused_unless_the_models_record_names_it() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<end_of_turn>", special=True)])
    tokenizer.chat_template = written("", "<end_of_turn>")
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    checks.end_stops_generation(PromptFormat(tokenizer, "chat", stops=[end, 0]), {})
    checks.end_stops_generation(PromptFormat(tokenizer, "chat"), {"end": "<end_of_turn>"})
    for stops in ([], [0]):
        with pytest.raises(ValueError, match=r"ends an answer in '<end_of_turn>', generation stops at '<\|im_end\|>'"):
            checks.end_stops_generation(PromptFormat(tokenizer, "chat", stops=stops), {})


def test_a_template_that_hides_the_answer_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = written("", "<|im_end|>").replace("['content']", "['content'] | lower")
    with pytest.raises(ValueError, match="does not show the answer as it was written"):
        only(PromptFormat(tokenizer, "chat"), RECORD)


def test_white_space_around_turns_is_no_part_of_them() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = GEMMA
    for form in (PromptFormat(tokenizer, "chat"), PromptFormat(tiny_tokenizer(), "chat")):
        turns = [{"role": "user", "content": " Hi\n"}, {"role": "assistant", "content": "\n책이요. \n"}] * 2
        example = only(form, {**RECORD, "messages": json.dumps(turns)})
        assert learned_text(form, example) == "책이요.<|im_end|>책이요.<|im_end|>"


def test_a_conversation_that_the_template_refuses_is_named() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('not this one') }}"
    form = PromptFormat(tokenizer, "chat")
    with pytest.raises(
        ValueError, match=r"record r1: the model's chat template refuses it: not this one; prompt: alpaca"
    ):
        only(form, RECORD)


def test_the_end_that_the_template_writes_is_the_one_that_is_learned() -> None:
    """Gemma's turns end with <end_of_turn>, not with its EOS."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<turn_end>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<turn_end>")
    form = PromptFormat(tokenizer, "chat")
    assert learned_text(form, only(form, RECORD)).endswith("<turn_end>")
    assert form.stop_tokens == sorted([tokenizer.convert_tokens_to_ids("<turn_end>"), tokenizer.eos_token_id])


def test_chat_without_a_template_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="prompt: alpaca"):
        PromptFormat(tiny_tokenizer(chat=False), "chat")


def test_unsound_tokens_are_named() -> None:
    form = PromptFormat(tiny_tokenizer(bos=True), "alpaca")
    good = only(form, RECORD)
    ids, labels = good.input_ids, good.labels
    broken = {
        "must start with exactly one '<s>'": (ids[1:], labels[1:]),
        "exactly one": ([*form.prefix, *ids], [IGNORE, *labels]),
        "first token": (ids, ids),
        "up to the end": (ids, [*labels[:-1], IGNORE]),
        "does not end an answer": ([*ids, 9], [*labels, 9]),
        "at its own place": (ids, [*labels[1:-1], 7, labels[-1]]),
    }
    for message, (its_ids, its_labels) in broken.items():
        example = Tokenized("x1", its_ids, its_labels, [True] * len(its_ids), good.completion_bytes)
        with pytest.raises(ValueError, match=f"record x1 .*{message}"):
            checks.tokens_are_sound([good, example], [good], form)
    with pytest.raises(ValueError, match="raise max_length"):
        checks.tokens_are_sound([], [good], form)


@pytest.mark.parametrize("style", ["chat", "alpaca"])
def test_what_is_learned_is_the_answers_text(style: str) -> None:
    form = PromptFormat(tiny_tokenizer(bos=True), style)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "책이요."}]
    conversation = {**RECORD, "instruction": "", "output": "", "messages": json.dumps([*turns, *turns])}
    checks.labels_are_the_answers([RECORD, conversation], form)


def test_labels_that_are_off_by_a_token_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    form = PromptFormat(tiny_tokenizer(), "chat")
    good = only(form, RECORD)
    shifted = Tokenized("r1", good.input_ids, good.labels, [*good.scored[1:], False], good.completion_bytes)
    monkeypatch.setattr(form, "tokenize", lambda _record: [shifted])
    with pytest.raises(ValueError, match="record r1: what is learned is not its answer"):
        checks.labels_are_the_answers([RECORD], form)


@pytest.mark.parametrize(
    ("loss", "message"), [(12.0, "guessing among 600 tokens would give 6.40"), (0.0001, "nothing to learn")]
)
def test_a_loss_that_no_language_model_starts_with_is_explained(loss: float, message: str) -> None:
    checks.loss_is_sane(6.5, vocabulary=600)
    with pytest.raises(ValueError, match=message):
        checks.loss_is_sane(loss, vocabulary=600)


def test_a_cell_whose_first_loss_is_absurd_is_failed_with_the_reason(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.train.trainer.loop import Trainer

    monkeypatch.setattr(Trainer, "_eval_loss", lambda *_: 20.0)
    attempt = trained(clean_for(project), "lora-r8")
    assert (attempt.status, attempt.result.phase) == ("failed", "train")
    assert "20.00 nats per completion token" in attempt.result.detail
    assert attempt.result.measured.get("last_step") is None


# --- turns that a file switches off


@pytest.mark.parametrize("style", ["chat", "alpaca"])
def test_an_answer_that_is_switched_off_is_shown_and_not_learned(style: str) -> None:
    form = PromptFormat(tiny_tokenizer(), style)
    shown = {**RECORD, "messages": json.dumps([TURNS[0], {**TURNS[1], "train": False}, *TURNS[2:]])}
    example, whole = only(form, shown), only(form, {**RECORD, "messages": json.dumps(TURNS)})
    assert example.input_ids == whole.input_ids
    assert learned_text(form, example) == "Strout.<|im_end|>"
    assert example.completion_bytes == len("Strout.")
    checks.labels_are_the_answers([shown], form)
