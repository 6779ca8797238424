"""Random weights of a given shape with a tokenizer. Run as a child: `python -m
pipelines.weights.random CONFIG FOLDER`.

The tokenizer is a byte-level BPE learned from the project's corpus, so a text has about as many
tokens as with a real one. Its tokens are the first ones of the model's vocabulary.
"""

import sys
from pathlib import Path
from typing import Any

from pipelines.lake.paths import PROJECT
from pipelines.records.reading import read_corpus
from pipelines.runs.process import die_with_parent
from pipelines.weights import shipped

WORDS = 4096
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(name: str, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(shipped.named(name))
    tokenizer = make_tokenizer(min(WORDS, fields["vocab_size"]))
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields | ends)
    torch.manual_seed(1)
    dtype = getattr(torch, str(fields.get("dtype") or "float32"))
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer(words: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=["<|im_end|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    records = read_corpus(PROJECT / "data" / "corpus.json")
    raw.train_from_iterator((f"{record['instruction']}\n{record['output']}" for record in records), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


if __name__ == "__main__":
    die_with_parent()
    make(sys.argv[1], Path(sys.argv[2]))
