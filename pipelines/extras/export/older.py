"""A folder that transformers 5 wrote, so that 4.57 reads the same from it, and servers that are built on that.

Version 5 names its tokenizer class anew, lists special tokens where 4.57 wants a mapping, and keeps the base of rotary embeddings
(Su et al. 2021) inside `rope_parameters`, where 4.57 does not look: it then computes with 10,000. What 5 needs stays.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.lake.files import read_json, write_json

Json = dict[str, Any]
ITS_OWN = ("backend", "is_local", "local_files_only", "extra_special_tokens")


def make_readable(folder: Path, stops: Sequence[int]) -> None:
    """Add to configuration and tokenizer what 4.57 looks for. `stops` are the ids that end an answer as it was taught."""
    _change(folder / "config.json", with_rope)
    make_tokenizer_readable(folder)
    _change(folder / "generation_config.json", lambda config: with_stops(config, stops), always=True)


def make_tokenizer_readable(folder: Path) -> None:
    """The same for a folder that holds a tokenizer alone, or beside an adapter."""
    _change(folder / "tokenizer_config.json", with_known_class)


def with_rope(config: Json) -> Json:
    """The rotary base and scaling also by 4.57's names: `rope_theta`, `rope_scaling`, of Gemma 3's two kinds of layers
    `rope_local_base_freq`."""
    rope = config.get("rope_parameters") or {}
    whole = rope.get("full_attention", rope)
    if not isinstance(whole, dict) or whole.get("rope_theta") is None:
        return config
    added: Json = {"rope_theta": whole["rope_theta"]}
    if whole.get("rope_type", "default") != "default":
        added["rope_scaling"] = {name: value for name, value in whole.items() if name != "rope_theta"}
    local = rope.get("sliding_attention")
    if isinstance(local, dict) and local.get("rope_theta") is not None:
        added["rope_local_base_freq"] = local["rope_theta"]
    return {**config, **added}


def with_known_class(config: Json) -> Json:
    """The tokenizer by a class that both versions know; tokenizer.json holds all that it does."""
    kept = {name: value for name, value in config.items() if name not in ITS_OWN}
    more = config.get("extra_special_tokens")
    if isinstance(more, list) and more:
        kept["additional_special_tokens"] = more
    elif isinstance(more, dict):
        kept["extra_special_tokens"] = more
    if kept.get("tokenizer_class") == "TokenizersBackend":
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
        # that class also gives token types in 4.57, which no causal model takes
        kept.setdefault("model_input_names", ["input_ids", "attention_mask"])
    return kept


def with_stops(config: Json, stops: Sequence[int]) -> Json:
    """Generation ends at what it ended at before, and at what was taught."""
    before = config.get("eos_token_id")
    known = [before] if isinstance(before, int) else list(before or ())
    every = list(dict.fromkeys([*stops, *known]))
    return {**config, "eos_token_id": every if len(every) > 1 else every[0]}


def _change(path: Path, change: Any, *, always: bool = False) -> None:
    if path.exists() or always:
        write_json(path, change(read_json(path) or {}))
