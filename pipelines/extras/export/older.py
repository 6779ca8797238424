"""Make a folder written by transformers 5 readable for 4.57, and for servers that are built on it.

Version 5 has a new name for the tokenizer class, and lists special tokens where 4.57 expects a
mapping. It stores the base of rotary embeddings (Su et al. 2021) in `rope_parameters`, which 4.57
ignores: that version would then compute with 10,000. The fields for version 5 stay.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.lake.files import read_json, write_json

Json = dict[str, Any]
ITS_OWN = ("backend", "is_local", "local_files_only", "extra_special_tokens")


def make_readable(folder: Path, stops: Sequence[int]) -> None:
    """Add the fields for 4.57 to configuration and tokenizer. `stops` are the trained end ids of an
    answer."""
    _change(folder / "config.json", with_rope)
    make_tokenizer_readable(folder)
    _change(folder / "generation_config.json", lambda config: with_stops(config, stops), always=True)


def make_tokenizer_readable(folder: Path) -> None:
    """Do the same for a folder with only a tokenizer, or with an adapter."""
    _change(folder / "tokenizer_config.json", with_known_class)


def with_rope(config: Json) -> Json:
    """Add the rotary base and scaling by 4.57's names: `rope_theta`, `rope_scaling`, and for the
    local layers of Gemma 3 `rope_local_base_freq`."""
    rope = config.get("rope_parameters") or {}
    global_rope = rope.get("full_attention", rope)
    if not isinstance(global_rope, dict) or global_rope.get("rope_theta") is None:
        return config
    added: Json = {"rope_theta": global_rope["rope_theta"]}
    if global_rope.get("rope_type", "default") != "default":
        added["rope_scaling"] = {name: value for name, value in global_rope.items() if name != "rope_theta"}
    local = rope.get("sliding_attention")
    if isinstance(local, dict) and local.get("rope_theta") is not None:
        added["rope_local_base_freq"] = local["rope_theta"]
    return {**config, **added}


def with_known_class(config: Json) -> Json:
    """Use a tokenizer class that both versions know; tokenizer.json defines its whole behaviour."""
    settings = {name: value for name, value in config.items() if name not in ITS_OWN}
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list) and extra:
        settings["additional_special_tokens"] = extra
    elif isinstance(extra, dict):
        settings["extra_special_tokens"] = extra
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        # In 4.57 that class also returns token types, which causal models do not accept.
        settings.setdefault("model_input_names", ["input_ids", "attention_mask"])
    return settings


def with_stops(config: Json, stops: Sequence[int]) -> Json:
    """Add the trained end ids to the ids that end generation."""
    before = config.get("eos_token_id")
    known = [before] if isinstance(before, int) else list(before or ())
    every = list(dict.fromkeys([*stops, *known]))
    return {**config, "eos_token_id": every if len(every) > 1 else every[0]}


def _change(path: Path, change: Any, *, always: bool = False) -> None:
    if path.exists() or always:
        write_json(path, change(read_json(path) or {}))
