"""The content of a model's folder, as one hash of the files that affect training and measuring.

Hashing gigabytes takes a while, so each file's hash is stored and looked up by name, size,
modification time and inode. Only the lookup uses these: a copied folder has other ones, but the
same hash.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.errors import WorkError
from pipelines.lake.files import file_sha256, read_json, stable_hash, write_json

Say = Callable[[str], None]
# Size, mtime_ns, inode.
Stamp = tuple[int, int, int]

# transformers loads the first of these that exists. An index names the files of weights in several
# parts.
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
# generation_config.json names the tokens that end an answer. transformers loads an adapter in the
# folder with the model.
OTHERS = (
    "config.json", "generation_config.json", "*token*.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken", "chat_template*",
    "additional_chat_templates/*.jinja", "adapter_config.json", "adapter_model.*",
)  # fmt: skip
# Fields of a configuration that do not describe the model.
SAYS_NOTHING = ("transformers_version", "_name_or_path")
# Hashing from this many bytes on is worth a log line.
LARGE = 10**9
# A file that changed less than this many seconds ago may change again under the same modification
# time.
SETTLED = 1.0

# The hashes that this process has computed.
_hashed: dict[tuple[str, Stamp], str] = {}
_one_at_a_time = threading.Lock()


def content_of(folder: Path, record: Path, *, say: Say) -> str | None:
    """The hash of the content of `folder`, 16 hex digits; None if one of its files cannot be read.

    `record` stores the hashes of the single files, if it can be written.
    """
    with _one_at_a_time:
        try:
            files = dict(files_of(folder))
            recorded = (read_json(record) or {}).get("files", {})
            known = {name: _known(path, recorded.get(name)) for name, path in files.items()}
            _announce(folder, [files[name] for name, digest in known.items() if digest is None], say)
            hashes = {name: known[name] or _hash(path) for name, path in files.items()}
            _keep(record, files, hashes, recorded)
        except OSError:
            return None
    return stable_hash(hashes)


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """The hashed files, with their names in the folder."""
    names = {path.relative_to(folder).as_posix() for pattern in OTHERS for path in folder.glob(pattern)}
    names |= set(_weights(folder))
    for name in sorted(names):
        if (folder / name).is_file():
            yield name, folder / name


def newest_change(folder: Path) -> float:
    """The latest modification time of the files, in seconds since the epoch; copying may renew
    it."""
    return max((path.stat().st_mtime for _, path in files_of(folder)), default=0.0)


def _weights(folder: Path) -> list[str]:
    loaded = next((name for name in WEIGHTS if (folder / name).exists()), None)
    if loaded is None or not loaded.endswith(".index.json"):
        return [loaded] if loaded else []
    try:
        return sorted(set(map(str, (read_json(folder / loaded) or {})["weight_map"].values())))
    # A broken index: loading the model will report it.
    except (KeyError, TypeError, AttributeError):
        return [loaded]


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _known(path: Path, recorded: Any) -> str | None:
    stamp = _stamp(path)
    if digest := _hashed.get((str(path), stamp)):
        return digest
    return recorded["sha256"] if isinstance(recorded, dict) and recorded.get("stamp") == list(stamp) else None


def _announce(folder: Path, unknown: list[Path], say: Say) -> None:
    size = sum(path.stat().st_size for path in unknown)
    if size >= LARGE:
        say(f"hashing {size / 1e9:.1f} GB of weights in {folder} (once; the hash is stored until the files change)")


def _hash(path: Path) -> str:
    before = _stamp(path)
    digest = _of_json(path) or file_sha256(path)
    if _stamp(path) == before and time.time() - path.stat().st_mtime > SETTLED:
        _hashed[str(path), before] = digest
    return digest


def _of_json(path: Path) -> str | None:
    """The hash of a configuration's fields; None for any other file, and for one that is no JSON
    object."""
    if not path.name.endswith("config.json"):
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        fields = {name: value for name, value in config.items() if name not in SAYS_NOTHING}
    except (ValueError, AttributeError):
        return None
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _keep(record: Path, files: dict[str, Path], hashes: dict[str, str], recorded: dict[str, Any]) -> None:
    """Store the hashes of files that have not changed since, if there are new ones."""
    updated = {}
    for name, path in files.items():
        stamp = _stamp(path)
        if recorded.get(name, {}).get("stamp") == list(stamp):
            updated[name] = recorded[name]
        elif (str(path), stamp) in _hashed:
            updated[name] = {"stamp": list(stamp), "sha256": hashes[name]}
    if updated != recorded:
        # In a read-only lake the next process hashes again.
        with suppress(WorkError):
            write_json(record, {**(read_json(record) or {}), "files": updated})
