"""Files are complete or absent, and a lock has one holder, however the writing or holding process
ends."""

import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pipelines.errors import WorkError
from pipelines.generate.journal import opened
from pipelines.lake.files import locked, read_json, read_jsonl, replacing, write_json, write_jsonl, write_text
from pipelines.lake.paths import DataRoot
from pipelines.runs.process import spawn, stop_group
from pipelines.upkeep.doctor import examine
from tests.fakes import planted

HOLD = """
import sys
from pathlib import Path
from pipelines.lake.files import locked
with locked(Path(sys.argv[1]), "train tiny"):
    print("held", flush=True)
    sys.stdin.read()
"""
COUNT = """
import sys, time
from pathlib import Path
from pipelines.lake.files import locked
counter = Path(sys.argv[2])
for _ in range(25):
    with locked(Path(sys.argv[1]), "count"):
        seen = int(counter.read_text())
        time.sleep(0.001)
        counter.write_text(str(seen + 1))
"""
DIE_HALFWAY = """
import os, signal, sys
from pathlib import Path
from pipelines.lake.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half of the n")
    os.kill(os.getpid(), signal.SIGKILL)
"""
FILL_DISK = """
import sys
from pathlib import Path
from pipelines.errors import WorkError
from pipelines.lake.files import write_text
try:
    write_text(Path(sys.argv[1]), "x" * 1_000_000)
except WorkError as error:
    print(error)
    sys.exit(42)
"""


def python(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@contextmanager
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """A real process that holds `lock` until its stdin is closed."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def small_files_only() -> None:
    """Like a full disk on any machine: no file of this process may grow beyond 64 KB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))


def fail_halfway(path: Path, error: Exception) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise error


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder of its own with one file that says `old`."""
    path = tmp_path / "folder" / "file.json"
    path.parent.mkdir()
    path.write_text('"old"')
    return path


def only_the_old_one(path: Path) -> bool:
    return path.read_text(encoding="utf-8") == '"old"' and list(path.parent.iterdir()) == [path]


def test_replacing_puts_the_new_content_in_place_and_nothing_else(old: Path) -> None:
    with replacing(old) as temporary:
        temporary.write_text("new")
        assert old.read_text(encoding="utf-8") == '"old"'
    assert old.read_text(encoding="utf-8") == "new"
    assert list(old.parent.iterdir()) == [old]


def test_replacing_makes_missing_folders(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "한글")
    assert (tmp_path / "a" / "b" / "c.txt").read_text(encoding="utf-8") == "한글"


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_a_write_that_raises_leaves_the_old_content_and_no_leftovers(old: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        fail_halfway(old, error)
    assert only_the_old_one(old)


def test_a_write_that_the_system_refuses_is_a_work_error_naming_the_file(old: Path) -> None:
    with pytest.raises(WorkError, match=r"file\.json.*No space left"):
        fail_halfway(old, OSError(28, "No space left on device"))
    assert only_the_old_one(old)


def test_a_full_disk_leaves_the_old_content_and_no_leftovers(old: Path) -> None:
    done = python(FILL_DISK, old, preexec_fn=small_files_only)
    assert done.returncode == 42, done.stderr
    assert str(old) in done.stdout
    assert only_the_old_one(old)


def test_a_file_where_the_folder_should_be_is_a_work_error(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(WorkError, match="cannot write"):
        write_text(tmp_path / "folder" / "file.txt", "new")
    assert (tmp_path / "folder").read_text() == "a file"


def test_a_writer_killed_halfway_leaves_the_old_content(old: Path) -> None:
    assert python(DIE_HALFWAY, old).returncode == -signal.SIGKILL
    assert old.read_text(encoding="utf-8") == '"old"'


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"n": 0, "same": [0] * 5000})

    def rewrite() -> None:
        for n in range(1, 60):
            write_json(path, {"n": n, "same": [n] * 5000})

    writer = Thread(target=rewrite)
    writer.start()
    last = 0
    while last < 59:
        value = read_json(path)
        assert value is not None and value["same"] == [value["n"]] * 5000
        assert value["n"] >= last
        last = value["n"]
    writer.join()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("write", [write_json, lambda path, value: write_jsonl(path, [{"fine": 1}, value])])
def test_no_number_that_is_not_one_is_written(old: Path, number: float, write: Callable[[Path, Any], None]) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(old, {"loss": number})
    assert only_the_old_one(old)


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    value = {"text": "줄\n바꿈 \u2028 \x85 \u0000", "number": 0.1 + 0.2, "none": None}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


def test_read_json_of_no_file_or_half_a_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"status": "o')
    assert read_json(tmp_path / "half.json") is None
    assert read_json(tmp_path / "none.json") is None


def test_read_jsonl_drops_a_last_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    write_jsonl(path, [{"step": 0, "text": "하나"}, {"step": 1, "text": "둘"}])
    content = path.read_bytes()
    # One cut lies in the middle of a Korean letter.
    for cut in range(2, 16):
        path.write_bytes(content[:-cut])
        assert read_jsonl(path) == [{"step": 0, "text": "하나"}], f"{cut} bytes cut off"


def test_read_jsonl_of_no_file_is_empty(tmp_path: Path) -> None:
    assert read_jsonl(tmp_path / "curve.jsonl") == []


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n"])
def test_a_line_separator_inside_a_text_loses_no_row(tmp_path: Path, separator: str) -> None:
    rows = [{"answer": f"one{separator}two"}, {"answer": "three"}]
    write_jsonl(tmp_path / "answers.jsonl", rows)
    assert read_jsonl(tmp_path / "answers.jsonl") == rows


def test_a_held_lock_names_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "cpu.lock"
    with holder(lock) as process, pytest.raises(WorkError) as caught, locked(lock, "me", wait=False):
        pass
    assert "cpu is in use by train tiny" in str(caught.value)
    assert f"(process {process.pid})" in str(caught.value)


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "cpu.lock"
    with holder(lock) as process:
        # Closing its stdin makes the holder release the lock and end.
        process.communicate()
    with locked(lock, "me", wait=False):
        assert lock.read_text() == f"me (process {os.getpid()})"


def test_a_lock_ends_with_a_holder_that_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "cpu.lock"
    with holder(lock) as process:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    with locked(lock, "me", wait=False):
        pass


def test_who_waits_for_a_lock_says_so_once_and_gets_it(tmp_path: Path) -> None:
    lock, messages = tmp_path / "cpu.lock", []
    with holder(lock) as process:

        def say(message: str) -> None:
            messages.append(message)
            # The holder releases the lock only now.
            Thread(target=process.communicate).start()

        with locked(lock, "me", say=say):
            assert process.wait() == 0
    assert messages == [f"waiting for cpu: train tiny (process {process.pid}) holds it"]


def test_two_processes_never_hold_a_lock_at_once(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", COUNT, str(tmp_path / "count.lock"), str(counter)]
    both = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert counter.read_text() == "50"


def test_a_child_that_inherits_the_lock_holds_it_until_it_is_gone(tmp_path: Path) -> None:
    lock = tmp_path / "cpu.lock"
    with locked(lock, "train tiny") as handle:
        child = spawn(["-c", "import time; time.sleep(600)"], log=tmp_path / "log.txt", keep_open=(handle.fileno(),))
    try:
        with pytest.raises(WorkError, match="in use by train tiny"), locked(lock, "me", wait=False):
            pass
    finally:
        stop_group(child)
    with locked(lock, "me", wait=False):
        pass


def test_a_lock_that_cannot_be_made_is_a_work_error(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("a file")
    with pytest.raises(WorkError, match=r"cpu\.lock"), locked(tmp_path / "locks" / "cpu.lock", "me"):
        pass


# --- access to the lake


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_umask")
@pytest.mark.parametrize("name", ["data", "lake"])
def test_a_new_lake_is_its_owners_alone_and_what_is_published_is_not(tmp_path: Path, name: str) -> None:
    # A data root may have any name, also where it is new.
    data = DataRoot(tmp_path / name)
    with locked(data.locks / "generation.lock", "a test"), opened(data.journal):
        write_json(data.cells / "m" / "full" / "1" / "run" / "spec.json", {})
        write_text(data.report, "<html>")
        made = [data.lake, data.locks, data.cells / "m" / "full" / "1" / "run"]
        assert [mode(path) for path in made] == [0o700] * 3
        files = [*data.lake.glob("journal.sqlite*"), made[-1] / "spec.json"]
        assert len(files) == 4 and {mode(path) for path in files} == {0o600}, "SQLite's own files too"
    assert [mode(path) for path in (data.root, data.report.parent, data.report)] == [0o755, 0o755, 0o644]


@pytest.mark.usefixtures("usual_umask")
@pytest.mark.parametrize(("before", "file"), [(0o755, 0o600), (0o2770, 0o644)], ids=["of older code", "shared"])
def test_a_lake_that_is_there_keeps_its_mode_and_doctor_says_who_can_look_into_it(
    tmp_path: Path, before: int, file: int
) -> None:
    lake = planted.lake(tmp_path)
    lake.data.lake.chmod(before)
    with opened(lake.data.journal):
        write_json(lake.data.lake / "nights" / "n.json", {})
        assert mode(lake.data.lake) == before
        assert {mode(path) for path in (lake.data.journal, lake.data.lake / "nights" / "n.json")} == {file}
    lines = [line for line in examine(lake.data, lake.project.experiments) if line.startswith("lake")]
    assert len(lines) == 1 and f"`chmod 700 {lake.data.lake}`" in lines[0]
    lake.data.lake.chmod(0o700)
    assert not [line for line in examine(lake.data, lake.project.experiments) if line.startswith("lake")]
