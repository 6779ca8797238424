"""`make run` and `make tour`: run the whole graph through Dagster on one profile, cell by cell,
with progress; then print the table.

Every run is in the UI afterwards: in the history, on Timeline and on its job's page. Current
results are reused, so that a second call takes seconds.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import dagster as dg

from assets import location
from pipelines.clean.read import corpus_records, named_files
from pipelines.compare.compare import published_rows
from pipelines.compare.outside import of_profile
from pipelines.compare.show import render
from pipelines.compare.terminal import output_width
from pipelines.errors import UnavailableError, UsageError, WorkError
from pipelines.generate.requests import load_prompts
from pipelines.generate.trained_on import sources_of
from pipelines.lake.disk import explained
from pipelines.lake.paths import data_root
from pipelines.project import Project
from pipelines.runs.cells import CellKey, latest
from pipelines.runs.clock import Stopwatch
from pipelines.runs.process import PARENT, die_with_parent, end_as_interrupt, print_anything, stop_group
from pipelines.runs.progress import CellProgress
from pipelines.upkeep.upgrade import noticed

DRIVER, ONE_CELL = "--driver", "--cell"
INTERRUPTED = 130
# Longer than the 30 seconds that a cell has to save its state.
STOP_SECONDS = 45
# Publications between cells take at most this share of the time.
PUBLISHING_SHARE = 0.05
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class PublicationPace:
    """Decides when the table is published between two cells, so that it grows during the run.

    It is published after the first cell, then so rarely that publishing takes at most
    PUBLISHING_SHARE of the time.
    """

    def __init__(self) -> None:
        self._wait, self._since = 0.0, Stopwatch()

    def is_due(self) -> bool:
        """Whether to publish now."""
        return self._since.total() >= self._wait

    def published(self, seconds: float) -> None:
        """A publication has just ended, which took `seconds`."""
        self._wait, self._since = seconds / PUBLISHING_SHARE, Stopwatch()


def run() -> int:
    """Run everything. Exit code: 0 all cells ok, 3 recorded but some not ok, 1 a Dagster step
    failed."""
    from assets.instance import end_orphaned_runs, owner_tags, prepare_home, size_pool
    from assets.project import project_now

    project = project_now()
    check_inputs(project)
    if older := noticed(project):
        say(older.in_words())
    prepare_home()
    _fetch(project)
    with dg.DagsterInstance.get() as instance:
        if ended := end_orphaned_runs(instance):
            say(f"{ended} run(s) of a killed process marked as failed; their unfinished work is done now")
        tags = owner_tags()
        say(f"profile {project.profile}: {len(project.grid)} cells; data root {project.data.root}")
        if not _execute("data", instance, "data: corpus, generated records, cleaning", tags):
            return 1
        size_pool(instance)
        good = _run_cells(project, instance, tags)
        if not _execute("publish", instance, "comparison: warehouse and report", tags):
            return 1
    rows = published_rows(project.data)
    print(f"\n{render(rows, 'text', published_rows(project.data, 'picks'), output_width())}\n")
    print(f"warehouse  {project.data.warehouse}\nreport     {project.data.report}\nruns       make ui")
    if not all(good):
        return 1
    return 0 if all(row["status"] == "ok" for row in of_profile(rows)) else 3


def _fetch(project: Project) -> None:
    from pipelines.weights import store

    for model in project.settings.models:
        try:
            store.fetch(project.data, project.experiments, model, say=say)
        except UnavailableError as error:
            # The rows of its cells will have this error.
            say(f"{model}: {error}")


def _run_cells(project: Project, instance: dg.DagsterInstance, tags: dict[str, str]) -> list[bool]:
    """Run the cells that are not settled; returns whether each succeeded."""
    from pipelines.estimate.estimate import ensure_predictions

    settled = _settled(project)
    for model, method in settled:
        say(f"{model} × {method}\n      {_why_reused(project, model, method)}")
    left = [cell for cell in project.grid if cell not in settled]
    if left:
        ensure_predictions(project)
    launcher = project.launcher()
    if not launcher.holds_device:
        return _side_by_side(project, instance, left, tags, launcher.at_once)
    good, pace = list[bool](), PublicationPace()
    for place, (model, method) in enumerate(left, start=1):
        good.append(_run_cell(project, instance, model, method, tags))
        if place < len(left) and pace.is_due():  # `run` publishes after the last cell
            clock = Stopwatch()
            good.append(_execute("publish", instance, None, tags))
            pace.published(clock.total())
    return good


def check_inputs(project: Project) -> None:
    """Read the user's files before anything starts.

    Raises:
        UsageError: a file is missing or broken; the message names the place.
    """
    sources = project.experiments.sources
    if sources.uses_corpus:
        corpus_records(project.data)
    if sources_of(project.experiments):
        load_prompts(project.data, project.experiments.generation)
    named_files([*sources.files, *sources.eval_files])


def _settled(project: Project) -> list[tuple[str, str]]:
    """The ok cells with nothing due. A Dagster run would reach the same result in seconds per
    cell."""
    from pipelines.evaluate.cell import evaluated_by
    from pipelines.nightly.due import why_due

    resolved = project.resolve()
    by = evaluated_by(resolved)

    def is_settled(key: CellKey) -> bool:
        newest = latest(project.data, key)
        return newest is not None and newest.status == "ok" and why_due(resolved, key, by) is None

    return [cell for cell in project.grid if all(map(is_settled, resolved.cell(*cell).keys))]


def _why_reused(project: Project, model: str, method: str) -> str:
    newest = latest(project.data, CellKey(model, method, project.settings.seeds[0]))
    older = newest is not None and newest.result.fingerprints.get("code") != project.code_of(method)
    return f"reused: {'made by earlier code, and kept' if older else 'it is current'}"


def _run_cell(project: Project, instance: dg.DagsterInstance, model: str, method: str, tags: dict[str, str]) -> bool:
    """Train and evaluate one cell."""
    from assets.project import partition_of

    key = CellKey(model, method, project.settings.seeds[0])
    before = latest(project.data, key)
    with _shown(project, key):
        done = _execute("training", instance, f"{model} × {method}", tags, str(partition_of(model, method)))
    after = latest(project.data, key)
    if after and before and after.run_id == before.run_id and after.status == "ok":
        say(f"      {_why_reused(project, model, method)}")
    elif after and after.status != "ok":
        say(f"      {after.status}: {after.result.status_detail}")
    return done


def _side_by_side(
    project: Project, instance: dg.DagsterInstance, cells: list[tuple[str, str]], tags: dict[str, str], at_once: int
) -> list[bool]:
    """Run up to `at_once` cells in parallel processes, the longest first; publish after each."""
    from pipelines.plan.plan import longest_first

    waiting, good = longest_first(project, cells), list[bool]()
    running: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
    try:
        while waiting or running:
            done = [cell for cell, process in running.items() if process.poll() is not None]
            codes = [running.pop(cell).returncode for cell in done]
            while waiting and len(running) < at_once:
                cell = waiting.pop(0)
                running[cell] = _own_process(ONE_CELL, *cell)
            good += [code == 0 for code in codes]
            if done and not _execute("publish", instance, None, tags):
                good.append(False)
            time.sleep(0.2)
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + STOP_SECONDS
        for process in running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            stop_group(process)
    return good


def one_cell(model: str, method: str) -> int:
    """Train and evaluate one of the parallel cells."""
    from assets.instance import owner_tags, prepare_home
    from assets.project import partition_of, project_now

    project = project_now()
    prepare_home()
    key = CellKey(model, method, project.settings.seeds[0])
    with dg.DagsterInstance.get() as instance:
        done = _execute("training", instance, f"{model} × {method}", owner_tags(), str(partition_of(model, method)))
    after = latest(project.data, key)
    if after:
        detail = after.result.status_detail
        say(f"      {model} × {method}: {after.status}{f': {detail}' if detail else ''}")
    return 0 if done else 1


def _own_process(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "assets.run", *arguments],
        env={**os.environ, PARENT: str(os.getpid())},
        start_new_session=True,
    )


def _execute(
    job: str, instance: dg.DagsterInstance, title: str | None, tags: dict[str, str], partition: str | None = None
) -> bool:
    if title:
        say(f"[{time.strftime('%H:%M:%S')}] {title}")
    started = time.monotonic()
    run_tags = {**tags, "dagster/partition": partition} if partition else tags
    config = QUIET
    if partition:
        run_tags |= _dimension_tags(partition)
        config = {**QUIET, "ops": {asset: {"config": _kept_rows()} for asset in ("trained_model", "evaluation")}}
    result = location.execute(job, instance, config=config, tags=run_tags)
    if title:
        say(f"      {'done' if result.success else 'FAILED'} in {time.monotonic() - started:.0f} s")
    for event in result.all_events if not result.success else []:
        if event.is_step_failure and event.step_failure_data.error:
            cause = event.step_failure_data.error.cause or event.step_failure_data.error
            # Dagster turns a Ctrl-C into a failed step.
            if "Interrupted" in (cause.cls_name or ""):
                raise KeyboardInterrupt
            say(f"      {event.step_key}: {cause.message.strip()}")
    return result.success


def _kept_rows() -> dict[str, Any]:
    """The config that keeps rows that are stale only by `code`, as at night."""
    from assets.shown import grid

    return {"rerun_for": list(grid().nightly.rerun_for)}


def _dimension_tags(partition: str) -> dict[str, str]:
    method, model = partition.split("|")
    return {"dagster/partition/method": method, "dagster/partition/model": model}


@contextmanager
def _shown(project: Project, key: CellKey) -> Iterator[None]:
    """Show the cell's progress while Dagster's steps run in other processes."""
    done = threading.Event()
    known = latest(project.data, key)

    def follow() -> None:
        progress = CellProgress()
        while not done.wait(0.5):
            attempt = latest(project.data, key)
            if attempt and (known is None or attempt.run_id != known.run_id):
                progress.show(attempt)
        progress.close()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main() -> int:
    """Run in a child process with its own session.

    A terminal's Ctrl-C reaches every process of its group, and each of Dagster's helpers would
    print a traceback. This process passes the signal only to the driver, which stops the others.
    """
    print_anything()
    if DRIVER in sys.argv:
        return drive(run)
    if ONE_CELL in sys.argv:
        return drive(lambda: one_cell(*sys.argv[2:]))
    driver = _own_process(DRIVER)
    end_as_interrupt()
    try:
        return driver.wait()
    except KeyboardInterrupt:
        driver.send_signal(signal.SIGINT)
        try:
            return driver.wait(timeout=STOP_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            return INTERRUPTED
    finally:
        stop_group(driver)


def drive(work: Callable[[], int]) -> int:
    die_with_parent()
    try:
        return work()
    except (UsageError, WorkError, UnavailableError) as error:
        print(f"featherweight: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        if ONE_CELL not in sys.argv:
            print(
                "featherweight: interrupted; finished work is kept, and the same command continues from there",
                file=sys.stderr,
            )
        return INTERRUPTED
    except Exception as error:
        if (message := explained(error, data_root().root)) is None:
            raise
        print(f"featherweight: {message}", file=sys.stderr)
        return WorkError.exit_code


if __name__ == "__main__":
    sys.exit(main())
