"""An adapter alone, as PEFT loads it: its folder, which names the base as others know it, and the tokenizer it was trained with."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import WorkError
from pipelines.extras.export import older
from pipelines.train.provenance import Base, name_base

SETTINGS = "training_settings.json"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write(trained: Path, folder: Path, tokenizer: Any, base: Base) -> Path:
    """The adapter of `trained` and its tokenizer in a folder beside `folder`, under another name, whole or not at all.

    Raises:
        WorkError: what training saved lacks the adapter's weights or its configuration.
    """
    if missing := [name for name in (CONFIG, WEIGHTS) if not (trained / name).is_file()]:
        raise WorkError(f"{trained} lacks {' and '.join(missing)}: train the cell again (--force)")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(trained / name, partial / name)
        name_base(partial, base)
        tokenizer.save_pretrained(partial)
        older.make_tokenizer_readable(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return partial


def finish(partial: Path, folder: Path, more: Mapping[str, str | Path]) -> None:
    """Add further files (texts, or files to copy) to what was written and give it its name; what was there before is replaced."""
    for name, held in more.items():
        if isinstance(held, Path):
            shutil.copyfile(held, partial / name)
        else:
            (partial / name).write_text(held, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
