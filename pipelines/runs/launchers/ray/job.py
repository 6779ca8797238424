"""The node's half of a cell: `python -m pipelines.runs.launchers.ray.job PLACE [JOB]` is what a Ray
job runs.

PLACE is the attempt's folder if all nodes see the data root, else the URL of the storage that holds
JOB. The cell's own command runs here like on the driver's machine, under its budget and its time
limit. Its ending becomes the file ended.json.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipelines.errors import UnavailableError
from pipelines.lake import disk
from pipelines.lake.files import write_json
from pipelines.lake.paths import PROJECT
from pipelines.runs.launchers.node import INTERRUPTED, NO_ORDER, Signals, in_shared_folder, run
from pipelines.runs.launchers.ray import code
from pipelines.runs.launchers.ray.parcel import Outbox, unpack
from pipelines.runs.launchers.ray.store import Store, StoreError
from pipelines.runs.process import end_as_interrupt

SHARE = (
    "without ray.storage the data root must be a folder that every node sees under the same path; set ray.storage to an s3:// URL "
    "(or any of fsspec's), or mount it"
)
SEND_SECONDS = 2.0
# Time for ended.json to reach a storage that does not answer.
LAST_SECONDS = 120.0
SCRATCH = "FEATHERWEIGHT_SCRATCH"
Json = dict[str, Any]


def main() -> int:
    place, *job = sys.argv[1:]
    end_as_interrupt()
    try:
        return from_storage(place, job[0]) if job else in_shared_folder(Path(place), SHARE, code=own_code())
    except UnavailableError as error:
        print(error, file=sys.stderr, flush=True)
        return NO_ORDER
    except KeyboardInterrupt:
        return INTERRUPTED


def from_storage(url: str, job: str) -> int:
    """Work in a scratch folder, with the layout of the data root, and send all changes."""
    store = Store(url)
    content = store.read(f"jobs/{job}/job.json")
    if content is None:
        raise StoreError(f"storage {url} holds no jobs/{job}/job.json: is it the one that the driver writes to?")
    order = json.loads(content)
    # Start from an empty root; an earlier job of the same name may have left files.
    scratch = scratch_folder()
    root = scratch / "jobs" / job
    shutil.rmtree(root, ignore_errors=True)
    folder = root / order["folder"]
    folder.mkdir(parents=True)
    try:
        began = time.monotonic()
        bytes_read = unpack(order["inputs"], root, scratch / "blobs", store)
        print(f"{bytes_read / 1e6:.0f} MB read from {url} in {time.monotonic() - began:.1f} s", flush=True)
        write_json(folder / "spec.json", {**order["spec"], "root": str(root)})
        disk.reserve_space(folder)
        signals = Signals(folder)
        with sending(Outbox(store, job, folder), signals):
            return run(order, folder, signals, code=own_code())
    finally:
        shutil.rmtree(root, ignore_errors=True)


def scratch_folder() -> Path:
    """The folder of this node for inputs and working copies: FEATHERWEIGHT_SCRATCH, else one in the
    temporary folder."""
    return Path(os.environ.get(SCRATCH) or Path(tempfile.gettempdir()) / f"featherweight-{os.getuid()}")


@contextmanager
def sending(outbox: Outbox, signals: Signals) -> Iterator[None]:
    """Send changes in a thread while the cell runs, so that a slow storage delays no watchdog. At
    the end, send the rest.

    Raises:
        StoreError: the storage did not answer for LAST_SECONDS.
    """
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(SEND_SECONDS):
            with _printing_errors():
                outbox.send()
                signals.stop_request = signals.stop_request or outbox.stop_request()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _until_sent(outbox.send)


@contextmanager
def _printing_errors() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        print(f"{error}; trying again", file=sys.stderr, flush=True)


def _until_sent(send: Callable[[], None]) -> None:
    deadline = time.monotonic() + LAST_SECONDS
    while True:
        try:
            send()
            return
        except StoreError:
            if time.monotonic() > deadline:
                raise
            time.sleep(SEND_SECONDS)


def own_code() -> Path:
    """The unpacked sources, copied once to a folder that only this project changes.

    When a second node on the same machine needs the package, Ray unpacks it again over the folder
    of running jobs.
    """
    if not PROJECT.name.startswith(code.PREFIX):
        # The sources are installed here.
        return PROJECT
    copy = scratch_folder() / "code" / PROJECT.name
    if not copy.exists():
        partial = copy.with_name(f".{copy.name}.{os.getpid()}")
        shutil.copytree(PROJECT, partial)
        # Another job may have been faster.
        with suppress(OSError):
            partial.rename(copy)
        shutil.rmtree(partial, ignore_errors=True)
    return copy


if __name__ == "__main__":
    sys.exit(main())
