"""Models with random weights in the project's shipped shapes, made on the device in seconds; a
tokenizer; and examples."""

import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.card.bench import Bench
from pipelines.weights import shipped
from pipelines.weights.random import WORDS, make_tokenizer

GEMMA, OPT, GPT2 = "gemma-2b-it", "opt-1.3b", "gpt2-large"
TINY_WORDS = 512
TINY = {
    "vocab_size": TINY_WORDS, "hidden_size": 32, "n_embd": 32, "num_hidden_layers": 2, "n_layer": 2, "num_attention_heads": 4,
    "n_head": 4, "head_dim": 8, "intermediate_size": 64, "ffn_dim": 64, "word_embed_proj_dim": 32,
    "max_position_embeddings": 512, "n_positions": 512,
}  # fmt: skip
TEXT = (
    "the of and to in is it that for on with as at by from this have are not be an or you they we can will time people make "
    "like know take year good some could them see other than then now look only come over think also back after use two how "
    "work first well way even new want because any these give day most"
)
_COMMON = TEXT.split()


def fields_of(bench: Bench, name: str, *, layers: int | None = None) -> dict[str, Any]:
    """transformers' configuration of a shipped shape, reduced in a dry run, with `layers` layers if
    set."""
    fields = dict(shipped.named(name))
    if bench.dry:
        fields |= {field: value for field, value in TINY.items() if field in fields}
    if layers is not None:
        fields["n_layer" if "n_layer" in fields else "num_hidden_layers"] = layers
    return fields


def config_of(bench: Bench, name: str, *, layers: int | None = None, tokenizer: Any = None) -> Any:
    fields = fields_of(bench, name, layers=layers)
    if tokenizer:
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
        fields |= ends
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def folder_of(bench: Bench, name: str, *, layers: int | None = None) -> Path:
    """A folder with weights of that shape and a tokenizer, made by the first check that needs it:
    bfloat16, or float32 in a dry run."""
    folder = bench.work / "weights" / (name if layers is None else f"{name}-{layers}")
    if folder.exists():
        return folder
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    tokenizer = make_tokenizer(bench.sized(WORDS, TINY_WORDS))
    torch.manual_seed(1)
    with bench.device:
        model = AutoModelForCausalLM.from_config(
            config_of(bench, name, layers=layers, tokenizer=tokenizer),
            dtype=bench.sized(torch.bfloat16, torch.float32),
        )
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    del model
    bench.wait()
    if not bench.dry:
        torch.cuda.empty_cache()
    partial.rename(folder)
    return folder


def on_meta_device(bench: Bench, name: str, *, layers: int | None = None) -> Any:
    """The model on the meta device: its modules and their sizes."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(bench, name, layers=layers))


def write_examples(bench: Bench, file: Path, *, train: int, held_out: int) -> None:
    """Write examples of random words, in the form of the cleaning stage. Lengths are as uneven
    as in instruction data: half of the answers have fewer than 100 words, one in a hundred about
    600."""
    draw = random.Random(f"{train} {held_out}")
    rows = [_record(bench, draw, place, "train" if place < train else "eval") for place in range(train + held_out)]
    kinds = {name: pa.string() for name in rows[0]}
    parquet.write_table(pa.table({name: pa.array([row[name] for row in rows], kinds[name]) for name in rows[0]}), file)


def _record(bench: Bench, draw: random.Random, place: int, split: str) -> dict[str, str | None]:
    longest = bench.sized(600, 40)
    question_words = draw.randint(*bench.sized((8, 120), (4, 12)))
    answer_words = min(longest, max(5, round(draw.lognormvariate(*bench.sized((4.6, 0.8), (2.5, 0.6))))))
    return {
        "example_id": f"made-{place:05}",
        "instruction": _text(draw, question_words),
        "input": "",
        "output": _text(draw, answer_words),
        "messages": None,
        "language": "en",
        "source": "made by benchmarks/card",
        "provider": None,
        "model": None,
        "split": split,
    }


def _text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(_COMMON) for _ in range(words))
