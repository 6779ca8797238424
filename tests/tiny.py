"""Tiny models of the grid's architectures: random weights from a config, and a tokenizer trained on
the corpus."""

from pathlib import Path
from typing import Any

from pipelines.lake.paths import PROJECT
from pipelines.records.reading import read_corpus

WORDS = 600
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "opt": {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 512},
    # The shape of opt-350m: projections in and out, layer norm after the block.
    "opt-350m": {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False, "max_position_embeddings": 512},
    "gpt_neo": {
        "vocab_size": WORDS, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 512, "window_size": 64,
    },
    "gemma": {**SIZES, "intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512},
    "llama": {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 512},
}  # fmt: skip
# Not in the grid, but the loss must be right for it: soft-capped logits, tied heads.
MORE_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gemma2": {
        **ARCHITECTURES["gemma"], "final_logit_softcapping": 3.0, "attn_logit_softcapping": 20.0, "sliding_window": 64,
        "query_pre_attn_scalar": 8,
    },
    "gemma3_text": {**ARCHITECTURES["gemma"], "sliding_window": 64, "query_pre_attn_scalar": 8},
    "llama-tied": {**ARCHITECTURES["llama"], "tie_word_embeddings": True},
    # The class of its tokenizer adds a token.
    "qwen2": {**ARCHITECTURES["llama"], "vocab_size": WORDS + 8},
    "qwen3": {**ARCHITECTURES["llama"], "head_dim": 8},
    "phi3": {**ARCHITECTURES["llama"]},
    "smollm3": {**ARCHITECTURES["llama"], "no_rope_layer_interval": 2},
    "cohere": {**ARCHITECTURES["llama"]},
    "cohere2": {**ARCHITECTURES["llama"], "sliding_window": 64},
    "granite": {**ARCHITECTURES["llama"], "logits_scaling": 2.0},
    "exaone4": {**ARCHITECTURES["llama"], "sliding_window": 64},
    "glm4": {**ARCHITECTURES["llama"], "head_dim": 8},
    "gpt_neox": {**SIZES, "intermediate_size": 64, "max_position_embeddings": 512},
    "helium": {**ARCHITECTURES["llama"], "head_dim": 8},
    "ministral": {**ARCHITECTURES["llama"], "head_dim": 8},
    "mistral": {**ARCHITECTURES["llama"]},
    "olmo": {**ARCHITECTURES["llama"]},
    "olmo2": {**ARCHITECTURES["llama"]},
    "olmo3": {**ARCHITECTURES["llama"]},
    "starcoder2": {**ARCHITECTURES["llama"]},
}  # fmt: skip
TARGETS: dict[str, list[str]] = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "opt-350m": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "gpt_neo": ["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"],
    "gemma": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "phi3": ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"],
}


def tiny_tokenizer(*, bos: bool = False, chat: bool = True, words: int = WORDS) -> Any:
    """A byte-level BPE tokenizer; with `bos` it puts <s> in front of every text, as OPT's, Gemma's
    and Llama's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|im_end|>", "<|im_start|>", "<s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator((r["output"] for r in read_corpus(PROJECT / "data" / "corpus.json")), trainer)
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", raw.token_to_id("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<s>" if bos else None
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML if chat else None
    return tokenizer


def sentencepiece_tokenizer(*, after_special: bool = False) -> Any:
    """A tokenizer like SentencePiece's: spaces are `▁`, and a text begins with one.

    In Llama 2's legacy way, text after a special token begins with one, too.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    scheme = "always" if after_special else "first"
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=WORDS + 256, special_tokens=[*special, *bytes_of], show_progress=False)
    raw.train_from_iterator((r["output"] for r in read_corpus(PROJECT / "data" / "corpus.json")), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def only(form: Any, record: Any, shots: Any = ()) -> Any:
    """The one example that a record makes."""
    (example,) = form.tokenize(record, shots)
    return example


def tiny_model(architecture: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    config = AutoConfig.for_model(
        architecture.split("-")[0],
        **{**ARCHITECTURES, **MORE_ARCHITECTURES}[architecture],
        bos_token_id=2,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager" if architecture in ("gpt_neo", "gemma2") else "sdpa", dtype=torch.float32
    )
    return model.eval()


def save_tiny(folder: Path, architecture: str = "llama") -> Path:
    """A transformers folder that a `path` source can name."""
    tiny_model(architecture).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
