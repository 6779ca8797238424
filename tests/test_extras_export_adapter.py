"""An exported adapter: PEFT loads it, and its card names the base as others know it, without a
trace of this machine."""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.errors import UsageError, WorkError
from pipelines.extras.export import adapter, command, model_card
from pipelines.extras.export.arguments import add_arguments
from pipelines.extras.export.cell import Export, ExportRequest, export
from pipelines.extras.export.modelfile import OURS, Modelfile, is_ours
from pipelines.lake.files import write_json
from pipelines.lake.weights_record import RECORD
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train
from pipelines.train.provenance import Base, in_code, in_prose
from pipelines.weights.store import source_id
from tests.in_process import InProcess, clean_for
from tests.project import MODEL, TinyProject
from tests.tiny import sentencepiece_tokenizer, tiny_tokenizer

HUB, COMMIT = "nobody/tiny-chat", "0a" * 20
WATCH = RunHooks(say=lambda _message: None, launcher=InProcess())
NOTE = "A <b>note</b> with `code`, a [link](https://example.org) and | a bar.\n# no heading"


@pytest.fixture
def from_hub(project: TinyProject) -> TinyProject:
    """The project with its model as a fetch from the hub leaves it."""
    weights = Path(str(project.now().experiments.model(MODEL).source.path))
    folder = project.data.root / "models" / MODEL
    shutil.copytree(weights, folder)
    project.change(models={MODEL: {"source": None}})
    project.change(models={MODEL: {"source": {"hub": HUB, "revision": COMMIT}, "license": "apache-2.0", "note": NOTE}})
    known = {"source_id": source_id(project.now().experiments.model(MODEL)), "commit": COMMIT}
    write_json(folder / RECORD, {"source": {"hub": HUB, "revision": COMMIT}, **known})
    return clean_for(project)


def test_an_adapter_is_what_peft_loads_over_its_base(from_hub: TinyProject) -> None:
    resolved, key = from_hub.resolved(), from_hub.key("lora-r8")
    attempt = train(resolved, key, hooks=WATCH)[0]
    row = {
        "model": MODEL,
        "method": "lora-r8",
        "run_id": attempt.run_id,
        "status": "ok",
        "eval_bits_per_byte": 1.25,
        "seeds": 1,
    }
    made = export(resolved, key, ExportRequest(merged=False, adapter=True, row=row), hooks=WATCH)
    assert made.ok and made.adapter and made.merged is None, made.result.detail
    folder = made.adapter

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == (HUB, COMMIT)
    settings = json.loads((folder / adapter.SETTINGS).read_text(encoding="utf-8"))
    assert settings["recipe"]["rank"] == 8 and settings["run_id"] == attempt.run_id and settings["torch_version"]
    base_folder = str(from_hub.data.root / str(attempt.spec.weights))
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            text = path.read_text(encoding="utf-8")
            assert str(from_hub.data.root) not in text and str(attempt.spec.weights) not in text, path

    card = ModelCard.load(folder / "README.md")
    head = yaml.safe_load(card.content.split("---")[1])
    assert {name: head[name] for name in ("base_model", "base_model_relation", "license", "library_name", "pipeline_tag")} == {
        "base_model": HUB, "base_model_relation": "adapter", "license": "apache-2.0", "library_name": "peft",
        "pipeline_tag": "text-generation",
    }  # fmt: skip
    assert f'from_pretrained("{HUB}", revision="{COMMIT}")' in card.content
    assert "| eval_bits_per_byte | `1.25` |" in card.content
    assert r"\<b\>note\</b\>" in card.content and "\n# no heading" not in card.content

    base = AutoModelForCausalLM.from_pretrained(base_folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template and tokenizer.get_vocab() == AutoTokenizer.from_pretrained(base_folder).get_vocab()
    ids = torch.tensor([tokenizer("What is a lake?").input_ids])
    with torch.no_grad():
        plain = base(ids).logits
        attached = PeftModel.from_pretrained(base, folder)(ids).logits
    assert not torch.equal(plain, attached)

    # An export that is current is not written again.
    again = ExportRequest(merged=False, adapter=True, row=row, reuse=True)
    written = (folder / "README.md").stat().st_mtime_ns
    assert export(resolved, key, again, hooks=WATCH).folder == made.folder
    assert (folder / "README.md").stat().st_mtime_ns == written
    changed = export(resolved, key, replace(again, row={**row, "eval_bits_per_byte": 1.5}), hooks=WATCH)
    assert changed.folder != made.folder and "| `1.5` |" in (folder / "README.md").read_text(encoding="utf-8")
    shutil.rmtree(folder)
    assert export(resolved, key, again, hooks=WATCH).ok and folder.exists()

    # Foreign files are never replaced.
    (folder / RECORD).unlink()
    with pytest.raises(UsageError, match=r"adapter exists and is not one of our exports.*--output"):
        export(resolved, key, ExportRequest(merged=False, adapter=True), hooks=WATCH)


TEXTS = ["What is a lake?", "책 3권, 36,000원이에요.", " leading <|im_end|> and  two", "naïve 😀\n\n  x"]
# A user's script with PEFT and some version of transformers.
READS = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, base, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
asked = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}] for text in texts]
chats = [tokenizer.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in asked]
found = {"ids": [tokenizer(text)["input_ids"] for text in texts], "chats": [tokenizer(one)["input_ids"] for one in chats]}
found["inputs"] = sorted(tokenizer(texts[0]))
if base:
    from peft import PeftModel
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    with torch.no_grad():
        found["logits"] = model(torch.tensor([found["chats"][0]])).logits[0, -1, :20].tolist()
print(json.dumps(found))
"""


def read_by(python: str, folder: Path, base: Path | str = "") -> dict[str, Any]:
    command = [python, "-c", READS, str(folder), str(base), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_transformers_4_57_reads_the_same_adapter(from_hub: TinyProject, transformers_4: str) -> None:
    resolved, key = from_hub.resolved(), from_hub.key("lora-r8")
    attempt = train(resolved, key, hooks=WATCH)[0]
    made = export(resolved, key, ExportRequest(merged=False, adapter=True), hooks=WATCH)
    assert made.adapter, made.result.detail
    base = from_hub.data.root / str(attempt.spec.weights)
    ours, older = (read_by(python, made.adapter, base) for python in (sys.executable, transformers_4))
    assert (ours["ids"], ours["chats"], ours["inputs"]) == (older["ids"], older["chats"], older["inputs"])
    assert ours["logits"] == pytest.approx(older["logits"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bos", "SentencePiece", "SentencePiece, spaces"])
def test_transformers_4_57_makes_the_same_tokens(tmp_path: Path, kind: str, transformers_4: str) -> None:
    made = {
        "bos": partial(tiny_tokenizer, bos=True),
        "SentencePiece": sentencepiece_tokenizer,
        "SentencePiece, spaces": partial(sentencepiece_tokenizer, after_special=True),
    }
    tokenizer = made[kind]()
    trained = tmp_path / "trained"
    trained.mkdir()
    for name in (adapter.CONFIG, adapter.WEIGHTS):
        (trained / name).write_text("{}", encoding="utf-8")
    folder = adapter.write(trained, tmp_path / "adapter", tokenizer, Base("nobody/tiny"))
    ours, older = (read_by(python, folder) for python in (sys.executable, transformers_4))
    assert ours == older and ours["inputs"] == ["attention_mask", "input_ids"]
    assert ours["ids"] == [tokenizer(text).input_ids for text in TEXTS]


def test_what_has_no_adapter_says_so(project: TinyProject) -> None:
    resolved = clean_for(project).resolved()
    train(resolved, project.key("base"), hooks=WATCH)
    with pytest.raises(UsageError, match="base trains nothing, so there is no adapter: use --merge"):
        export(resolved, project.key("base"), ExportRequest(adapter=True))


def test_an_adapter_without_its_weights_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(WorkError, match=r"lacks adapter_model.safetensors: train the cell again"):
        adapter.write(tmp_path / "model", tmp_path / "adapter", None, Base("nobody/tiny"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


ORIGIN = {"model": "tiny", "method": "m", "seed": 1, "run_id": "r"}


def spec(**more: Any) -> dict[str, Any]:
    recipe = {"kind": "lora", "rank": 8, "alpha": 32, "quantization": None}
    return {"origin": ORIGIN, "recipe": recipe, "made": "", "note": None, "name": "tiny m", "data": [], **more}


def test_a_cards_metrics_stand_where_a_hub_looks_for_them() -> None:
    card = model_card.card(
        "adapter", spec(evaluated={"eval_bits_per_byte": 1.5, "chrf": 40.0, "bleu": None}), {}, Base("a/b", None, True)
    )
    metadata: Any = ModelCard(card).data
    read = {(one.metric_type, one.metric_value) for one in metadata.eval_results}
    assert read == {("eval_bits_per_byte", 1.5), ("chrf", 40.0)}
    assert "model-index" not in model_card.card("merged", spec(), {}, Base("a/b", None, True))


def test_a_base_that_no_hub_has_is_not_named_as_if_one_had() -> None:
    card = model_card.card("adapter", spec(), {}, Base("mine"))
    assert "base_model" not in card.split("---")[1] and "PATH_OF_THE_BASE" in card and "no known name on a hub" in card
    quantized = {"kind": "lora", "rank": 8, "alpha": 32, "quantization": "nf4"}
    card = model_card.card("adapter", spec(recipe=quantized), {}, Base("a/b", None, True))
    assert 'load_in_4bit=True, bnb_4bit_quant_type="nf4"' in card and "quantization_config=quantized" in card


def test_text_of_others_stays_text_in_a_card() -> None:
    evil = "x: [y]\n---\n# <script>alert(1)</script>"
    data = [{"source": evil, "generated": False, "records": 3}, {"source": "a/b", "generated": False, "records": 1}]
    card = model_card.card("merged", spec(data=data, note=evil, name="tiny m"), {}, Base("a/b", None, True, "x: y"))
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(head)["license"] == "x: y" and yaml.safe_load(head)["datasets"] == ["a/b"]
    assert "\n# <script>" not in body and r"\<script\>" in body
    assert in_code("a`|`\nb") == "`a b`" and in_prose("- *a*") == r"\- \*a\*"


def test_a_token_is_asked_for_before_anything_is_done(project: TinyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(project.data.root / "no-token"))
    with pytest.raises(UsageError, match="no token: set HF_TOKEN"):
        command.run(project.now(), [project.key("base")], parser.parse_args(["--push", "a/b", "--yes"]), list)


def test_a_modelfile_of_somebody_is_not_written_over(project: TinyProject, tmp_path: Path) -> None:
    resolved = clean_for(project).resolved()
    train(resolved, project.key("base"), hooks=WATCH)
    request = ExportRequest(merged=False, gguf=["F16"], ollama=True, output=tmp_path)
    (tmp_path / "Modelfile").write_text("FROM mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"Modelfile exists and is not one of our exports.*--output"):
        export(resolved, project.key("base"), request, hooks=WATCH)
    assert (tmp_path / "Modelfile").read_text(encoding="utf-8") == "FROM mine"
    (tmp_path / "Modelfile").write_text(Modelfile("a.gguf", "", [], None, [OURS]).text(), encoding="utf-8")
    assert is_ours(tmp_path / "Modelfile")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--push a/b --adapter --merge", "holds an adapter or merged weights"),
        ("--yes", "--yes goes with --push"),
        ("--public", "--public goes with --push"),
        ("--push nothing", r"got 'nothing'; expected OWNER/NAME"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_done(
    project: TinyProject, line: str, words: str
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(UsageError, match=words):
        command.run(project.now(), [project.key("base")], parser.parse_args(line.split()), list)


@pytest.mark.parametrize(
    ("line", "merged", "gguf"),
    [("", True, []), ("--adapter", False, []), ("--gguf Q8_0", False, ["Q8_0"]), ("--ollama", False, ["F16"]),
     ("--ollama --gguf Q8_0 --merge", True, ["Q8_0"])],
)  # fmt: skip
def test_what_is_not_asked_for_is_not_made(line: str, merged: bool, gguf: list[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    request = command._request(parser.parse_args(line.split()))
    assert (request.merged, list(request.gguf)) == (merged, gguf)


def test_a_repository_gets_a_folders_files_and_what_lies_beside(tmp_path: Path) -> None:
    for name in (
        "adapter/README.md",
        "adapter/adapter_config.json",
        "merged/config.json",
        "a.gguf",
        "a.md",
        "Modelfile",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    gguf, modelfile = {"F16": tmp_path / "a.gguf"}, {"F16": tmp_path / "Modelfile"}

    def paths(
        merged: Path | None, gguf: dict[str, Path], folder: Path | None, request: ExportRequest
    ) -> dict[str, str]:
        made = Export(None, tmp_path, merged, gguf, folder, modelfile if gguf else {})  # pyright: ignore[reportArgumentType]
        return {name: path.relative_to(tmp_path).as_posix() for name, path in command.files_of(made, request).items()}

    alone = {"README.md": "adapter/README.md", "adapter_config.json": "adapter/adapter_config.json"}
    assert paths(None, {}, tmp_path / "adapter", ExportRequest(merged=False, adapter=True)) == alone
    beside = {"a.gguf": "a.gguf", "Modelfile": "Modelfile"}
    assert paths(None, gguf, tmp_path / "adapter", ExportRequest(merged=False, adapter=True)) == {**alone, **beside}
    # A merged folder that served only the GGUF file is not uploaded.
    assert paths(tmp_path / "merged", gguf, None, ExportRequest(merged=False)) == {"README.md": "a.md", **beside}
    assert "config.json" in paths(tmp_path / "merged", gguf, None, ExportRequest())


def test_an_export_that_cannot_be_finished_leaves_nothing_behind(tmp_path: Path) -> None:
    """A disk that fills while the last small files are written, say."""
    folder = tmp_path / "merged"
    with adapter.unfinished(folder) as partial:
        partial.mkdir()
    with pytest.raises(FileNotFoundError):
        adapter.finish(partial, folder, {"README.md": "a card", "tokenizer.model": tmp_path / "nowhere"})
    assert not list(tmp_path.iterdir())
