"""Download a model of the Hugging Face hub into one folder: only the needed files, each once.

An interrupted download resumes. The hub's own client keeps nothing of a killed download, so this
module fetches the bytes itself, with the client's session, token and errors. It uses files in the
hub's cache; without a network only these.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipelines.errors import UnavailableError, WorkError
from pipelines.lake import disk
from pipelines.weights import hub
from pipelines.weights.hub import cached_folder, in_words, is_offline, silence

# Give up after this many lost connections in a row, each with fewer than GAIN new bytes.
TRIES = 3
GAIN = 1 << 20
# Endings of the small files: configurations, tokenizers and templates.
ENDINGS = (".json", ".txt", ".model", ".jinja")
SINGLE, BY_INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH, TORCH_BY_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
PART = ".part"
Say = Callable[[str], None]


@dataclass(frozen=True)
class File:
    """A file of a repository, with its size in bytes and its hash if the hub reports them.

    A large file has a SHA-256, a small one the hash of its git blob.
    """

    name: str
    size: int | None = None
    sha256: str | None = None
    blob: str | None = None


@dataclass(frozen=True)
class Repository:
    """The files of a repository at one commit.

    `cached` is its folder in the hub's own cache. `away` says why the list comes from the cache and
    not from the hub.
    """

    name: str
    commit: str
    files: dict[str, File]
    cached: Path | None
    away: str | None = None

    def where(self) -> str:
        return f"{self.name} at {self.commit[:12]}"


@dataclass(frozen=True)
class Downloaded:
    """A folder with a model's complete files, their commit, and whether the weights are PyTorch's
    and need converting."""

    folder: Path
    commit: str
    is_torch: bool


def download(
    repository: str,
    revision: str | None,
    beside: Path,
    say: Say,
    before_weights: Callable[[Path], None] = lambda _: None,
) -> Downloaded:
    """Fetch the model's files into a folder next to `beside`, resuming what an earlier call left
    there.

    `before_weights` checks the small files before the large ones are fetched.

    Raises:
        UnavailableError: the hub is unreachable or refuses, or the repository holds nothing that
            transformers loads.
        WorkError: the files differ from what the hub announced.
    """
    with silence():
        repo = _listed(repository, revision)
        if repo.away:
            say(f"taking {repo.where()} from the hub's cache: {repo.away}")
        if "config.json" not in repo.files:
            raise UnavailableError(
                f"{repo.where()} has no config.json: it is no transformers model. {_file_names(repo)}"
            )
        folder = beside.parent / f".{beside.name}.{repo.commit[:12]}.partial"
        folder.mkdir(parents=True, exist_ok=True)
        small = [file for name, file in repo.files.items() if "/" not in name and name.endswith(ENDINGS)]
        _fetch(repo, [file for file in small if file.name != "adapter_config.json"], folder, say)
        weights, is_torch = _weights(repo, folder)
        before_weights(folder)
        _fetch(repo, weights, folder, say)
        return Downloaded(folder, repo.commit, is_torch)


def leftovers(beside: Path) -> list[Path]:
    """The partial folders that interrupted calls for exactly that folder left next to it."""
    mine = re.compile(re.escape(f".{beside.name}.") + r"[0-9a-f]+\.partial")
    return [path for path in beside.parent.glob(".*.partial") if mine.fullmatch(path.name)]


def _file_names(repo: Repository) -> str:
    names = sorted(name for name in repo.files if not name.startswith("."))
    return f"Its files: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"


def _why_not_listed(error: Exception, repository: str) -> str | None:
    """The reason why a request for a repository's files failed; None for an error of another
    kind."""
    if (failure := in_words(error, repository)) is not None:
        return str(failure)
    if isinstance(error, ValueError | TypeError | KeyError | AttributeError):
        return f"the server at the hub's address is no hub: {type(error).__name__} in its listing"
    return None


def _listed(repository: str, revision: str | None) -> Repository:
    """The repository's files by the hub, or by its cache if the hub cannot be asked."""
    from huggingface_hub import HfApi

    cached, because = cached_folder(repository, revision), "HF_HUB_OFFLINE is set"
    if not is_offline() and (fault := hub.misconfigured()):
        because = fault
        if cached is None:
            raise UnavailableError(f"cannot ask the hub for {repository}: {fault}")
    elif not is_offline():
        try:
            info = HfApi().model_info(repository, revision=revision, timeout=hub.SILENCE, files_metadata=True)
        except Exception as error:
            because = _why_not_listed(error, repository)
            if because is None:
                raise
            if cached is None:
                raise UnavailableError(because) from None
        else:
            files = {one.rfilename: _file(one) for one in info.siblings or []}
            commit = str(info.sha)
            return Repository(repository, commit, files, cached_folder(repository, commit))
    if cached is None:
        raise UnavailableError(f"{repository} is not in the hub's cache, and the hub is not asked (HF_HUB_OFFLINE)")
    files = {path.name: File(path.name) for path in cached.iterdir() if path.is_file()}
    return Repository(repository, cached.name, files, cached, because)


def _file(sibling: Any) -> File:
    large = sibling.lfs
    return File(sibling.rfilename, sibling.size, large.sha256 if large else None, None if large else sibling.blob_id)


def _weights(repo: Repository, folder: Path) -> tuple[list[File], bool]:
    """The weights' files, found in transformers' order of preference, and whether they are
    PyTorch's."""
    for single, index, is_torch in ((SINGLE, BY_INDEX, False), (TORCH, TORCH_BY_INDEX, True)):
        if single in repo.files:
            return [repo.files[single]], is_torch
        if index in repo.files:
            try:
                named = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise WorkError(f"{repo.where()}: {index} names no weights ({type(error).__name__}: {error})") from None
            shards = sorted(set(map(str, named)))
            if missing := [shard for shard in shards if "/" in shard or shard not in repo.files]:
                where = f"in the hub's cache ({repo.away})" if repo.away else "there"
                raise UnavailableError(f"{repo.where()}: its index names {missing[0]!r}, which is not {where}")
            return [repo.files[shard] for shard in shards], is_torch
    if "adapter_config.json" in repo.files:
        raise UnavailableError(f"{repo.where()} is an adapter, not a model: name its base model as source.hub")
    where = "it holds no weights that transformers loads"
    if repo.away:
        where = f"the hub's cache holds no weights of it, and {repo.away}"
    raise UnavailableError(f"{repo.where()}: {where}; expected {SINGLE} or {TORCH}. {_file_names(repo)}")


def _fetch(repo: Repository, files: Sequence[File], folder: Path, say: Say) -> None:
    """Bring each file complete into the folder, from the hub's cache if it is there."""
    missing = [file for file in files if not _is_whole(folder / file.name, file)]
    for file in list(missing):
        if repo.cached and (cached_file := repo.cached / file.name).is_file() and _is_as_promised(cached_file, file):
            _copy_cached(cached_file, folder / file.name)
            missing.remove(file)
    if not missing:
        return
    if repo.away:
        raise UnavailableError(f"{repo.where()}: the cache has no intact copy of {missing[0].name}, and {repo.away}")
    needed_bytes = sum(file.size or 0 for file in missing)
    partial_bytes = sum(part.stat().st_size for file in missing if (part := folder / (file.name + PART)).exists())
    disk.require(folder, max(0, needed_bytes - partial_bytes), f"the files of {repo.name}")
    if partial_bytes:
        say(f"resuming {repo.name} at {partial_bytes / 1e6:,.0f} of {needed_bytes / 1e6:,.0f} MB")
    with _bar(repo.name, needed_bytes, partial_bytes) as bar:
        for file in missing:
            _fetch_one(repo, file, folder, bar)


def _is_whole(path: Path, file: File) -> bool:
    return path.exists() and (file.size is None or path.stat().st_size == file.size)


def _copy_cached(source: Path, path: Path) -> None:
    """Copy a file from the cache; link safetensors if both lie on the same disk."""
    # The cache's snapshots are symbolic links.
    source = source.resolve()
    path.unlink(missing_ok=True)
    # A conversion may rewrite other files, and those of the cache must stay as they are.
    if path.suffix == ".safetensors":
        with suppress(OSError):
            os.link(source, path)
            return
    partial = path.with_name(path.name + PART)
    shutil.copyfile(source, partial)
    partial.rename(path)


def _fetch_one(repo: Repository, file: File, folder: Path, bar: Any) -> None:
    part = folder / (file.name + PART)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        bar.set_postfix_str(file.name, refresh=False)
        try:
            _stream(repo, file, part, bar)
            break
        except Exception as error:
            because = in_words(error, repo.name)
            if because is None:
                raise
            gained_bytes = part.stat().st_size - before if part.exists() else 0
            failures = 1 if gained_bytes >= GAIN else failures + 1
            if because.final:
                raise UnavailableError(str(because)) from None
            if failures >= TRIES:
                raise UnavailableError(
                    f"{because}. The received part is kept: the same command again resumes there"
                ) from None
    if not _is_as_promised(part, file):
        size = part.stat().st_size
        part.unlink()
        raise WorkError(
            f"{repo.where()}: {file.name} arrived damaged: the hash of its {size:,} bytes is not the hub's. "
            "It was deleted: fetch again"
        )
    part.rename(folder / file.name)


def _stream(repo: Repository, file: File, part: Path, bar: Any) -> None:
    """Fetch the missing rest of a file and append it to the part that is here."""
    import httpx2
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    start = part.stat().st_size if part.exists() else 0
    if file.size is not None and start >= file.size:
        part.touch()
        return
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    url = hf_hub_url(repo.name, file.name, revision=repo.commit)
    with get_session().stream("GET", url, headers=headers, timeout=hub.SILENCE) as response:
        # There is nothing after our part, or the server cannot send a part.
        if response.status_code == 416 and start:
            if not _is_as_promised(part, file):
                part.unlink()
                raise httpx2.RemoteProtocolError("the download could not be resumed")
            return
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        goes_on = response.status_code == 206
        # The server sends the complete file again.
        if start and not goes_on:
            bar.update(-start)
        with part.open("ab" if goes_on else "wb") as out:
            for chunk in response.iter_bytes():
                out.write(chunk)
                bar.update(len(chunk))
    # The response ended early, but without an error.
    if file.size is not None and part.stat().st_size < file.size:
        raise httpx2.RemoteProtocolError(f"{file.name} ended early")


def _is_as_promised(path: Path, file: File) -> bool:
    """Whether a file has the size and the hash that the hub reported.

    If the hub was not asked, the hash is the name of the file in the hub's cache.
    """
    path = path.resolve()
    size = path.stat().st_size
    kept_as = path.name if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", path.name) else None
    promised = file.sha256 or file.blob or kept_as
    if file.size not in (None, size) or promised is None:
        return file.size in (None, size)
    digest = hashlib.sha256() if len(promised) == 64 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest() == promised


@contextmanager
def _bar(name: str, total: int, start: int) -> Iterator[Any]:
    """A progress bar of bytes: redrawn on a terminal, and a line every ten seconds in a log."""
    calm = 0.2 if sys.stderr.isatty() else 10
    with tqdm(
        total=total, initial=start, desc=name, unit="B", unit_scale=True, mininterval=calm, file=sys.stderr, leave=False
    ) as bar:
        yield bar
