"""The same examples through TRL's SFTTrainer, in a separate environment:
`python peer_trl.py < run.json`.

The loss on the held-out examples is computed here, each example alone and unpadded, as in our own
evaluation. Peak memory is the kernel's high-water mark during training; on a card (`on_card`) it is
that of PyTorch's allocator.
"""

import ctypes
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def main() -> None:
    # PR_SET_PDEATHSIG: this process ends with the benchmark
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    request: dict[str, Any] = json.load(sys.stdin)
    os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
    warnings.filterwarnings("ignore")
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from transformers.utils import logging

    logging.set_verbosity_error()
    set_seed(request["seed"])
    recipe = request["recipe"]
    # On a card TRL loads the model itself, with its own defaults. On a CPU its default is bfloat16,
    # which is emulated there
    model = request["weights"]
    if not request.get("on_card"):
        model = AutoModelForCausalLM.from_pretrained(request["weights"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(request["weights"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    adapter = LoraConfig(
        r=recipe["rank"], lora_alpha=recipe["alpha"], lora_dropout=recipe["dropout"], target_modules=recipe["targets"],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        trained, seconds, peak = _train(request, model, tokenizer, adapter, folder)
    loss = _loss(trained, request["eval"])
    print("RESULT " + json.dumps({**seconds, "peak_gb": peak, "eval_loss": loss}))


def _train(
    request: dict[str, Any], model: Any, tokenizer: Any, adapter: Any, folder: str
) -> tuple[Any, dict[str, float], float]:
    """The trained model, the seconds of the training loop, and the peak memory in GB."""
    import torch
    from datasets import Dataset
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    clock: dict[str, float] = {}

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.update(seconds=-time.perf_counter(), cpu_seconds=-time.process_time())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            clock["seconds"] += time.perf_counter()
            clock["cpu_seconds"] += time.process_time()

    recipe = request["recipe"]
    on_cpu = {} if request.get("on_card") else {"bf16": False, "use_cpu": True}
    options = SFTConfig(
        output_dir=folder, **on_cpu, report_to="none", save_strategy="no", logging_strategy="no",
        disable_tqdm=True, seed=request["seed"], num_train_epochs=recipe["epochs"], learning_rate=recipe["learning_rate"],
        weight_decay=recipe["weight_decay"],
        max_grad_norm=recipe["gradient_clip"], max_length=recipe["max_length"], **request["settings"],
    )  # fmt: skip

    class SameRate(SFTTrainer):
        """A trainer with the requested learning rate at every step. transformers' own warm-up
        begins at zero, so its first step would do nothing."""

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            shares = request["rate_shares"]
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: shares[min(step, len(shares) - 1)])
            return self.lr_scheduler

    trainer = SameRate(
        model=model, args=options, train_dataset=Dataset.from_list(request["train"]), processing_class=tokenizer,
        peft_config=adapter, callbacks=[Clock()],
    )  # fmt: skip
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if request.get("on_card"):
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        return trainer.model, clock, torch.cuda.max_memory_allocated() / 1e9
    trainer.train()
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e9
    return trainer.model, clock, peak


def _loss(model: Any, examples: list[dict[str, list[int]]]) -> float:
    """Mean negative log-likelihood of the learned tokens, in nats."""
    import torch
    from torch.nn import functional

    model.eval()
    total = count = 0
    with torch.no_grad():
        for example in examples:
            ids = torch.tensor([example["input_ids"]], device=model.device)
            labels = torch.tensor(example["labels"][1:], device=model.device)
            hidden = model.base_model.model.base_model(input_ids=ids, use_cache=False)[0][0, :-1]
            logits = model.get_output_embeddings()(hidden[labels != -100])
            total += functional.cross_entropy(logits.float(), labels[labels != -100], reduction="sum").item()
            count += int((labels != -100).sum())
    return total / count


if __name__ == "__main__":
    main()
