"""Tasks of lm-evaluation-harness on a loaded model.

Where the extra `benchmarks` is installed, the harness itself runs.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import UnavailableError
from pipelines.evaluate import benchmarks_harness as harness
from pipelines.evaluate.answering import PromptedModel
from pipelines.evaluate.benchmarks import BenchmarkSpec
from pipelines.evaluate.benchmarks_run import own_rows
from pipelines.settings import benchmarks
from pipelines.train.trainer.prompts import PromptFormat
from tests.tiny import TARGETS, tiny_model, tiny_tokenizer

needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="the extra `benchmarks` is not installed")
RECIPE: dict[str, Any] = {"kind": "none", "precision": "fp32", "quantization": None}


def sample(**values: Any) -> dict[str, Any]:
    """A question as the harness logs it."""
    return {
        "doc_id": 3,
        "target": "1",
        "arguments": [("Q", " yes"), ("Q", " no")],
        "filtered_resps": [(-1.0, False), (-2.0, True)],
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
        "acc": 0.0,
        "acc_norm": 1.0,
    } | values


def rows(*samples: dict[str, Any], several: bool = False) -> list[dict[str, Any]]:
    benchmark = BenchmarkSpec("mine", "mine.yaml", ships=False, limit=None, shots=None)
    return list(harness._rows(benchmark, "a_task", samples, "lm-eval 0", several=several))


# rows from its log


def test_a_choice_keeps_its_likelihoods_and_the_metric_that_is_shown_decides() -> None:
    (row,) = rows(sample())
    assert (row["correct"], row["metric"], row["item_id"], row["category"]) == (True, "acc_norm,none", "3", None)
    assert (row["prompt"], row["choices"], row["reference"]) == ("Q", '[" yes", " no"]', "no")
    assert json.loads(row["loglikelihoods"]) == [-1.0, -2.0]
    (row,) = rows(sample(metrics=["acc"]), several=True)
    assert (row["correct"], row["metric"], row["item_id"], row["category"]) == (False, "acc,none", "a_task/3", "a_task")


def test_an_answer_in_words_is_kept_and_the_first_filter_counts() -> None:
    fields = {"arguments": [("Q", {"until": []})], "filtered_resps": ["42"], "target": "42", "metrics": ["exact_match"]}
    scored = rows(
        sample(**fields, filter="strict", exact_match=1.0), sample(**fields, filter="flexible", exact_match=0.0)
    )
    assert [(row["picked"], row["correct"], row["metric"]) for row in scored] == [("42", True, "exact_match,strict")]
    assert "choices" not in scored[0]


@pytest.mark.parametrize("value", [0.5, (1, 2), None, float("nan")])
def test_a_metric_that_is_no_verdict_makes_no_share(value: Any) -> None:
    with pytest.raises(UnavailableError, match=r"none of its metrics \(f1\) is right or wrong for every question"):
        rows(sample(metrics=["f1"], f1=1.0), sample(metrics=["f1"], f1=value))


def test_very_long_texts_are_cut() -> None:
    (row,) = rows(sample(arguments=[("Q" * 30_000, " yes"), ("Q" * 30_000, " no")]))
    assert len(row["prompt"]) == 20_001 and row["prompt"].endswith("Q…")


# the harness itself


def benchmark_request(name: str = "basics_en", limit: int = 6, shots: int | None = 1, **more: Any) -> BenchmarkSpec:
    config = benchmarks.read_task(benchmarks.FOLDER / f"{name}.yaml") | more
    return BenchmarkSpec("mine", "mine.yaml", ships=False, limit=limit, shots=shots, config=config)


@needs_harness
@pytest.mark.parametrize("name", ["basics_en", "basics_ko"])
def test_it_says_of_a_set_that_ships_what_we_say(name: str) -> None:
    from peft import LoraConfig, get_peft_model

    tokenizer, likelihoods_by_model = tiny_tokenizer(bos=True), []
    for adapted in (False, True):
        model = tiny_model("llama")
        if adapted:
            torch.manual_seed(2)
            config = LoraConfig(
                r=8, lora_alpha=64, target_modules=TARGETS["llama"], init_lora_weights=False, task_type="CAUSAL_LM"
            )
            model = get_peft_model(model, config).eval()
        one = PromptedModel(model, PromptFormat(tokenizer, "chat"), RECIPE, torch.device("cpu"))
        ours, _ = own_rows(one, BenchmarkSpec(name, name, ships=True, limit=6, shots=1), max_tokens=300)
        theirs = harness.run(model, tiny_tokenizer(bos=True), benchmark_request(name)).rows
        assert [row["correct"] for row in theirs] == [row["correct"] for row in ours]
        for row, other in zip(ours, theirs, strict=True):
            assert row["prompt"] == other["prompt"] and row["reference"] == other["reference"]
            assert json.loads(row["loglikelihoods"]) == pytest.approx(json.loads(other["loglikelihoods"]), abs=1e-3)
        likelihoods_by_model.append([row["loglikelihoods"] for row in theirs])
    assert likelihoods_by_model[0] != likelihoods_by_model[1], "the adapter answers, not its base"


@needs_harness
def test_what_is_not_here_is_unavailable_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    with pytest.raises(UnavailableError, match=r"its data is not here .*load_dataset\(\"json\"\).*--force"):
        harness.run(
            model, tokenizer, benchmark_request(dataset_kwargs={"data_files": {"test": str(tmp_path / "none.json")}})
        )
    with pytest.raises(UnavailableError, match="its metric no_such_metric would be fetched as code from a hub"):
        harness.run(model, tokenizer, benchmark_request(metric_list=[{"metric": "no_such_metric"}]))
    assert "tie_weights" not in vars(model), "the model is left as it was"
