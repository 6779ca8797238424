"""A tokenizer's words, merges and chat template as GGUF metadata, checked by llama.cpp's own tokenizer."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np

from pipelines.errors import UnavailableError
from pipelines.export.native import LlamaCpp

# How llama.cpp splits text before it merges; GGUF says which by a name that no tokenizer.json holds.
SPLITS = ("gpt-2", "smollm", "llama-bpe", "qwen2", "default")
PROBE = (
    "Hello world! It's 2024-01-15, isn't it?\n\n  def f(x):\n\treturn x ** 2 + 1234567.89  # ok\r\n",
    "서울은 대한민국의 수도입니다. 값은 12,345원이고, 정말 좋아요! ㅋㅋ\n한글과 English를 섞어 씁니다.",
    "naïve café — “quotes” … 日本語 中文 😀 x₂ 10³ DON'T don't WE'LL",
    " leading, trailing and   many    spaces \n \n\n end",
)


def write_vocabulary(writer: gguf.GGUFWriter, tokenizer: Any, words: int, texts: Sequence[str]) -> str:
    """Write the tokenizer, its words filled up to the model's `words`; returns the split that was found for it.

    Raises:
        UnavailableError: it is not a byte-level BPE, or llama.cpp would split `texts` or the probe texts otherwise.
    """
    split = find_split(tokenizer, words, [*PROBE, *texts])
    _write(writer, tokenizer, words, split)
    return split


def find_split(tokenizer: Any, words: int, texts: Sequence[str]) -> str:
    """The name under which llama.cpp makes the same tokens of every text as the tokenizer itself."""
    wanted = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    with TemporaryDirectory(prefix="featherweight-vocabulary-") as folder:
        for split in SPLITS:
            file = Path(folder) / f"{split}.gguf"
            _write_vocabulary_model(file, tokenizer, words, split)
            with LlamaCpp(file, context=32, threads=1) as llama:
                if all(llama.tokenize(text) == ids for text, ids in zip(texts, wanted, strict=True)):
                    return split
    raise UnavailableError(
        f"llama.cpp makes other tokens of text than this tokenizer under each of its rules {', '.join(SPLITS)}, so a GGUF file "
        "would not answer as the model does: use --merge."
    )


def _write(writer: gguf.GGUFWriter, tokenizer: Any, words: int, split: str) -> None:
    state = _byte_level_bpe(tokenizer)
    tokens = [f"[PAD{i}]" for i in range(words)]
    types = [gguf.TokenType.UNUSED] * words
    for word, i in state["model"]["vocab"].items():
        tokens[i], types[i] = word, gguf.TokenType.NORMAL
    for added in (token for token in state["added_tokens"] if token["id"] < words):
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = state["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    bare, full = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    writer.add_add_bos_token(len(full) > len(bare) and full[0] == tokenizer.bos_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.eos_token_id is not None:
        writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _byte_level_bpe(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer's own description (tokenizer.json)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {"model": {"type": "slow"}}
    normalizer = state.get("normalizer") or {"type": "NFC"}  # llama.cpp has none: equal on text that is NFC, as ours is
    if state["model"]["type"] != "BPE" or state["model"].get("byte_fallback") or normalizer["type"] != "NFC":
        raise UnavailableError(
            "its tokenizer is not a byte-level BPE (GPT-2, Llama 3, SmolLM2, Qwen), the kind that is written as GGUF here: "
            "use --merge."
        )
    return state


def _write_vocabulary_model(file: Path, tokenizer: Any, words: int, split: str) -> None:
    """The smallest model with this vocabulary that llama.cpp loads, to ask its tokenizer."""
    width = 32
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width)
    _write(writer, tokenizer, words, split)
    writer.add_tensor("token_embd.weight", np.zeros((words, width), np.float16))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(width, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((width, width), np.float32))
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write all that was added, and close."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
