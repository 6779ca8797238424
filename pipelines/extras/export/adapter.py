"""Export of an adapter for PEFT: a folder with the public name of its base and the tokenizer of
training."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.errors import WorkError
from pipelines.extras.export import older
from pipelines.train.provenance import Base, name_base

SETTINGS = "training_settings.json"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write(trained: Path, folder: Path, tokenizer: Any, base: Base) -> Path:
    """Write the adapter of `trained` and its tokenizer to a temporary folder beside `folder`,
    completely or not at all.

    Raises:
        WorkError: the output of training lacks the adapter's weights or configuration.
    """
    if missing := [name for name in (CONFIG, WEIGHTS) if not (trained / name).is_file()]:
        raise WorkError(f"{trained} lacks {' and '.join(missing)}: train the cell again (--force)")
    with unfinished(folder) as partial:
        partial.mkdir(parents=True)
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(trained / name, partial / name)
        name_base(partial, base)
        tokenizer.save_pretrained(partial)
        older.make_tokenizer_readable(partial)
    return partial


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """The temporary folder beside `folder`, empty at first. It is removed if the block fails or is
    interrupted, since a partial model is large."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with removed_on_error(partial):
        yield partial


@contextmanager
def removed_on_error(partial: Path) -> Iterator[None]:
    """Remove `partial` if the block fails or is interrupted."""
    try:
        yield
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def finish(partial: Path, folder: Path, more: Mapping[str, str | Path]) -> None:
    """Add more files (texts, or files to copy) and rename `partial` to `folder`, which it replaces.
    If that fails, `partial` is removed."""
    with removed_on_error(partial):
        for name, held in more.items():
            if isinstance(held, Path):
                shutil.copyfile(held, partial / name)
            else:
                (partial / name).write_text(held, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
