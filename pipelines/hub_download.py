"""A model of the Hugging Face hub as one folder: exactly the files that are needed, each once, going on where a download was ended.

The hub's own client keeps nothing of a download that was killed, so the bytes are fetched here, with its session, its token and its
errors. What lies in its cache is used, and is all there is where no network is.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipelines import disk, hub
from pipelines.errors import UnavailableError, WorkError
from pipelines.hub import cached_folder, in_words, is_offline, silence

TRIES = 3  # connections that are lost one after another with less than GAIN bytes between them
GAIN = 1 << 20
ENDINGS = (".json", ".txt", ".model", ".jinja")  # of what stands beside weights: configurations, tokenizers, templates
SINGLE, BY_INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH, TORCH_BY_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
PART = ".part"
Say = Callable[[str], None]


@dataclass(frozen=True)
class File:
    """A file of a repository, its size in bytes and its hash, where the hub says them: SHA-256 of a large one, else of its blob."""

    name: str
    size: int | None = None
    sha256: str | None = None
    blob: str | None = None


@dataclass(frozen=True)
class Repository:
    """What a repository holds at one commit; `cached` is where the hub's own cache has it, `reachable` whether the hub answered."""

    name: str
    commit: str
    files: dict[str, File]
    cached: Path | None
    reachable: bool

    def where(self) -> str:
        return f"{self.name} at {self.commit[:12]}"


@dataclass(frozen=True)
class Downloaded:
    """The folder that holds a model's files whole, their commit, and whether its weights are PyTorch's, to be converted."""

    folder: Path
    commit: str
    is_torch: bool


def download(repository: str, revision: str | None, beside: Path, say: Say) -> Downloaded:
    """Fetch the model's files into a folder next to `beside`, which goes on with what an earlier call left there.

    Raises:
        UnavailableError: the hub cannot be reached or refuses, or the repository holds nothing that transformers loads.
        WorkError: what came is not what the hub promised.
    """
    with silence():
        held = _listed(repository, revision)
        if "config.json" not in held.files:
            raise UnavailableError(f"{held.where()} has no config.json: it is no transformers model. {_its(held)}")
        folder = beside.parent / f".{beside.name}.{held.commit[:12]}.partial"
        for older in beside.parent.glob(f".{beside.name}.*.partial"):
            if older != folder:
                shutil.rmtree(older, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        small = [file for name, file in held.files.items() if "/" not in name and name.endswith(ENDINGS)]
        _fetch(held, small, folder, say)
        weights, is_torch = _weights(held, folder)
        _fetch(held, weights, folder, say)
        return Downloaded(folder, held.commit, is_torch)


def _its(held: Repository) -> str:
    names = sorted(name for name in held.files if not name.startswith("."))
    return f"Its files: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"


def _listed(repository: str, revision: str | None) -> Repository:
    """What the hub says of the repository; where it cannot be asked, what its cache holds."""
    from huggingface_hub import HfApi

    kept = cached_folder(repository, revision)
    if not is_offline():
        try:
            info = HfApi().model_info(repository, revision=revision, timeout=hub.SILENCE, files_metadata=True)
        except Exception as error:
            if not (because := in_words(error, repository)):
                raise
            if kept is None:
                raise UnavailableError(str(because)) from None
        else:
            files = {one.rfilename: _file(one) for one in info.siblings or []}
            commit = str(info.sha)
            return Repository(repository, commit, files, cached_folder(repository, commit), reachable=True)
    if kept is None:
        raise UnavailableError(f"{repository} is not in the hub's cache, and the hub is not asked (HF_HUB_OFFLINE)")
    files = {path.name: File(path.name) for path in kept.iterdir() if path.is_file()}
    return Repository(repository, kept.name, files, kept, reachable=False)


def _file(sibling: Any) -> File:
    large = sibling.lfs
    return File(sibling.rfilename, sibling.size, large.sha256 if large else None, None if large else sibling.blob_id)


def _weights(held: Repository, folder: Path) -> tuple[list[File], bool]:
    """The files of the weights, in the order in which transformers looks for them, and whether they are PyTorch's."""
    for single, index, is_torch in ((SINGLE, BY_INDEX, False), (TORCH, TORCH_BY_INDEX, True)):
        if single in held.files:
            return [held.files[single]], is_torch
        if index in held.files:
            try:
                named = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise WorkError(f"{held.where()}: {index} names no weights ({type(error).__name__}: {error})") from None
            shards = sorted(set(map(str, named)))
            if missing := [shard for shard in shards if "/" in shard or shard not in held.files]:
                where = "in the hub's cache" if not held.reachable else "there"
                raise UnavailableError(f"{held.where()}: its index names {missing[0]!r}, which is not {where}")
            return [held.files[shard] for shard in shards], is_torch
    if "adapter_config.json" in held.files:
        raise UnavailableError(
            f"{held.where()} is an adapter, no model: name the model that it was trained on as source.hub"
        )
    where = (
        "in the hub's cache are no weights of it"
        if not held.reachable
        else "it holds no weights that transformers loads"
    )
    raise UnavailableError(f"{held.where()}: {where}; expected {SINGLE} or {TORCH}. {_its(held)}")


def _fetch(held: Repository, files: Sequence[File], folder: Path, say: Say) -> None:
    """Each file whole into the folder, from the hub's cache where it lies there."""
    missing = [file for file in files if not _is_whole(folder / file.name, file)]
    for file in list(missing):
        if held.cached and (kept := held.cached / file.name).is_file() and _is_whole(kept, file):
            _take(kept, folder / file.name)
            missing.remove(file)
    if not missing:
        return
    if not held.reachable:
        raise UnavailableError(f"{held.where()}: the hub cannot be asked, and its cache lacks {missing[0].name}")
    needed = sum(file.size or 0 for file in missing)
    here = sum(part.stat().st_size for file in missing if (part := folder / (file.name + PART)).exists())
    disk.require(folder, max(0, needed - here), f"the files of {held.name}")
    if here:
        say(f"going on with {here / 1e6:,.0f} of {needed / 1e6:,.0f} MB of {held.name}")
    with _bar(held.name, needed, here) as bar:
        for file in missing:
            _fetch_one(held, file, folder, bar)


def _is_whole(path: Path, file: File) -> bool:
    return path.exists() and (file.size is None or path.stat().st_size == file.size)


def _take(kept: Path, path: Path) -> None:
    """A copy; of weights the same file under another name where both lie on one disk."""
    kept = kept.resolve()  # the cache's snapshots are links
    path.unlink(missing_ok=True)
    if (
        path.suffix == ".safetensors"
    ):  # other files may be written anew by a conversion, and the cache's must stay as they are
        with suppress(OSError):
            os.link(kept, path)
            return
    partial = path.with_name(path.name + PART)
    shutil.copyfile(kept, partial)
    partial.rename(path)


def _fetch_one(held: Repository, file: File, folder: Path, bar: Any) -> None:
    part = folder / (file.name + PART)
    lost = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        bar.set_postfix_str(file.name, refresh=False)
        try:
            _stream(held, file, part, bar)
            break
        except Exception as error:
            because = in_words(error, held.name)
            if because is None:
                raise
            gained = part.stat().st_size - before if part.exists() else 0
            lost = 1 if gained >= GAIN else lost + 1
            if because.final:
                raise UnavailableError(str(because)) from None
            if lost >= TRIES:
                raise UnavailableError(f"{because}. What came of it is kept: the same again goes on there") from None
    _require_promised(held, file, part)
    part.rename(folder / file.name)


def _stream(held: Repository, file: File, part: Path, bar: Any) -> None:
    """Fetch what is missing of a file behind what there is of it."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    begun = part.stat().st_size if part.exists() else 0
    if file.size is not None and begun >= file.size:
        part.touch()
        return
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", **({"Range": f"bytes={begun}-"} if begun else {})}
    url = hf_hub_url(held.name, file.name, revision=held.commit)
    with get_session().stream("GET", url, headers=headers, timeout=hub.SILENCE) as response:
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        goes_on = response.status_code == 206
        if begun and not goes_on:  # it sends the whole file again
            bar.update(-begun)
        with part.open("ab" if goes_on else "wb") as out:
            for chunk in response.iter_bytes():
                out.write(chunk)
                bar.update(len(chunk))


def _require_promised(held: Repository, file: File, part: Path) -> None:
    """Raises WorkError, and throws the file away, where it has another size or hash than the hub says."""
    size = part.stat().st_size
    hashed = sha256 = hashlib.sha256()
    if file.blob and not file.sha256:
        hashed = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with part.open("rb") as opened:
        while piece := opened.read(1 << 20):
            hashed.update(piece)
    promised = file.sha256 or file.blob
    if file.size not in (None, size) or promised not in (None, hashed.hexdigest()):
        part.unlink()
        kind = "SHA-256" if hashed is sha256 else "SHA-1"
        raise WorkError(
            f"{held.where()}: {file.name} came damaged ({size:,} bytes, {kind} {hashed.hexdigest()[:12]}; the hub says "
            f"{file.size or size:,} bytes, {(promised or '')[:12]}). It was thrown away: fetch again"
        )


@contextmanager
def _bar(name: str, total: int, begun: int) -> Iterator[Any]:
    """Bytes as they come: a bar that redraws itself on a terminal, a line every ten seconds in a log."""
    calm = 0.2 if sys.stderr.isatty() else 10
    with tqdm(
        total=total, initial=begun, desc=name, unit="B", unit_scale=True, mininterval=calm, file=sys.stderr, leave=False
    ) as bar:
        yield bar
