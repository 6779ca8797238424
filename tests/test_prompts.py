"""Tokens and labels: the prompt as the model wants it, the answer learned up to its end, exactly one BOS."""

import json

import pytest

from pipelines.train import checks
from pipelines.train.prompts import IGNORE, PromptFormat, Tokenized
from tests.tiny import tiny_tokenizer

RECORD = {"example_id": "r1", "instruction": "A book?", "input": "I am tired.", "output": "책은 『여름의 책』이에요."}


def learned_text(form: PromptFormat, example: Tokenized) -> str:
    return form.tokenizer.decode([label for label in example.labels if label != IGNORE])


@pytest.mark.parametrize("style", ["chat", "alpaca"])
def test_only_the_answer_and_its_end_are_learned(style: str) -> None:
    form = PromptFormat(tiny_tokenizer(), style)
    example = form.tokenize(RECORD)
    assert learned_text(form, example) == RECORD["output"] + "<|im_end|>"
    assert example.completion_bytes == len(RECORD["output"].encode())
    first = next(i for i, label in enumerate(example.labels) if label != IGNORE)
    assert example.input_ids[:first] == form.prompt(RECORD)


def test_alpaca_leaves_the_input_section_out_where_there_is_none() -> None:
    form = PromptFormat(tiny_tokenizer(), "alpaca")
    text = form.tokenizer.decode(form.prompt({**RECORD, "input": "  "}))
    assert "### Input" not in text and "### Response:" in text


@pytest.mark.parametrize("style", ["chat", "alpaca"])
def test_a_tokenizer_with_bos_puts_exactly_one_in_front(style: str) -> None:
    form = PromptFormat(tiny_tokenizer(bos=True), style)
    example = form.tokenize(RECORD)
    assert example.input_ids.count(form.tokenizer.bos_token_id) == 1 == example.input_ids[:1].count(form.prefix[0])
    checks.tokens_are_sound([example], [example], form)


def test_a_template_that_writes_bos_itself_gets_no_second() -> None:
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = "<s>" + tokenizer.chat_template
    example = PromptFormat(tokenizer, "chat").tokenize(RECORD)
    assert example.input_ids.count(tokenizer.bos_token_id) == 1


def test_every_assistant_turn_is_learned_and_nothing_else() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Poetry?"},
        {"role": "assistant", "content": "Larkin."},
        {"role": "user", "content": "And prose?"},
        {"role": "assistant", "content": "Strout."},
    ]
    form = PromptFormat(tiny_tokenizer(), "chat")
    example = form.tokenize({**RECORD, "messages": json.dumps(turns)})
    assert learned_text(form, example) == "Larkin.<|im_end|>Strout.<|im_end|>"
    whole = form.tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
    assert form.tokenizer.decode(example.input_ids) == whole


def test_the_end_that_the_template_writes_is_the_one_that_is_learned() -> None:
    """Gemma's turns end with <end_of_turn>, not with its EOS."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<turn_end>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<turn_end>")
    form = PromptFormat(tokenizer, "chat")
    assert learned_text(form, form.tokenize(RECORD)).endswith("<turn_end>")
    assert form.stop_tokens == sorted([tokenizer.convert_tokens_to_ids("<turn_end>"), tokenizer.eos_token_id])


def test_chat_without_a_template_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="prompt: alpaca"):
        PromptFormat(tiny_tokenizer(chat=False), "chat")


def test_unsound_tokens_are_named() -> None:
    form = PromptFormat(tiny_tokenizer(bos=True), "chat")
    good = form.tokenize(RECORD)
    without_bos = Tokenized("x1", good.input_ids[1:], good.labels[1:], good.scored[1:], good.completion_bytes)
    without_end = Tokenized("x2", good.input_ids, [*good.labels[:-1], IGNORE], good.scored, good.completion_bytes)
    for broken in (without_bos, without_end):
        with pytest.raises(ValueError, match=broken.example_id):
            checks.tokens_are_sound([good, broken], [good], form)
    with pytest.raises(ValueError, match="raise max_length"):
        checks.tokens_are_sound([], [good], form)
