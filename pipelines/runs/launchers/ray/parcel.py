"""The files of a cell on a node without a shared folder: inputs by content hash, outputs as they
change.

The driver calls `pack`. The node calls `unpack` under its own root, which has the layout of the
data root, and its `Outbox` sends each change of the attempt's folder. The driver's `Inbox` fetches
the changes into its own folder, so that everything else works like with a local cell.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.lake.paths import DataRoot
from pipelines.runs import checkpoints
from pipelines.runs.launchers.node import ENDED, ORDER
from pipelines.runs.launchers.ray.store import Hashes, Store, StoreError

Json = dict[str, Any]
# The driver's own files in an attempt's folder.
OWN = ("spec.json", "state.json", "result.json", "vectors.npz", ORDER)
LISTING = "listing.json"


def pack(spec: Json, store: Store, folder: Path) -> tuple[Json, list[Json]]:
    """Upload all inputs of the cell in `folder` to `store`; returns the spec for the node, and the
    inputs.

    Each input has its `path` under the node's root, its `sha256` and its `bytes`. `passing` marks
    inputs that no other cell will read.

    Raises:
        StoreError: the storage cannot be used.
    """
    root = Path(spec["root"])
    hashes = Hashes(DataRoot(root).lake / "hashes.json")
    node_spec, inputs = {**spec, "root": ""}, []

    def take(path: Path, name: str, *, passing: bool = False) -> None:
        sha256 = hashes.of(path)
        store.keep(path, sha256)
        inputs.append({"path": name, "sha256": sha256, "bytes": path.stat().st_size, "passing": passing})

    def take_folder(name: str, *, with_weights: bool = True, passing: bool = False) -> str:
        """Upload a folder, without its weights if not `with_weights`.

        A folder outside the root gets a path inside.
        """
        source = root / name
        target = name if not Path(name).is_absolute() else f"models/by-path{name}"
        for path in sorted(source.rglob("*")):
            if path.is_file() and path.suffix != ".gguf" and (with_weights or path.suffix != ".safetensors"):
                # The other files of a trained model belong to its base or to another cell, which
                # may be reading them.
                take(path, f"{target}/{path.relative_to(source)}", passing=passing and path.suffix == ".safetensors")
        return target

    take(root / spec["examples"], spec["examples"])
    node_spec["weights"] = take_folder(spec["weights"])
    if (root / "general.json").exists():
        take(root / "general.json", "general.json")
    if resume := spec.get("resume"):
        take_folder(resume["checkpoint"], passing=True)
    if spec.get("trained"):
        take_folder(spec["trained"], passing=True)
    if model := (spec.get("retrieval") or {}).get("embeddings"):
        node_spec["retrieval"] = {**spec["retrieval"], "embeddings": take_folder(model)}
    if vectors := (spec.get("retrieval") or {}).get("vectors"):
        take(folder / vectors, f"{folder.relative_to(root)}/{vectors}")
    if "tokenizers_to_fit" in spec:
        node_spec["tokenizers_to_fit"] = [
            {**one, "folder": take_folder(one["folder"], with_weights=False)} for one in spec["tokenizers_to_fit"]
        ]
    return node_spec, list({one["path"]: one for one in inputs}.values())


def unpack(inputs: list[Json], root: Path, cache: Path, store: Store) -> int:
    """Put the inputs under `root`; returns the number of bytes downloaded.

    A node downloads each input once: `cache` keeps them by content hash, except for the passing
    ones.

    Raises:
        StoreError: one of them cannot be read.
    """
    bytes_read = 0
    for one in inputs:
        cached = cache / one["sha256"]
        if not (cached.exists() and cached.stat().st_size == one["bytes"]):
            store.download(f"blobs/{one['sha256']}", cached)
            bytes_read += one["bytes"]
        target = root / one["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(cached, target)
        # Another file system.
        except OSError:
            shutil.copyfile(cached, target)
        if one["passing"]:
            cached.unlink()
    return bytes_read


def outputs(folder: Path) -> dict[str, list[int]]:
    """Size and time of change of the child's files in the attempt's folder, without half-written
    ones.

    The file that completes a checkpoint comes after its other files, and ended.json comes last.
    """
    stamps = {}
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name in OWN or any(part.startswith(".") for part in name.split("/")) or name.startswith("evaluations/"):
            continue
        with suppress(FileNotFoundError):
            stamp = path.stat()
            stamps[name] = [stamp.st_size, stamp.st_mtime_ns]
    return dict(
        sorted(stamps.items(), key=lambda item: (item[0] == ENDED, item[0].endswith(checkpoints.STATE), item[0]))
    )


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path


class Outbox:
    """The node's side: `send` uploads all new changes, then a listing of the files."""

    def __init__(self, store: Store, job: str, folder: Path) -> None:
        self._store, self._job, self._folder = store, f"jobs/{job}", folder
        self._sent: dict[str, list[int]] = {}

    def send(self) -> None:
        """Upload all changes. After a StoreError the next call sends the rest."""
        stamps = outputs(self._folder)
        if stamps == self._sent:
            return
        sent = {}
        for name, stamp in stamps.items():
            if self._sent.get(name) != stamp:
                try:
                    self._store.upload(self._folder / name, f"{self._job}/files/{name}")
                except StoreError:
                    if (self._folder / name).exists():
                        raise
                    # An older checkpoint was removed in the meantime.
                    continue
            sent[name] = stamp
        self._store.write(f"{self._job}/{LISTING}", json.dumps(sent).encode())
        for gone in set(self._sent) - set(sent):
            self._store.remove(f"{self._job}/files/{gone}")
        self._sent = sent

    def stop_request(self) -> Json | None:
        content = self._store.read(f"{self._job}/stop.json")
        return json.loads(content) if content else None


class Inbox:
    """The driver's side: `take` fetches the node's changes into the attempt's folder."""

    def __init__(self, store: Store, job: str, folder: Path) -> None:
        self._store, self._job, self._folder = store, f"jobs/{job}", folder
        self._taken: dict[str, list[int]] = {}

    def take(self) -> None:
        """Download all changes. After a StoreError the next call fetches the rest."""
        content = self._store.read(f"{self._job}/{LISTING}")
        listing: dict[str, list[int]] = json.loads(content) if content else {}
        for name, stamp in listing.items():
            if self._taken.get(name) != stamp:
                self._store.download(f"{self._job}/files/{name}", self._folder / name)
                self._taken[name] = stamp
        current = {Path(name).parts[1] for name in listing if name.startswith(f"{checkpoints.FOLDER}/")}
        if current:
            for older in checkpoints.whole(self._folder):
                if older.name not in current:
                    shutil.rmtree(older, ignore_errors=True)

    def tell_to_stop(self, grace_seconds: float) -> None:
        self._store.write(f"{self._job}/stop.json", json.dumps({"grace_seconds": grace_seconds}).encode())

    def clear(self, passing: Sequence[str]) -> None:
        """Remove the job's files and the passing inputs (SHA-256) from the storage."""
        self._store.remove(self._job)
        for sha256 in passing:
            self._store.remove(f"blobs/{sha256}")
