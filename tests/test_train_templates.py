"""Chat templates of every kind: the learned tokens are those that inference sends and receives.

Each trait below is a small template, or a tokenizer, of our own. `FEATHERWEIGHT_TOKENIZERS` names a
folder of real ones, each in a subfolder; the same tests apply to them.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from tokenizers import normalizers
from transformers import AddedToken, AutoTokenizer

from pipelines.evaluate.shots import Shots
from pipelines.lake.paths import PROJECT
from pipelines.settings import experiments as configuration
from pipelines.train.trainer import checks, tokenizing
from pipelines.train.trainer.examples import IGNORE, Tokenized
from pipelines.train.trainer.prompts import PromptFormat
from pipelines.train.trainer.templates import Unshown
from tests.tiny import only, sentencepiece_tokenizer, tiny_tokenizer


def turns(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *messages] if system else messages


CONVERSATIONS = {
    "single": turns("A book?", "Larkin."),
    "Korean and numbers": turns("책 3권, 얼마예요?", "『여름의 책』 3권은 36,000원이에요."),
    "system": turns("A book?", "Strout, 2008.", system="Be brief."),
    "two turns": turns("Poetry?", "Larkin.", "And prose?", "Strout."),
    "system and two turns": turns("Poetry?", "Larkin.", "And prose?", "Strout.", system="Be brief."),
}


def record(messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"example_id": "r1", "instruction": "", "input": "", "output": "", "messages": json.dumps(messages), **more}


@dataclass(frozen=True)
class Trait:
    """A template that writes a turn as `opening`, role, newline, content, `closing`.

    `before` stands in front of an answer, only of the last one with `last_only`. `learned` is
    the form of a learned answer, and `apart` says whether each answer is a separate example.
    """

    template: str
    learned: str = "{}<|im_end|>"
    apart: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    tokenizer: Callable[[], Any] = tiny_tokenizer
    eos: str = "<|im_end|>"


def chatml(
    *,
    before: str = "",
    last_only: bool = False,
    after: str = "<|im_end|>\n",
    ask: str = "<|im_start|>assistant\n",
    head: str = "",
) -> str:
    """ChatML's turns, changed by a trait."""
    place = "{% if loop.last %}" + before + "{% endif %}" if last_only else before
    return (
        head + "{% for message in messages %}{% if message['role'] == 'assistant' %}"
        f"<|im_start|>assistant\n{place}{{{{ message['content'] }}}}{after}"
        "{% else %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}" + ask + "{% endif %}"
    )


THINK = "<think>\n\n</think>\n\n"
CLOSED = "<|im_start|>assistant\n{{% if enable_thinking is false %}}{}{{% endif %}}"
CHANNELS = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "<|start|>assistant<|channel|>final<|message|>{{ message['content'] }}{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}<|start|>{{ message['role'] }}<|message|>{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
BRACKETS = (
    "{% if messages[0]['role'] == 'system' %}{% set told = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}<s>[INST] {% if loop.first %}{{ told }}{% endif %}{{ message['content'] | trim }} [/INST]"
    "{% else %} {{ message['content'] | trim }} </s>{% endif %}{% endfor %}"
)
SWITCH = (
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)
SHOWS_THOUGHTS = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% set content = message['content'] %}{% set thought = '' %}"
    "{% if '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n{% if loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ content }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
) + SWITCH
ONLY_USERS = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEAF = ONLY_USERS.replace("{{ raise_exception('no system role') }}{% endif %}", "{% else %}").replace(
    "<|im_end|>\n{% endfor %}", "<|im_end|>\n{% endif %}{% endfor %}"
)
SYSTEM_LAST = (
    "{% if messages[0]['role'] == 'system' %}{% set told = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}{% for message in rest %}{% if message['role'] == 'user' %}"
    "[INST]{% if loop.last or loop.revindex == 2 and rest[-1]['role'] == 'assistant' %}{{ told }}{% endif %}"
    "{{ message['content'] }}[/INST]"
    "{% else %}{{ message['content'] }}</s>{% endif %}{% endfor %}"
)
MARKED = chatml().replace(
    "{{ message['content'] }}<|im_end|>\n{% else %}",
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}\n{% else %}",
)
UNTIL_ANSWERED = SYSTEM_LAST.replace("loop.last or loop.revindex == 2 and rest[-1]['role'] == 'assistant'", "loop.last")
# Of two questions these templates rewrite the first.
MOVES, LEAVES = (
    "a system prompt that moves to the last question",
    "a system prompt that leaves its question with the answer",
)
TRAITS = {
    "plain ChatML": Trait(chatml()),
    "a think block in front of every answer, which inference does not send": Trait(chatml(before=THINK), THINK + "{}<|im_end|>"),
    "an empty think block in front of the last answer": Trait(
        chatml(before=THINK, last_only=True), THINK + "{}<|im_end|>", apart=True
    ),
    "thinking switched off": Trait(SHOWS_THOUGHTS, apart=True),
    "thinking switched on": Trait(SHOWS_THOUGHTS, "\n</think>\n\n{}<|im_end|>", apart=True, arguments={"enable_thinking": True}),
    "BOS in the template": Trait(chatml(head="<s>"), tokenizer=partial(tiny_tokenizer, bos=True)),
    "BOS of the tokenizer that the template does not write": Trait(chatml(), tokenizer=partial(tiny_tokenizer, bos=True)),
    "an empty block of reasoning that is asked behind and not shown": Trait(chatml(ask=CLOSED.format(THINK)), apart=True),
    "the end of such a block that the whole shows too": Trait(
        chatml(before="</think>", ask=CLOSED.format("<think></think>")), apart=True
    ),
    "a header of the answer behind such a block": Trait(
        chatml(before="<|message|>", ask=CLOSED.format("<|channel|><|start|>")), "<|message|>{}<|im_end|>", apart=True
    ),
    "no system role": Trait(ONLY_USERS),
    "a system prompt that is left out": Trait(DEAF),
    "alternating roles enforced, spaces around the answer": Trait(BRACKETS, " {} </s>", eos="</s>"),
    "a space before the answer": Trait(chatml(before=" "), " {}<|im_end|>"),
    "an end without a named role": Trait(chatml(after="<end_of_turn>\n"), "{}<end_of_turn>"),
    "an end that is not EOS": Trait(chatml(), eos="<eos>"),
    "no end at all": Trait(chatml(after="\n"), "{}<eos>", apart=True, eos="<eos>"),
    "channels": Trait(CHANNELS, "<|channel|>final<|message|>{}<|return|>", apart=True, eos="<|return|>"),
    MOVES: Trait(SYSTEM_LAST, "{}</s>", eos="</s>"),
    LEAVES: Trait(UNTIL_ANSWERED, "{}</s>", eos="</s>"),
    "the template marks its answers": Trait(MARKED),
    "a token that spans prompt and answer": Trait(chatml(before="\n"), "\n{}<|im_end|>"),
    "SentencePiece": Trait(chatml(), tokenizer=sentencepiece_tokenizer),
    "SentencePiece, a space after every special token": Trait(
        chatml(), tokenizer=partial(sentencepiece_tokenizer, after_special=True)
    ),
}  # fmt: skip


def tokenizer_of(trait: Trait) -> Any:
    tokenizer = trait.tokenizer()
    more = (
        "</s>",
        "<eos>",
        "<end_of_turn>",
        "<|start|>",
        "<|channel|>",
        "<|message|>",
        "<|end|>",
        "<|return|>",
        "<|im_end|>",
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in more])
    tokenizer.eos_token = trait.eos
    tokenizer.chat_template = trait.template
    return tokenizer


def inference_prompt(form: PromptFormat, messages: list[dict[str, Any]]) -> list[int]:
    """The prompt of inference, by transformers' own call.

    A template without a place for a system prompt gets it with the question.
    """
    if messages[0]["role"] == "system":
        try:
            shown = form.tokenizer.apply_chat_template(messages, tokenize=False, **form.arguments)
        except TemplateError:
            # The template has no system role.
            shown = ""
        if messages[0]["content"] not in shown:
            first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
            messages = [first, *messages[2:]]
    return form.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **form.arguments)


def parts(form: PromptFormat, example: Tokenized) -> list[tuple[list[int], str]]:
    """The learned stretches of an example: the tokens in front of each, and its text."""
    answers, begin = [], None
    for place, label in enumerate([*example.labels, IGNORE]):
        if begin is None and label != IGNORE:
            begin = place
        elif begin is not None and label == IGNORE:
            answers.append((example.input_ids[:begin], form.tokenizer.decode(example.input_ids[begin:place])))
            begin = None
    return answers


def learned_of(form: PromptFormat, messages: list[dict[str, str]]) -> list[str]:
    return [answer for example in form.tokenize(record(messages)) for _, answer in parts(form, example)]


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("trait", TRAITS)
def test_an_answer_is_learned_behind_what_inference_sends(trait: str, name: str) -> None:
    of, messages = TRAITS[trait], CONVERSATIONS[name]
    form = PromptFormat(tokenizer_of(of), "chat", of.arguments)
    examples = form.tokenize(record(messages))
    learned = [part for example in examples for part in parts(form, example)]
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    assert [before for before, _ in learned] == [inference_prompt(form, messages[:place]) for place in answers]
    assert [answer for _, answer in learned] == [of.learned.format(messages[place]["content"]) for place in answers]
    if len(answers) > 1 and trait not in (MOVES, LEAVES):
        assert len(examples) == (len(answers) if of.apart else 1)
    assert form.prompt(record(messages)) == learned[-1][0]
    counted = [t for example in examples for t, s in zip(example.input_ids, example.scored, strict=True) if s]
    answer = "".join(messages[place]["content"] for place in answers)
    assert "".join(form.tokenizer.decode(counted).split()) == "".join(answer.split())
    assert sum(example.completion_bytes for example in examples) == len(answer.encode())
    checks.tokens_are_sound(examples, examples, form)
    checks.labels_are_the_answers([record(messages)], form)


@pytest.mark.parametrize("trait", [name for name, of in TRAITS.items() if not of.apart and name not in (MOVES, LEAVES)])
def test_a_template_that_rewrites_nothing_is_learned_as_it_writes_the_whole(trait: str) -> None:
    of, messages = TRAITS[trait], CONVERSATIONS["two turns"]
    form = PromptFormat(tokenizer_of(of), "chat", of.arguments)
    whole = form.tokenizer.apply_chat_template(messages, return_dict=False, **form.arguments)
    example = only(form, record(messages))
    assert whole[: len(example)] == example.input_ids
    assert not form.tokenizer.decode(whole[len(example) :]).strip()


def test_a_token_across_the_boundary_is_split_and_counted() -> None:
    """`assistant\n` and the answer's own newline are one token in the whole text."""
    of = TRAITS["a token that spans prompt and answer"]
    tokenizer = tokenizer_of(of)
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    form = PromptFormat(tokenizer, "chat")
    made = tokenizing.tokenize(form, [record(CONVERSATIONS["single"])], 512)
    ((before, answer),) = parts(form, made.examples[0])
    assert before == inference_prompt(form, CONVERSATIONS["single"][:1]) and answer == "\nLarkin.<|im_end|>"
    assert any("1 training examples: a token that would span" in line for line in made.in_words("training"))


THOUGHT = "<think>\nThe last one was prose.\n</think>\n\nLarkin, then."


def test_reasoning_stays_in_its_block_and_both_count() -> None:
    form = PromptFormat(tokenizer_of(Trait(SHOWS_THOUGHTS)), "chat", {"enable_thinking": True})
    messages = turns("Poetry?", THOUGHT)
    example = only(form, record(messages))
    ((before, answer),) = parts(form, example)
    assert (
        form.tokenizer.decode(before).endswith("<think>\n")
        and answer == THOUGHT.removeprefix("<think>\n") + "<|im_end|>"
    )
    assert example.completion_bytes == len("The last one was prose.Larkin, then.")
    checks.labels_are_the_answers([record(messages)], form)


def test_reasoning_that_the_prompt_closes_leaves_the_record_unshown() -> None:
    form = PromptFormat(tokenizer_of(Trait(SHOWS_THOUGHTS)), "chat")
    assert form.arguments == {"enable_thinking": False}
    with pytest.raises(
        Unshown, match="record r1: the template does not show answer 2 after the prompt that inference sends"
    ):
        form.tokenize(record(turns("Poetry?", THOUGHT)))


def test_a_prompt_that_always_opens_reasoning_gets_it_closed_where_the_template_shows_that() -> None:
    template = SHOWS_THOUGHTS.replace(
        SWITCH, "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ).replace(
        "{% if loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}",
        "{% if '</think>' in message['content'] %}<think>\n{{ thought }}\n</think>\n\n{% endif %}",
    )
    form = PromptFormat(tokenizer_of(Trait(template)), "chat")
    example = only(form, record(CONVERSATIONS["single"]))
    ((before, answer),) = parts(form, example)
    assert before == inference_prompt(form, CONVERSATIONS["single"][:1])
    assert answer == "\n</think>\n\nLarkin.<|im_end|>" and example.completion_bytes == len("Larkin.")


def test_of_a_conversation_that_makes_several_examples_the_last_alone_may_be_learned() -> None:
    of = TRAITS["thinking switched off"]
    form = PromptFormat(tokenizer_of(of), "chat")
    every, last = (
        tokenizing.tokenize(form, [record(CONVERSATIONS["two turns"])], 512, turns=how) for how in ("all", "last")
    )
    assert [example.name for example in every.examples] == ["r1#1", "r1#3"]
    assert last.examples == every.examples[1:]
    assert any("rewrites earlier turns: 1 conversations" in line for line in every.in_words("training"))


def test_what_a_template_cannot_show_costs_that_record_and_is_counted() -> None:
    template = chatml().replace(
        "{% for", "{% if messages | length > 3 %}{{ raise_exception('one question only') }}{% endif %}{% for", 1
    )
    form = PromptFormat(tokenizer_of(Trait(template)), "chat")
    records = [record(CONVERSATIONS[name]) for name in ("single", "two turns")]
    made = tokenizing.tokenize(form, records, 512)
    assert (len(made.examples), made.unshown_share) == (1, 0.5)
    (warning,) = made.in_words("training")
    assert (
        warning.startswith("WARNING: the model's chat template cannot show 1 of 2 training records")
        and "one question only" in warning
    )
    nothing = tokenizing.tokenize(form, records[1:], 512)
    with pytest.raises(ValueError, match="the model's chat template can show none of the 1 training records"):
        checks.something_is_shown(nothing, made)


@pytest.mark.parametrize(
    ("after", "eos", "learned"),
    [
        ("[/A]<|im_end|>\n", "<|im_end|>", "Larkin.[/A]<|im_end|>"),
        ('"<|im_end|>', "<|im_end|>", 'Larkin."<|im_end|>'),
        # The first end token that stops generation.
        ("<end_of_turn><eos>\n", "<eos>", "Larkin.<end_of_turn><eos>"),
    ],
)
def test_an_end_is_learned_once_whatever_stands_in_front_of_it(after: str, eos: str, learned: str) -> None:
    form = PromptFormat(tokenizer_of(Trait(chatml(after=after), eos=eos)), "chat")
    example = only(form, record(CONVERSATIONS["single"]))
    assert [answer for _, answer in parts(form, example)] == [learned]
    checks.end_stops_generation(form, {})


def test_an_end_behind_every_answer_is_learned_not_one_behind_the_last_alone() -> None:
    """Phi-3's form: <|end|> behind every turn, EOS once at the end."""
    template = chatml(after="<|end|>\n").replace(
        "{% if add_generation_prompt %}", "{% if not add_generation_prompt %}<eos>{% else %}"
    )
    form = PromptFormat(tokenizer_of(Trait(template, eos="<eos>")), "chat")
    for name in ("single", "two turns"):
        examples = form.tokenize(record(CONVERSATIONS[name]))
        answer = [answer for example in examples for _, answer in parts(form, example)]
        assert all(one.endswith(".<|end|>") for one in answer) and len(examples) == 1
    checks.end_stops_generation(form, {"end": "<|end|>"})


def test_of_several_tokens_behind_an_answer_the_one_that_ends_generation_is_learned() -> None:
    tokenizer = tokenizer_of(Trait(chatml(after="<|end|><end_of_turn>\n"), eos="<eos>"))
    form = PromptFormat(tokenizer, "chat", stops=[tokenizer.convert_tokens_to_ids("<end_of_turn>")])
    assert [answer for _, answer in parts(form, only(form, record(CONVERSATIONS["single"])))] == [
        "Larkin.<|end|><end_of_turn>"
    ]


@pytest.mark.parametrize(
    ("answer", "words"),
    [("Hi <|im_end|> there.", "holds the token that ends an answer"), ("\u0301", "becomes no token")],
)
def test_an_answer_that_cannot_be_learned_whole_is_unshown(answer: str, words: str) -> None:
    tokenizer = tokenizer_of(Trait(chatml()))
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    form = PromptFormat(tokenizer, "chat")
    with pytest.raises(Unshown, match=f"record r1: answer 2 {words}"):
        form.tokenize(record(turns("A book?", answer)))


def test_a_bos_that_a_user_writes_is_the_users() -> None:
    tokenizer = tokenizer_of(
        Trait("{{ bos_token }}" + "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}")
    )
    tokenizer.bos_token = "<s>"
    form = PromptFormat(tokenizer, "chat")
    example = only(form, record(turns("<s> is a tag?", "Yes.")))
    assert form.prefix and example.input_ids[:2] == form.prefix * 2
    checks.tokens_are_sound([example], [example], form)


def test_a_record_that_cannot_be_shown_is_no_shot() -> None:
    form = PromptFormat(tokenizer_of(Trait(BRACKETS, eos="</s>")), "chat")
    calling = {**record(CALLING, tools=json.dumps([TOOL])), "example_id": "calls", "language": "en"}
    plain = {**record(turns("Prose?", "Strout.")), "example_id": "plain", "language": "en"}
    asked_for = {**record(CONVERSATIONS["single"]), "language": "en"}
    assert [shot["example_id"] for shot in Shots([calling, plain], 2, form, room=1000).of(asked_for)] == ["plain"]


def test_an_argument_that_the_template_does_not_know_is_refused_with_those_it_knows() -> None:
    tokenizer = tokenizer_of(Trait(SHOWS_THOUGHTS))
    with pytest.raises(ValueError, match=r"template: thinking_budget: .* knows enable_thinking"):
        PromptFormat(tokenizer, "chat", {"thinking_budget": 3})


def test_a_variable_of_the_templates_own_is_no_switch() -> None:
    own = "{% if messages | length > 9 %}{% set thinking = 'long' %}{% endif %}{{ thinking }}" + chatml()
    assert PromptFormat(tokenizer_of(Trait(own)), "chat").arguments == {}
    given = "{% if thinking is not defined %}{% set thinking = true %}{% endif %}{{ thinking }}" + chatml()
    assert PromptFormat(tokenizer_of(Trait(given)), "chat").arguments == {"thinking": False}


def test_a_switch_that_the_template_gives_a_value_of_its_own_is_one() -> None:
    defaults = "{% set enable_thinking = enable_thinking | default(true) %}" + SHOWS_THOUGHTS
    assert PromptFormat(tokenizer_of(Trait(defaults)), "chat").arguments == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        pytest.param(
            UNTIL_ANSWERED + "{% if add_generation_prompt and enable_thinking is false %}<think></think>{% endif %}",
            CONVERSATIONS["system"],
            id="a question that is asked otherwise than it stands before its answer",
        ),
        pytest.param(
            chatml(ask=CLOSED.format("<think></think>")).replace(
                "{{ message['content'] }}<|im_end|>\n{% endif %}",
                "{{ message['content'] }}{% if loop.last %} /no_think{% endif %}<|im_end|>\n{% endif %}",
            ),
            CONVERSATIONS["single"],
            id="a word behind the last question",
        ),
    ],
)
def test_what_parts_before_the_answers_turn_is_unshown(template: str, messages: list[dict[str, Any]]) -> None:
    with pytest.raises(Unshown, match="after the prompt that inference sends"):
        PromptFormat(tokenizer_of(Trait(template, eos="</s>")), "chat").tokenize(record(messages))


def test_a_tag_that_begins_in_the_question_changes_nothing() -> None:
    plain = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
        "{{ '</s>' if message['role'] == 'assistant' else '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% if enable_thinking is false %}<think></think>\n{% endif %}{% endif %}"
    )
    form = PromptFormat(tokenizer_of(Trait(plain, eos="</s>")), "chat")
    for question in ("Is 3 < 5?", "Is it [so?", "Is it?"):
        assert learned_of(form, turns(question, "Yes.")) == ["Yes.</s>"]


def test_the_block_may_close_with_other_white_space_than_the_whole() -> None:
    template = chatml(before="</think>\n\n", ask=CLOSED.format("<think></think>\n"))
    form = PromptFormat(tokenizer_of(Trait(template)), "chat")
    assert learned_of(form, CONVERSATIONS["single"]) == ["Larkin.<|im_end|>"]


def test_what_a_single_turn_alone_shows_is_not_learned_of_a_later_one() -> None:
    template = UNTIL_ANSWERED.replace(
        "{% else %}{{ message['content'] }}</s>",
        "{% else %}{{ 'FIRST ' if loop.index0 == 1 }}{{ message['content'] }}</s>",
    )
    form = PromptFormat(tokenizer_of(Trait(template, eos="</s>")), "chat")
    with pytest.raises(Unshown):
        form.tokenize(record(CONVERSATIONS["system and two turns"]))
    with pytest.raises(Unshown):
        form.tokenize(record(turns(" ", "Yes.", system="Be brief.")))


@pytest.mark.parametrize(
    "asks",
    [
        "{% set form = '%d %B %Y' %}{{ strftime_now(form) }}",
        "{{ strftime_now(format='%d %B %Y') }}",
        "{% set now = strftime_now %}{{ now('%d %B %Y') }}",
    ],
)
def test_a_day_that_cannot_be_fixed_is_refused_and_otherwise_said(asks: str) -> None:
    tokenizer = tokenizer_of(Trait(asks + chatml()))
    with pytest.raises(ValueError, match="in a way that allows no fixed day"):
        PromptFormat(tokenizer, "chat", {"strftime_now": "2025-07-08"})
    # transformers' own function takes this one, too.
    if "format=" not in asks:
        assert PromptFormat(tokenizer, "chat").tells_the_day


@pytest.mark.parametrize(
    "asks",
    ["{{ strftime_now('%H:%M') }}", "{% if messages[0]['role'] == 'system' %}{{ strftime_now('%d %B') }}{% endif %}"],
)
def test_a_template_that_writes_the_time_or_the_day_of_some_prompts_alone_is_noticed(asks: str) -> None:
    assert PromptFormat(tokenizer_of(Trait(asks + chatml())), "chat").tells_the_day


def test_a_template_that_asks_the_day_is_told_the_one_that_was_chosen() -> None:
    tokenizer = tokenizer_of(Trait(TELLS_THE_DAY))
    todays, fixed = (PromptFormat(tokenizer, "chat", template) for template in ({}, {"strftime_now": "2025-07-08"}))
    assert (todays.tells_the_day, fixed.tells_the_day) == (True, False)
    prompt = fixed.tokenizer.decode(fixed.prompt(record(CONVERSATIONS["single"])))
    assert "Today: 08 July 2025" in prompt
    with pytest.raises(ValueError, match="strftime_now: got 'July'; expected a day"):
        PromptFormat(tokenizer, "chat", {"strftime_now": "July"})
    unasked = tokenizer_of(Trait(SHOWS_THOUGHTS))
    as_ever = PromptFormat(unasked, "chat").prompt(record(CONVERSATIONS["single"]))
    assert (
        PromptFormat(unasked, "chat", {"strftime_now": "2025-07-08"}).prompt(record(CONVERSATIONS["single"])) == as_ever
    )


# --- tool calls

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"title": "여름의 책", "copies": 3}}}
CALLING = [
    {"role": "user", "content": "In stock?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "3 copies"},
    {"role": "assistant", "content": "Yes, three."},
]
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}<tool_call>ARGUMENTS</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
AS_OBJECT = WITH_TOOLS.replace("ARGUMENTS", "{{ call['function'] | tojson }}")
AS_TEXT = WITH_TOOLS.replace("ARGUMENTS", "{{ call['function']['name'] + call['function']['arguments'] }}")


@pytest.mark.parametrize("template", [AS_OBJECT, AS_TEXT])
def test_a_call_is_learned_and_its_result_is_context(template: str) -> None:
    form = PromptFormat(tokenizer_of(Trait(template)), "chat")
    example = only(form, record(CALLING, tools=json.dumps([TOOL])))
    (_, called), (before, answered) = parts(form, example)
    assert "look_up" in called and "여름의 책" in called and called.endswith("</tool_call><|im_end|>")
    assert answered == "Yes, three.<|im_end|>" and "3 copies" in form.tokenizer.decode(before)
    # The declared tool.
    assert '"look_up"' in form.tokenizer.decode(before).split("<|im_end|>")[0]
    # Each model spells a call in its own way.
    assert example.completion_bytes == len("Yes, three.")


def test_text_beside_a_call_is_learned_and_counts() -> None:
    form = PromptFormat(tokenizer_of(Trait(AS_OBJECT)), "chat")
    # The word also stands in the call.
    messages = [CALLING[0], {**CALLING[1], "content": "title"}, *CALLING[2:]]
    example = only(form, record(messages, tools=json.dumps([TOOL])))
    assert example.completion_bytes == len("title" + "Yes, three.")
    checks.labels_are_the_answers([record(messages, tools=json.dumps([TOOL]))], form)


@pytest.mark.parametrize(
    ("template", "missing"),
    [
        pytest.param(chatml(), "the call of 'look_up'", id="no calls"),
        pytest.param(
            WITH_TOOLS.replace("ARGUMENTS", "{{ call['function']['name'] }}"), "the call of 'look_up'", id="no arguments"
        ),
        pytest.param(
            WITH_TOOLS.replace("ARGUMENTS", "{{ call['function']['name'] }} {{ call['function']['arguments'].values() | list }}"),
            "the call of 'look_up': 'title' is missing",
            id="no names of arguments",
        ),
        pytest.param(AS_OBJECT.replace("{{ tools | tojson }}", ""), "the declared tool 'look_up'", id="no declarations"),
        pytest.param(
            AS_OBJECT.replace("{{ message['content'] }}", "{% if message['role'] != 'tool' %}{{ message['content'] }}{% endif %}"),
            "the result of a call",
            id="no results",
        ),
    ],
)  # fmt: skip
def test_a_template_that_cannot_show_them_leaves_the_record_unshown(template: str, missing: str) -> None:
    form = PromptFormat(tokenizer_of(Trait(template)), "chat")
    with pytest.raises(Unshown, match=f"record r1: the template does not show {missing}"):
        form.tokenize(record(CALLING, tools=json.dumps([TOOL])))


def test_alpaca_shows_no_calls() -> None:
    with pytest.raises(Unshown, match="record r1: it calls tools, which Alpaca's format cannot show"):
        PromptFormat(tiny_tokenizer(), "alpaca").tokenize(record(CALLING))


# --- the shipped records, with a stand-in for each kind

LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ strftime_now('%d %b %Y') if loop.first }}{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TURN = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ 'model' if message['role'] == 'assistant' else 'user' }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TELLS_THE_DAY = "<|im_start|>system\nToday: {{ strftime_now('%d %B %Y') }}<|im_end|>\n" + SHOWS_THOUGHTS
ENDS_TWICE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{{ '<|assistant|>' if add_generation_prompt else eos_token }}"
)
KINDS = {
    "gemma-2b-it": (TURN, "<eos>"),
    "gemma-3-270m-it": (TURN, "<eos>"),
    "gemma-3-1b-it": (TURN, "<eos>"),
    "llama-3.2-1b-instruct": (LLAMA_3, "<|eot_id|>"),
    "qwen3-0.6b": (SHOWS_THOUGHTS, "<|im_end|>"),
    "qwen3-1.7b": (SHOWS_THOUGHTS, "<|im_end|>"),
    "smollm3-3b": (TELLS_THE_DAY, "<|im_end|>"),
    "phi-4-mini": (ENDS_TWICE, "<|endoftext|>"),
    "smollm2-135m": (chatml(), "<|im_end|>"),
    "smollm2-360m": (chatml(), "<|im_end|>"),
}
# Models that are not made from another, whose record they share.
SHIPPED = {
    name: model for name, model in configuration.load(PROJECT / "experiments.yaml").models.items() if not model.parent
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_records_end_is_learned_and_its_bos_stands_in_front(name: str) -> None:
    model = SHIPPED[name]
    template, eos = KINDS.get(name, ("", model.end or ""))
    tokenizer = tiny_tokenizer(bos=model.bos != "none" and model.prompt == "alpaca")
    more = dict.fromkeys(
        token
        for token in (eos, model.end, model.bos, "<start_of_turn>", "<|start_header_id|>", "<|end_header_id|>")
        if token
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in more if token != "none"])
    tokenizer.eos_token = eos
    if model.bos != "none":
        tokenizer.bos_token = model.bos if model.prompt == "chat" else "<s>"
    tokenizer.chat_template = template or None
    form = PromptFormat(tokenizer, model.prompt, model.template)
    (example,) = form.tokenize(record(CONVERSATIONS["Korean and numbers"]))
    assert tokenizer.decode([example.labels[-1]]) == model.end
    if model.prompt == "chat":
        checks.tokenizer_is_as_recorded(form, {"bos": model.bos, "end": model.end})
    checks.end_stops_generation(form, {"end": model.end})
    checks.tokens_are_sound([example], [example], form)
    assert not form.tells_the_day


# --- real tokenizers, where a folder has them

REAL = Path(os.environ.get("FEATHERWEIGHT_TOKENIZERS") or "/nowhere")
FOLDERS = sorted(path.parent for path in REAL.rglob("tokenizer_config.json")) if REAL.is_dir() else []


@pytest.mark.parametrize("folder", FOLDERS, ids=[str(folder.relative_to(REAL)) for folder in FOLDERS])
def test_a_real_tokenizer_is_asked_as_inference_asks_it(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    form = PromptFormat(tokenizer, "chat" if tokenizer.chat_template else "alpaca")
    unshown = [why for messages in CONVERSATIONS.values() if (why := _unlike_inference(form, messages))]
    if unshown:
        pytest.skip(f"{len(unshown)} of {len(CONVERSATIONS)} conversations are unshown: {unshown[0]}")


def _unlike_inference(form: PromptFormat, messages: list[dict[str, Any]]) -> str | None:
    """The reason why the conversation is not shown, if any; shown parts must equal inference's
    prompt."""
    tokenizer = form.tokenizer
    try:
        examples = form.tokenize(record(messages))
    except Unshown as error:
        return str(error)
    learned = [part for example in examples for part in parts(form, example)]
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    for (before, answer), place in zip(learned, places, strict=True):
        assert messages[place]["content"] in answer
        assert answer.endswith(tokenizer.decode([form.end_of_answer]))
        if form.style == "chat":
            assert before == inference_prompt(form, messages[:place])
    checks.tokens_are_sound(examples, examples, form)
    checks.labels_are_the_answers([record(messages)], form)
    return None
