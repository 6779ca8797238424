"""What a model's folder holds, as one hash of the files that decide what is trained and measured.

A hash of gigabytes takes a while, so each file's is kept and found again by name, size, modification time and inode. These find it
again and are no part of it: a copied folder has others, and the same hash.
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
Stamp = tuple[int, int, int]  # size, mtime_ns, inode

# One of these is loaded: the first that is there, as transformers looks for them. An index names the files of several parts.
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
# generation_config.json names the tokens that end an answer. An adapter in the folder is loaded along with the model.
OTHERS = (
    "config.json", "generation_config.json", "*token*.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken", "chat_template*",
    "additional_chat_templates/*.jinja", "adapter_config.json", "adapter_model.*",
)  # fmt: skip
# What transformers notes of itself and of where a folder was loaded from
SAYS_NOTHING = ("transformers_version", "_name_or_path")
LARGE = 10**9  # bytes: from there on hashing is worth a line
SETTLED = 1.0  # seconds: a file changed less ago may change again under the same modification time

_hashed: dict[tuple[str, Stamp], str] = {}  # by this process
_one_at_a_time = threading.Lock()


def content_of(folder: Path, record: Path, *, say: Say) -> str | None:
    """The hash of what lies in `folder`, 16 hex digits; None where a file of it cannot be read. Hashes of single files are kept in
    `record`, where that can be written."""
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
    """The files that are hashed, by their names in the folder."""
    names = {path.relative_to(folder).as_posix() for pattern in OTHERS for path in folder.glob(pattern)}
    names |= set(_weights(folder))
    for name in sorted(names):
        if (folder / name).is_file():
            yield name, folder / name


def newest_change(folder: Path) -> float:
    """When one of the files was last written, in seconds since the epoch; a copy may count as written anew."""
    return max((path.stat().st_mtime for _, path in files_of(folder)), default=0.0)


def _weights(folder: Path) -> list[str]:
    loaded = next((name for name in WEIGHTS if (folder / name).exists()), None)
    if loaded is None or not loaded.endswith(".index.json"):
        return [loaded] if loaded else []
    try:
        return sorted(set(map(str, (read_json(folder / loaded) or {})["weight_map"].values())))
    except (KeyError, TypeError, AttributeError):  # loading it says what is wrong
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
        say(f"hashing {size / 1e9:.1f} GB of weights in {folder} (once; it is kept until the files change)")


def _hash(path: Path) -> str:
    before = _stamp(path)
    digest = _of_json(path) or file_sha256(path)
    if _stamp(path) == before and time.time() - path.stat().st_mtime > SETTLED:
        _hashed[str(path), before] = digest
    return digest


def _of_json(path: Path) -> str | None:
    """The hash of what a configuration says; None of any other file, and of one that cannot be read as JSON."""
    if not path.name.endswith("config.json"):
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        fields = {name: value for name, value in config.items() if name not in SAYS_NOTHING}
    except (ValueError, AttributeError):
        return None
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _keep(record: Path, files: dict[str, Path], hashes: dict[str, str], recorded: dict[str, Any]) -> None:
    """Write down the hashes of files that have not changed since, where that is news."""
    updated = {}
    for name, path in files.items():
        stamp = _stamp(path)
        if recorded.get(name, {}).get("stamp") == list(stamp):
            updated[name] = recorded[name]
        elif (str(path), stamp) in _hashed:
            updated[name] = {"stamp": list(stamp), "sha256": hashes[name]}
    if updated != recorded:
        with suppress(WorkError):  # a lake that is only read: the next process hashes again
            write_json(record, {**(read_json(record) or {}), "files": updated})
