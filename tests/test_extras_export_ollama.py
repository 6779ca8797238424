"""A Modelfile holds the exact prompt of the training, or is not written."""

import json
import os
import re
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.errors import UnavailableError
from pipelines.extras.export import command, go_template, ollama
from pipelines.extras.export.cell import ExportRequest, export
from pipelines.extras.export.gguf_file import write_gguf
from pipelines.extras.export.go_template import literal, render
from pipelines.lake.paths import PROJECT
from pipelines.records.reading import read_corpus
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train
from pipelines.train.trainer.loading import load_tokenizer
from pipelines.train.trainer.prompts import PromptFormat
from tests.in_process import InProcess, clean_for
from tests.project import TinyProject
from tests.test_train_templates import (
    CONVERSATIONS,
    LEAVES,
    LLAMA_3,
    MOVES,
    TELLS_THE_DAY,
    TRAITS,
    TURN,
    Trait,
    record,
    tokenizer_of,
    turns,
)
from tests.tiny import save_tiny, tiny_tokenizer

CORPUS = read_corpus(PROJECT / "data" / "corpus.json")

DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You are {{ '{{ \"small\" }}' }}, née petit\u00a0modèle.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MORE = {
    "a system prompt of its own where none is given": Trait(DEFAULT_SYSTEM),
    "Gemma's turns": Trait(TURN, eos="<end_of_turn>"),
    "Llama 3's turns": Trait(LLAMA_3, arguments={"strftime_now": "2024-07-26"}),
}
REFUSED = {MOVES, LEAVES}
THREE = {"three turns": turns("One?", "1.", "Two?", "2.", "Three?", "3.", system="Count.")}


def form_of(trait: Trait) -> PromptFormat:
    return PromptFormat(tokenizer_of(trait), "chat", trait.arguments)


FORMS = {
    **{name: lambda trait=trait: form_of(trait) for name, trait in {**TRAITS, **MORE}.items() if name not in REFUSED},
    "Alpaca": lambda: PromptFormat(tiny_tokenizer(chat=False), "alpaca"),
}


def cases(form: PromptFormat) -> list[tuple[str, list[dict[str, str]], str]]:
    """The template of a form, its messages, and the form's own prompt for them."""
    template = ollama.shape_of(form).to_go()
    conversations = {**CONVERSATIONS, **THREE}.values()
    return [(template, messages[:-1], form.prompt_text(record(messages))) for messages in conversations]


@pytest.mark.parametrize("name", FORMS)
def test_the_template_says_what_training_said(name: str) -> None:
    for template, messages, expected in cases(FORMS[name]()):
        assert render(template, messages) == expected


GO = """
package main

import ("encoding/json"; "os"; "strings"; "text/template")

type Message struct{ Role, Content string }
type Case struct { Template, System string; Messages []*Message }

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil { panic(err) }
	said := []string{}
	for _, one := range cases {
		var b strings.Builder
		made := template.Must(template.New("").Option("missingkey=zero").Parse(one.Template))
		given := map[string]any{"System": one.System, "Messages": one.Messages, "Response": ""}
		if err := made.Execute(&b, given); err != nil { panic(err) }
		said = append(said, b.String())
	}
	json.NewEncoder(os.Stdout).Encode(said)
}
"""


def test_go_renders_the_templates_as_we_do(tmp_path: Path) -> None:
    """Ollama's use of a template that names .Messages, by Go's own library."""
    if not (go := shutil.which("go")):
        pytest.skip("Go is not installed")
    inputs, expected = [], []
    for form in FORMS.values():
        for template, messages, prompt in cases(form()):
            system, merged = go_template._collated(messages)
            inputs.append({"Template": template, "System": system, "Messages": merged})
            expected.append(prompt)
    (tmp_path / "main.go").write_text(GO, encoding="utf-8")
    env = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off"}
    ran = subprocess.run(
        [go, "run", "main.go"], cwd=tmp_path, input=json.dumps(inputs), capture_output=True, text=True, env=env
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == expected


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_prompt_that_no_template_can_say_is_refused(name: str) -> None:
    with pytest.raises(
        UnavailableError,
        match=r"cannot express this prompt: it does not write every turn .*in their order.*--gguf alone",
    ):
        ollama.shape_of(form_of(TRAITS[name]))


def test_a_prompt_that_holds_the_day_is_refused_until_the_day_is_fixed() -> None:
    with pytest.raises(UnavailableError, match=r"contains the current date.*strftime_now"):
        ollama.shape_of(form_of(Trait(TELLS_THE_DAY)))
    shape = ollama.shape_of(form_of(Trait(TELLS_THE_DAY, arguments={"strftime_now": "2025-07-08"})))
    assert "Today: 08 July 2025" in shape.opening


@pytest.mark.parametrize(
    "text", ["plain\n\ttext", '{{ "a" }} }}', '"""', "{", "\u00a0\u200b\r\x00", "｜한국어｜ 😀 \\n", "\U000e0001"]
)
def test_any_text_is_written_so_that_go_and_ollamas_reader_take_it_as_it_is(text: str) -> None:
    written = literal(text)
    assert render(written, []) == text
    assert '"""' not in written
    assert written.replace("\n", "").replace("\t", "").isprintable()


def test_an_action_that_is_not_ours_is_refused() -> None:
    for template in (
        "{{ .Tools }}",
        "{{ if .Tools }}a{{ end }}",
        "{{ if .System }}a",
        "{{ range .Messages }}{{ end }}",
        "a{{ end }}",
    ):
        with pytest.raises(ValueError, match=r"not known here|end is missing|end without"):
            render(template, [{"role": "user", "content": "a"}])


def read_modelfile(text: str) -> dict[str, list[str]]:
    """Parse the few instructions that we write, as Ollama does."""
    instructions: dict[str, list[str]] = {}
    for name, long, quoted, bare in re.findall(
        r'^(FROM|TEMPLATE|SYSTEM|PARAMETER stop) (?:"""(.*?)"""|"(.*?)"|(\S+))$', text, re.DOTALL | re.MULTILINE
    ):
        instructions.setdefault(name, []).append(long or quoted or bare)
    return instructions


@pytest.fixture
def tiny(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model's folder.

    Its own tokenizer replaces llama.cpp's; other tests hold the two equal.
    """
    tokenizer: Any = load_tokenizer(tiny_folder)
    reads = SimpleNamespace(tokenize=lambda text, *, add_special: tokenizer(text, add_special_tokens=False).input_ids)
    monkeypatch.setattr(ollama, "LlamaCpp", lambda *_args, **_options: nullcontext(reads))
    return tiny_folder


def test_a_modelfile_says_prompt_stop_and_system(tiny: Path, tmp_path: Path) -> None:
    folder, gguf = tiny, tmp_path / "tiny.gguf"
    form = PromptFormat(load_tokenizer(folder), "chat")
    records = [record(messages) for messages in CONVERSATIONS.values()]
    system = 'Be brief.\nSay "yes".\nNo more'
    made = ollama.write_modelfile(form, gguf, tmp_path / "Modelfile", records=records, system=system)
    modelfile = read_modelfile((tmp_path / "Modelfile").read_text(encoding="utf-8"))
    assert modelfile == {
        "FROM": ["./tiny.gguf"],
        "TEMPLATE": [made.template],
        "PARAMETER stop": ["<|im_end|>"],
        "SYSTEM": [system],
    }
    unsayable = ollama.write_modelfile(form, gguf, tmp_path / "Modelfile", records=records, system='"""')
    assert unsayable.system is None and "send it with each conversation" in unsayable.notes[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["Modelfile"]


@pytest.mark.slow
@pytest.mark.parametrize("writes", [True, False])
def test_the_token_that_begins_a_text_is_sent_once_or_the_export_refused(tmp_path: Path, writes: bool) -> None:
    """llama.cpp adds <s> itself; a template that does not write it was trained without it."""
    folder, gguf = save_tiny(tmp_path / "tiny"), tmp_path / "tiny.gguf"
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = ("<s>" if writes else "") + tokenizer.chat_template
    tokenizer.add_bos_token = True
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text(encoding="utf-8")), "add_bos_token": True}), encoding="utf-8"
    )
    write_gguf(folder, gguf, "F32", name="tiny")
    form, records = PromptFormat(load_tokenizer(folder), "chat"), [record(CONVERSATIONS["system and two turns"])]
    if not writes:
        with pytest.raises(UnavailableError, match=r"would start its prompt with the tokens .*trained with"):
            ollama.write_modelfile(form, gguf, tmp_path / "Modelfile", records=records, system=None)
        assert not (tmp_path / "Modelfile").exists()
        return
    made = ollama.write_modelfile(form, gguf, tmp_path / "Modelfile", records=records, system=None)
    assert "<s>" not in made.template and form.prompt_text(records[0]).startswith("<s>")


@pytest.mark.parametrize(
    ("systems", "common"), [(["a", "a"], "a"), (["a", "b"], None), (["a", None], None), ([None, None], None)]
)
def test_a_system_prompt_is_the_models_where_all_records_have_it(systems: list[str | None], common: str | None) -> None:
    records = [record(turns("A?", "B.", system=system)) for system in systems]
    assert ollama.common_system(records) == common


def test_a_record_that_would_be_sent_otherwise_is_named(tiny: Path, tmp_path: Path) -> None:
    folder, gguf = tiny, tmp_path / "tiny.gguf"
    tokenizer: Any = load_tokenizer(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']", "message['content'] | replace('_', ' ')"
    )
    records = [record(turns("plain", "a")), record(turns("under_scored", "a"), example_id="r2")]
    with pytest.raises(UnavailableError, match="record r2 differently than in training: '_scored"):
        ollama.write_modelfile(
            PromptFormat(tokenizer, "chat"), gguf, tmp_path / "Modelfile", records=records, system=None
        )


@pytest.mark.slow
def test_a_cell_is_exported_with_a_modelfile_and_the_system_prompt_of_its_records(
    project: TinyProject, tmp_path: Path
) -> None:
    conversations = [turns(one["instruction"], one["output"], system="You are brief.") for one in CORPUS[:40]]
    file = tmp_path / "records.jsonl"
    file.write_text("\n".join(json.dumps({"messages": messages}) for messages in conversations), encoding="utf-8")
    project.change(sources={"corpus": False, "files": [str(file)]})
    resolved, key = clean_for(project).resolved(), project.key("lora-r8")
    hooks = RunHooks(say=lambda _message: None, launcher=InProcess())
    attempt, _ = train(resolved, key, hooks=hooks)
    assert attempt.status == "ok", attempt.result.detail
    made = export(resolved, key, ExportRequest(merged=False, gguf=["F16"], ollama=True), hooks=hooks)
    assert made.ok, made.result.detail
    read = read_modelfile(made.modelfiles["F16"].read_text(encoding="utf-8"))
    assert read["SYSTEM"] == ["You are brief."] and read["FROM"] == [f"./{made.gguf['F16'].name}"]
    files = command.files_of(made, ExportRequest(merged=False, gguf=["F16"]))
    assert set(files) == {"README.md", "Modelfile", made.gguf["F16"].name}
    assert "library_name: gguf" in files["README.md"].read_text(encoding="utf-8")
    assert f"llama-server --model {made.gguf['F16'].name}" in files["README.md"].read_text(encoding="utf-8")
