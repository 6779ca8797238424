"""A model of the Hugging Face hub as one folder: exactly the files that are needed, each once, going on where a download was ended.

The hub's own client keeps nothing of a download that was killed, so the bytes are fetched here, with its session, its token and its
errors. Files in the hub's cache are used; without a network they are all there is.
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
    """What a repository holds at one commit. `cached` is where the hub's own cache has it; `away` says why the hub was not asked,
    where it was not."""

    name: str
    commit: str
    files: dict[str, File]
    cached: Path | None
    away: str | None = None

    def where(self) -> str:
        return f"{self.name} at {self.commit[:12]}"


@dataclass(frozen=True)
class Downloaded:
    """The folder that holds a model's files whole, their commit, and whether its weights are PyTorch's, to be converted."""

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
    """Fetch the model's files into a folder next to `beside`, which goes on with what an earlier call left there. `before_weights`
    looks at the small files before the large ones come.

    Raises:
        UnavailableError: the hub cannot be reached or refuses, or the repository holds nothing that transformers loads.
        WorkError: what came is not what the hub promised.
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
    """What calls for that very folder that were ended left next to it."""
    mine = re.compile(re.escape(f".{beside.name}.") + r"[0-9a-f]+\.partial")
    return [path for path in beside.parent.glob(".*.partial") if mine.fullmatch(path.name)]


def _file_names(repo: Repository) -> str:
    names = sorted(name for name in repo.files if not name.startswith("."))
    return f"Its files: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"


def _why_not_listed(error: Exception, repository: str) -> str | None:
    """What an error while asking for a listing says of the hub; None where it is an error of another kind."""
    if (failure := in_words(error, repository)) is not None:
        return str(failure)
    if isinstance(error, ValueError | TypeError | KeyError | AttributeError):
        return f"what answers for the hub is none: {type(error).__name__} in its listing"
    return None


def _listed(repository: str, revision: str | None) -> Repository:
    """What the hub says of the repository; where it cannot be asked, what its cache holds."""
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
    """The files of the weights, in the order in which transformers looks for them, and whether they are PyTorch's."""
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
        raise UnavailableError(
            f"{repo.where()} is an adapter, no model: name the model that it was trained on as source.hub"
        )
    where = "it holds no weights that transformers loads"
    if repo.away:
        where = f"in the hub's cache are no weights of it, and {repo.away}"
    raise UnavailableError(f"{repo.where()}: {where}; expected {SINGLE} or {TORCH}. {_file_names(repo)}")


def _fetch(repo: Repository, files: Sequence[File], folder: Path, say: Say) -> None:
    """Each file whole into the folder, from the hub's cache where it lies there."""
    missing = [file for file in files if not _is_whole(folder / file.name, file)]
    for file in list(missing):
        if repo.cached and (cached_file := repo.cached / file.name).is_file() and _is_as_promised(cached_file, file):
            _copy_cached(cached_file, folder / file.name)
            missing.remove(file)
    if not missing:
        return
    if repo.away:
        raise UnavailableError(f"{repo.where()}: its cache lacks {missing[0].name} or has it damaged, and {repo.away}")
    needed_bytes = sum(file.size or 0 for file in missing)
    partial_bytes = sum(part.stat().st_size for file in missing if (part := folder / (file.name + PART)).exists())
    disk.require(folder, max(0, needed_bytes - partial_bytes), f"the files of {repo.name}")
    if partial_bytes:
        say(f"going on with {partial_bytes / 1e6:,.0f} of {needed_bytes / 1e6:,.0f} MB of {repo.name}")
    with _bar(repo.name, needed_bytes, partial_bytes) as bar:
        for file in missing:
            _fetch_one(repo, file, folder, bar)


def _is_whole(path: Path, file: File) -> bool:
    return path.exists() and (file.size is None or path.stat().st_size == file.size)


def _copy_cached(source: Path, path: Path) -> None:
    """A copy; of weights the same file under another name where both lie on one disk."""
    source = source.resolve()  # the cache's snapshots are links
    path.unlink(missing_ok=True)
    # other files may be written anew by a conversion, and the cache's must stay as they are
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
                raise UnavailableError(f"{because}. What came of it is kept: the same again goes on there") from None
    if not _is_as_promised(part, file):
        size = part.stat().st_size
        part.unlink()
        raise WorkError(
            f"{repo.where()}: {file.name} came damaged: {size:,} bytes of another hash than the hub says. It was thrown away: "
            "fetch again"
        )
    part.rename(folder / file.name)


def _stream(repo: Repository, file: File, part: Path, bar: Any) -> None:
    """Fetch what is missing of a file behind what there is of it."""
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
        if response.status_code == 416 and start:  # there is nothing behind what we have, or it cannot send a part
            if not _is_as_promised(part, file):
                part.unlink()
                raise httpx2.RemoteProtocolError("the part could not be gone on with")
            return
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        goes_on = response.status_code == 206
        if start and not goes_on:  # it sends the whole file again
            bar.update(-start)
        with part.open("ab" if goes_on else "wb") as out:
            for chunk in response.iter_bytes():
                out.write(chunk)
                bar.update(len(chunk))
    if file.size is not None and part.stat().st_size < file.size:  # it ended early, and in good order
        raise httpx2.RemoteProtocolError(f"{file.name} ended early")


def _is_as_promised(path: Path, file: File) -> bool:
    """Whether a file has the size and the hash that the hub says; of one in its cache that nobody was asked about, the hash that it
    is kept under."""
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
    """Bytes as they come: a bar that redraws itself on a terminal, a line every ten seconds in a log."""
    calm = 0.2 if sys.stderr.isatty() else 10
    with tqdm(
        total=total, initial=start, desc=name, unit="B", unit_scale=True, mininterval=calm, file=sys.stderr, leave=False
    ) as bar:
        yield bar
