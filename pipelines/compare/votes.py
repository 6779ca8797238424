"""Votes of people on several cells' answers side by side, one line of JSON each in
`data/lake/preferences.jsonl`.

A vote is written once and never changed. If a kill or a full disk cuts a line off, only that vote
is lost: the next vote begins on a line of its own.
"""

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from pipelines.errors import WorkError
from pipelines.lake.files import is_private, locked, make_folder
from pipelines.lake.paths import DataRoot
from pipelines.runs.clock import now

TIE, NEITHER = "tie", "neither"
LOCK = "preferences.lock"
MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class Shown:
    """One answer as shown, with its cell and its attempt."""

    model: str
    method: str
    seed: int
    run_id: str
    answer: str

    @property
    def cell(self) -> tuple[str, str, int]:
        return self.model, self.method, self.seed


@dataclass(frozen=True)
class Preference:
    """One vote.

    `shown`: two or more answers of different cells in the order on the screen; their cells were
    hidden. `chosen`: the place of the best answer, from 0, or `tie` (equally good) or `neither`
    (equally bad). `id` recognizes a vote that was sent twice. `settings`: the settings of the
    generation, such as temperature, max_new_tokens, system, turn.

    Raises:
        ValueError: fewer than two answers, a repeated cell, an unknown choice, or a time without a
            time zone.
    """

    prompt: str
    shown: tuple[Shown, ...]
    chosen: int | str
    settings: Mapping[str, Any] = field(default_factory=dict)
    at: str = field(default_factory=now)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        if len(self.shown) < 2 or len({one.cell for one in self.shown}) < len(self.shown):
            cells = [" × ".join(map(str, one.cell)) for one in self.shown]
            raise ValueError(f"a vote on {cells}; expected answers of two or more different cells")
        if datetime.fromisoformat(self.at).tzinfo is None:
            raise ValueError(
                f"at is {self.at!r}; expected a moment with its time zone, such as 2026-11-30T17:00:00+00:00"
            )
        places = range(len(self.shown))
        is_choice = self.chosen in (places if type(self.chosen) is int else (TIE, NEITHER))
        if not is_choice:
            raise ValueError(f"chosen is {self.chosen!r}; expected 0 to {len(self.shown) - 1}, {TIE!r} or {NEITHER!r}")


@dataclass(frozen=True)
class Votes:
    """All votes in the order of casting, each once, and the number of complete lines that are
    not votes."""

    votes: tuple[Preference, ...] = ()
    unreadable: int = 0


def append(data: DataRoot, vote: Preference) -> None:
    """Store `vote`; on return it is on the disk.

    Raises:
        WorkError: the file cannot be written; its earlier content is intact.
    """
    line = json.dumps(asdict(vote), ensure_ascii=False, allow_nan=False)
    # A browser may send half a surrogate pair; it becomes a question mark.
    text = line.encode("utf-8", "replace") + b"\n"
    try:
        with locked(data.locks / LOCK, "a vote"), _opened(data) as file:
            _write_whole(file, text)
    except OSError as error:
        raise WorkError(
            f"cannot write {data.preferences}: {error.strerror or error}; the vote is not kept, those before it are. "
            "Free disk space or make the folder writable, then vote again."
        ) from error


def read(data: DataRoot) -> Votes:
    """The votes of the file; none if there is no file. A vote that appears twice counts once, in
    its first version.

    Raises:
        WorkError: the file cannot be read.
    """
    try:
        # splitlines() would also split at U+2028 and U+0085, which may be part of a text and end no
        # line in JSONL.
        *lines, rest = data.preferences.read_bytes().split(b"\n")
    except FileNotFoundError:
        return Votes()
    except OSError as error:
        raise WorkError(f"cannot read {data.preferences}: {error.strerror or error}; make it readable.") from error
    votes = [_vote(line) for line in lines if line.strip()]
    by_id: dict[str, Preference] = {}
    for vote in filter(None, [*votes, _vote(rest)]):
        by_id.setdefault(vote.id, vote)
    return Votes(tuple(by_id.values()), votes.count(None))


def _vote(line: bytes) -> Preference | None:
    """The vote in a line; None if it is not a vote. Unknown keys, which newer code may have
    added, are ignored."""
    try:
        record = json.loads(line)
        shown = tuple(
            Shown(**{name: _typed(kind, one[name]) for name, kind in SHOWN.items()}) for one in record["shown"]
        )
        texts = {name: _typed(str, record[name]) for name in ("prompt", "at", "id")}
        settings = _typed(dict, record.get("settings", {}))
        return Preference(shown=shown, chosen=record["chosen"], settings=settings, **texts)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


SHOWN: dict[str, Any] = {"model": str, "method": str, "seed": int, "run_id": str, "answer": str}


def _typed(kind: type, value: Any) -> Any:
    if type(value) is not kind or (kind is int and abs(value) > MAX_SEED):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    # Half a surrogate pair becomes a question mark here too.
    return value.encode("utf-8", "replace").decode() if kind is str else value


@contextmanager
def _opened(data: DataRoot) -> Iterator[int]:
    path, mode = data.preferences, 0o600 if is_private(data.preferences) else 0o666
    make_folder(path.parent)
    is_new = not path.exists()
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, mode)
    try:
        yield file
        os.fsync(file)
        if is_new:
            _sync_folder(path.parent)
    finally:
        os.close(file)


def _write_whole(file: int, text: bytes) -> None:
    """Append all of `text` or nothing: a part written before the disk was full is removed again."""
    size = os.fstat(file).st_size
    # A kill may have cut the last line off.
    if size and os.pread(file, 1, size - 1) != b"\n":
        text = b"\n" + text
    try:
        written = os.write(file, text)
        while written < len(text):
            written += os.write(file, text[written:])
    except OSError:
        os.ftruncate(file, size)
        raise


def _sync_folder(folder: os.PathLike[str]) -> None:
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(place)
    finally:
        os.close(place)
