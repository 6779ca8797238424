"""Files in the data folder that nobody needs now. They are listed first, and removed only on
request.

No attempt's numbers are lost. These stay: every attempt's spec, result, curve, log and answers;
each cell's newest good model, and the checkpoints of an unfinished one; the search for a learning
rate that a cell can resume; the examples of every attempt; the current publication and the one
before it; the newest and the newest good measurement of each bit width.

A person requested each export, so it goes only with its attempt. An export whose result has been
replaced is only listed.
"""

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pipelines.clean.clean import current as current_examples
from pipelines.errors import UsageError, WorkError
from pipelines.estimate.question import answer_file, questions
from pipelines.lake.files import locked, read_json
from pipelines.lake.paths import DataRoot
from pipelines.lake.warehouse import KEPT
from pipelines.project import Project, Resolved
from pipelines.runs import cells, checkpoints, restart
from pipelines.runs.cells import Attempt, CellKey
from pipelines.runs.launchers.chosen import launcher_class
from pipelines.runs.result import result_in
from pipelines.train.studies import LOCK, study_folder

DAY = 86400.0
# Number of paths of each kind in a listing.
SHOWN = 3
HALF = "files that a killed process left half written"


@dataclass(frozen=True)
class Leftover:
    """A path to remove, the reason (the same for all of a kind), and the lock that shows whether
    somebody uses it."""

    path: Path
    why: str
    lock: Path | None = None

    @property
    def bytes(self) -> int:
        if self.path.is_dir():
            return sum(file.lstat().st_size for file in self.path.rglob("*") if file.is_file())
        return self.path.lstat().st_size if self.path.exists() else 0


def leftovers(project: Project) -> list[Leftover]:
    """Everything that could be removed now, in the order of the stages."""
    attempts = list(cells.all_attempts(project.data))
    return [
        *_examples(project.data, attempts),
        *_estimates(project, attempts),
        *_studies(project),
        *_cells(project.data, attempts),
        *_exports_of_nothing(project.data, attempts),
        *_bit_widths(project.data),
        *_publications(project.data),
        *_half_written(project.data),
    ]


def by_kind(leftovers: Iterable[Leftover]) -> dict[str, list[Leftover]]:
    """The leftovers, grouped by their reason."""
    kinds: dict[str, list[Leftover]] = {}
    for leftover in leftovers:
        kinds.setdefault(leftover.why, []).append(leftover)
    return kinds


def listing(leftovers: Sequence[Leftover], data: DataRoot, *, every: bool = False) -> Iterator[str]:
    """A line for each kind with its size and number, then its paths in the data root: `SHOWN` of
    them, or `every` one."""
    for why, group in by_kind(leftovers).items():
        places = "place" if len(group) == 1 else "places"
        yield f"{megabytes(group)}  {len(group):4} {places:6}  {why}"
        listed = group if every else group[:SHOWN]
        yield from (f"{' ' * 16}{_in(data, leftover.path)}" for leftover in listed)
        if more := len(group) - len(listed):
            yield f"{' ' * 16}… and {more:,} more"


def megabytes(leftovers: Iterable[Leftover]) -> str:
    return f"{sum(leftover.bytes for leftover in leftovers) / 1e6:10,.1f} MB"


def _in(data: DataRoot, path: Path) -> Path:
    return path.relative_to(data.root) if path.is_relative_to(data.root) else path


def superseded_exports(data: DataRoot) -> list[Leftover]:
    """Exports whose cell has a newer good result.

    Their owner removes them; they are not for `remove`.
    """
    attempts = list(cells.all_attempts(data))
    run_ids, newest = {a.run_id for a in attempts}, {a.key: a.run_id for a in attempts if a.status == "ok"}
    return [
        Leftover(folder, "exports of replaced results; they stay, since somebody asked for them")
        for key, folder in _exports(data)
        if folder.name in run_ids and newest.get(key, folder.name) != folder.name
    ]


def remove(leftovers: Iterable[Leftover]) -> Iterator[tuple[Leftover, str | None]]:
    """Remove each; yields it with None, or with the reason why it stays."""
    for leftover in leftovers:
        try:
            if leftover.lock:
                with locked(leftover.lock, "prune", wait=False):
                    _delete(leftover.path)
            else:
                _delete(leftover.path)
        except (WorkError, OSError) as error:
            yield leftover, str(error)
        else:
            yield leftover, None


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _examples(data: DataRoot, attempts: list[Attempt]) -> Iterator[Leftover]:
    current = current_examples(data)
    names = {current.folder.name} if current else set()
    for attempt in attempts:
        specs = [attempt.spec, *(evaluation.spec for evaluation in attempt.evaluations())]
        names |= {Path(spec.examples).parent.name for spec in specs if spec.examples}
    for folder in sorted(data.clean.glob("*/")):
        if folder.name not in names and not folder.name.startswith("."):
            yield Leftover(folder, "examples that newer ones have replaced and no attempt was trained on")
    if data.tried.root.exists():
        yield Leftover(data.tried.root, "what `clean --try` showed", data.tried.locks / "clean.lock")


def _estimates(project: Project, attempts: list[Attempt]) -> Iterator[Leftover]:
    """Predictions that neither an attempt nor a configured cell would read."""
    files = sorted((project.data.lake / "estimates").glob("*.json"))
    names = {
        answer_file(project.data, a.spec.recipe, prints.get("data"), a.key.seed, own_tokenizer=own).name
        for a in attempts
        for own in (True, False)
        for prints in [a.spec.fingerprints]
    }
    contents = [read_json(file) or {} for file in files]
    cells_in_files = {(one.get("model"), one.get("method")) for one in contents}
    configured = [cell for cell in project.experiments.cells if cell in cells_in_files]
    for name, profile in project.experiments.profiles.items():
        under = Project(project.data, project.experiments, name)
        names |= {question.file.name for question in questions(under, configured, profile.seeds)}
    for file in files:
        if file.name not in names:
            yield Leftover(file, "predictions of memory for cells that are no longer configured")


def _studies(project: Project) -> Iterator[Leftover]:
    """Searches of `featherweight tune` that no configured cell can resume."""
    folders = sorted((project.data.lake / "tune").glob("*/*/*/"))
    resumable: set[Path] = set()
    for name in project.experiments.profiles if folders else ():
        # There may be no cleaned data, or none in the profile's languages.
        with suppress(UsageError):
            resolved = Project(project.data, project.experiments, name).resolve()
            resumable |= {folder for folder in folders if _can_resume(folder, resolved)}
    for folder in folders:
        if folder not in resumable:
            why = "searches for a learning rate that no configured cell resumes"
            yield Leftover(folder, why, folder / LOCK)


def _can_resume(folder: Path, resolved: Resolved) -> bool:
    """Whether `tune` would resume the study in `folder`.

    Without the model's weights this is unknown and counts as true.
    """
    model, method = folder.parts[-3:-1]
    spec = next((read_json(file) for file in folder.glob("*/*/spec.json")), None)
    if spec is None or (model, method) not in resolved.experiments.cells:
        return False
    key = CellKey(model, method, spec["seed"])
    return "weights" not in resolved.plan(key).fingerprints or folder == study_folder(resolved, key)


def _cells(data: DataRoot, attempts: list[Attempt]) -> Iterator[Leftover]:
    for key, group in groupby(attempts, key=lambda attempt: attempt.key):
        tries = list(group)
        lock = key.folder(data) / "cell.lock"
        good = [attempt for attempt in tries if attempt.status == "ok"]
        final = max((i for i, attempt in enumerate(tries) if attempt.status in restart.FINAL), default=-1)
        for i, attempt in enumerate(tries):
            if _is_written(attempt):
                continue
            if attempt.model_folder.exists() and good and attempt != good[-1]:
                yield Leftover(attempt.model_folder, "models that a newer good one of the same cell has replaced", lock)
            if i <= final and (attempt.folder / checkpoints.FOLDER).exists():
                yield Leftover(attempt.folder / checkpoints.FOLDER, "checkpoints of cells that have finished", lock)
            for path in _half_written_of(attempt, with_checkpoints=i > final):
                why = "models that were only half saved" if path.name == ".model.partial" else HALF
                yield Leftover(path, why, lock)


def _is_written(attempt: Attempt) -> bool:
    """Whether a process works in the attempt's folder, even unwatched on a cluster."""
    for run in (attempt, *attempt.evaluations()):
        status, launcher = run.result.status, launcher_class(run.spec.launcher)
        if status in ("queued", "running") or (status == "lost" and launcher.is_under_way(run.folder)):
            return True
    return False


def _half_written_of(attempt: Attempt, *, with_checkpoints: bool) -> Iterator[Path]:
    """The temporary paths in an attempt's folder, except those inside another one or inside
    checkpoints that go completely.

    A cluster that cannot be asked may still be writing, so there only paths older than a day count.
    """
    on_cluster = attempt.status == "lost" and not launcher_class(attempt.spec.launcher).holds_device
    for path in sorted(attempt.folder.rglob(".*.partial")):
        parents = [part for part in path.relative_to(attempt.folder).parts[:-1] if part.endswith(".partial")]
        removed_with_folder = not with_checkpoints and attempt.folder / checkpoints.FOLDER in path.parents
        if not parents and not removed_with_folder and not (on_cluster and _is_young(path)):
            yield path


def _is_young(path: Path) -> bool:
    return time.time() - path.lstat().st_mtime <= DAY


def _exports(data: DataRoot) -> Iterator[tuple[CellKey, Path]]:
    """The exports in their default folder, each with its cell.

    The export's folder has the name of its attempt.
    """
    for folder in sorted((data.root / "exports").glob("*/*/*/*/")):
        model, method, seed = folder.parts[-4:-1]
        if seed.lstrip("-").isdigit():
            yield CellKey(model, method, int(seed)), folder


def _exports_of_nothing(data: DataRoot, attempts: list[Attempt]) -> Iterator[Leftover]:
    existing = {(attempt.key, attempt.run_id) for attempt in attempts}
    for key, folder in _exports(data):
        if (key, folder.name) not in existing:
            home = key.folder(data)
            lock = home / "export.lock" if home.exists() else None
            yield Leftover(folder, "exports of attempts that were removed", lock)


def _bit_widths(data: DataRoot) -> Iterator[Leftover]:
    """Measurements that no table shows now, except the last good one of each result and format."""
    for home in sorted((data.lake / "bit_widths").glob("*/*/*/*/*/")):
        tries = sorted(path for path in home.iterdir() if path.is_dir())
        good = [path for path in tries if result_in(path).status == "ok"]
        for path in tries[:-1]:
            if path not in good[-1:] and result_in(path).status not in ("queued", "running"):
                yield Leftover(path, "measurements that newer ones of the same kind have replaced")


def _publications(data: DataRoot) -> Iterator[Leftover]:
    """Files that publishing itself left behind, except the current one and the one before it."""
    current = data.warehouse.resolve()
    others = sorted(path for path in (data.root / "warehouse").glob("*.duckdb") if path != current)
    for path in others[: len(others) - (KEPT - 1)]:
        yield Leftover(path, "old publications", data.locks / "publish.lock")
    for path in sorted((data.root / "warehouse").glob("*.wal")):
        yield Leftover(
            path,
            "files of database sessions that outlived their publication",
            data.locks / "publish.lock",
        )


def _half_written(data: DataRoot) -> Iterator[Leftover]:
    """Temporary files of killed processes.

    One from the last day may still be in use, so it stays.
    """
    for path in sorted(data.root.rglob(".*.partial")):
        if path.exists() and not _is_young(path) and not path.is_relative_to(data.cells):
            yield Leftover(path, HALF)
