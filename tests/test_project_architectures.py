"""Every architecture from its base to an exported folder: trained, evaluated, exported, and equal
in a new process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.compare.table import comparison_rows
from pipelines.evaluate.cell import evaluate
from pipelines.extras.export import merge
from pipelines.extras.export.cell import ExportRequest, export
from pipelines.runs.cells import CellKey
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train
from pipelines.train.trainer import loading
from tests.in_process import InProcess, clean_for
from tests.project import MODEL, TinyProject
from tests.tiny import ARCHITECTURES, save_tiny

EVERY = [*ARCHITECTURES, "gemma2", "gemma3_text", "qwen2", "qwen3", "phi3", "smollm3"]
METHODS = ["base", "full", "lora-r8", "qlora-r8"]
IDS = [5, 17, 40, 8, 99, 3, 250, 7]
# A user's script that needs only transformers.
ELSEWHERE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, ids = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    logs = model(torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)
asked = tokenizer.apply_chat_template([{"role": "user", "content": "책 3권?"}], add_generation_prompt=True, tokenize=False)
ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
stops = model.generation_config.eos_token_id
print(json.dumps([logs[:, :40].tolist(), ids, [stops] if isinstance(stops, int) else stops]))
"""


def elsewhere(folder: Path, python: str = sys.executable) -> Any:
    done = subprocess.run(
        [python, "-c", ELSEWHERE, str(folder), json.dumps(IDS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def logs_of(attempt: Any, root: Path) -> torch.Tensor:
    """The log-probabilities of the trained model as the evaluation runs it, with its adapter
    merged."""
    trained = attempt.model_folder if attempt.model_folder.exists() else None
    model = merge.merged_model(root / attempt.spec.weights, attempt.spec.recipe, trained)
    with torch.no_grad():
        return model(torch.tensor([IDS]), use_cache=False).logits[0].float().log_softmax(-1)[:, :40]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", EVERY)
def test_an_architecture_goes_from_its_base_to_an_export(
    architecture: str, project: TinyProject, tmp_path: Path, transformers_4: str
) -> None:
    folder = save_tiny(tmp_path / "model", architecture)
    attention = "eager" if architecture in ("gpt_neo", "gemma2") else "auto"
    project.change(
        models={
            MODEL: {"source": {"path": str(folder)}, "lora_targets": "auto", "attention": attention, "prompt": "chat"}
        },
        profiles={
            "local": {"methods": METHODS, "max_train_examples": 4, "evaluation": {"general_texts": 1, "answers": 1}}
        },
    )
    stage = clean_for(project).now()
    hooks = RunHooks(say=lambda _message: None, launcher=InProcess())
    tokenizer = loading.load_tokenizer(folder)
    prompt_ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "책 3권?"}], add_generation_prompt=True, return_dict=False
    )
    for method in METHODS:
        key = CellKey(MODEL, method, 1)
        attempt, _ = train(stage.resolve(), key, hooks=hooks)
        assert attempt.status == "ok", (method, attempt.result.detail)
        evaluation, _ = evaluate(stage.resolve(), key, hooks=hooks)
        assert evaluation.ok and not evaluation.result.detail, (method, evaluation.result.detail)
        made = export(stage.resolve(), key, ExportRequest(), hooks=hooks)
        assert made.ok and made.merged, (method, made.result.detail)
        logs, ids, stops = elsewhere(made.merged)
        assert ids == prompt_ids and tokenizer.convert_tokens_to_ids("<|im_end|>") in stops
        expected_logs = logs_of(attempt, stage.data.root)
        torch.testing.assert_close(torch.tensor(logs), expected_logs, atol=1e-4, rtol=1e-4)
        logs, ids, stops = elsewhere(made.merged, transformers_4)
        assert ids == prompt_ids and tokenizer.convert_tokens_to_ids("<|im_end|>") in stops
        torch.testing.assert_close(torch.tensor(logs), expected_logs, atol=1e-4, rtol=1e-4)
    rows = {row["method"]: row for row in comparison_rows(stage.resolve())}
    assert {method: row["status"] for method, row in rows.items()} == dict.fromkeys(METHODS, "ok")
    assert all(row["eval_bits_per_byte"] > 0 for row in rows.values())
