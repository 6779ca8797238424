"""The one way to run a child in a folder: spec in, result out.

    queue(folder, spec)                        write the spec and the state `queued` into the folder
    Run(folder, module, ...).to_result(site)   check requirements → lock the device → launch → watch → classify → write result

Training, evaluation, export, bit widths and the trials of tuning all run this way.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from pipelines.errors import UnavailableError, UsageError, WorkError
from pipelines.hardware import machine
from pipelines.hardware.machine import own_identity
from pipelines.lake import disk
from pipelines.lake.files import announce, locked, write_json
from pipelines.runs import devices, trackers
from pipelines.runs.cells import Attempt
from pipelines.runs.clock import now
from pipelines.runs.command import CellCommand, Ending, Starter
from pipelines.runs.exits import child_report, classify_exit
from pipelines.runs.fitting import in_words, run_fitted
from pipelines.runs.launchers.base import Launcher
from pipelines.runs.launchers.chosen import launcher_class
from pipelines.runs.result import RunResult, write_result
from pipelines.runs.spec import STATE, RunSpec, spec_in
from pipelines.runs.status import Status
from pipelines.runs.watchdog import run_to_end

# Time for a run to save its work when its time limit or somebody outside stops it.
GRACE_SECONDS = 30


class GivenUpError(Exception):
    """Raised by `on_tick` to give up a run. Its result is `killed`, with this message."""


@dataclass(frozen=True)
class RunHooks:
    """A caller's additions to its runs.

    `env` goes to the child. `on_tick` is called every half second. `say` reports progress.
    `launcher` replaces the configured one, and `around` wraps either.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    on_tick: Callable[[Attempt], None] = lambda _attempt: None
    say: Callable[[str], None] = announce
    launcher: Starter | None = None
    around: Callable[[Starter], Starter] = lambda inner: inner


@dataclass(frozen=True)
class Site:
    """The launcher that starts runs, and the hooks of the caller."""

    launcher: Launcher
    hooks: RunHooks

    def here(self) -> "Site":
        """The same site with this machine's launcher, for runs outside the grid."""
        return replace(self, launcher=launcher_class("local")())


@dataclass(frozen=True)
class Run:
    """A child, `python -m MODULE FOLDER`, with the spec in FOLDER.

    `check` raises if the child cannot run; the launcher's own check follows. `fetch` brings the
    child's inputs. `on_tick` is called every half second. `phase` is the phase in the result (None:
    the child's). `outlook` says what the next run will do if this one ends too early.
    """

    folder: Path
    module: str
    phase: str | None = None
    check: Callable[[], object] = lambda: None
    fetch: Callable[[], object] = lambda: None
    on_tick: Callable[[], None] = lambda: None
    outlook: Callable[[Path], str] = lambda _folder: ""

    def to_result(self, site: Site) -> RunResult:
        """Run the child to its end and write the result. A cancel from outside is re-raised after
        that.

        Raises:
            WorkError: the folder or the locks cannot be written.
        """
        try:
            self.check()
            site.launcher.require(self._spec.placement)
            self.fetch()
        except (UnavailableError, UsageError) as error:
            return self._last_word("unavailable", str(error))
        except WorkError as error:
            return self._last_word("failed", str(error))
        except BaseException as error:
            self._interrupted(error)
            raise
        try:
            ending = self._to_end(site)
        except UnavailableError as error:
            return self._last_word("unavailable", str(error))
        except GivenUpError as error:
            return self._last_word("killed", str(error), reason="given_up")
        except BaseException as error:
            self._interrupted(error)
            raise
        return self._classified(ending)

    @property
    def _spec(self) -> RunSpec:
        return spec_in(self.folder)

    def _to_end(self, site: Site) -> Ending:
        """Lock the device, note `running`, and run the child under the spec's time limit and its
        budget per device."""
        spec, hooks, launcher = self._spec, site.hooks, site.launcher
        with self._device(spec, site) as locks:
            note_state(self.folder, "running", "load")
            # The watchdog enforces a memory budget only on CPUs; on a GPU the child does.
            budget = spec.memory_budget_gb
            minutes = spec.time_limit_minutes if site.launcher.holds_device else None
            command = CellCommand(
                arguments=["-m", self.module, str(self.folder)],
                folder=self.folder,
                env={**trackers.keys(spec.report_to), **hooks.env},
                keep_open=[lock.fileno() for lock in locks],
                memory_budget=round(budget * 1e9) * spec.devices if budget and machine.device_slug() == "cpu" else None,
                time_limit=minutes * 60 if minutes else None,
                grace_seconds=GRACE_SECONDS,
                devices=spec.devices,
            )
            starter = hooks.around(hooks.launcher or launcher)
            # A cluster's node fits the micro-batches itself.
            if not launcher.holds_device:
                return run_to_end(starter, command, on_tick=self.on_tick)

            def say(message: str) -> None:
                hooks.say(f"{spec.model} × {spec.method} (seed {spec.seed}): {message}")

            return run_fitted(starter, command, spec, on_tick=self.on_tick, say=say)

    @contextmanager
    def _device(self, spec: RunSpec, site: Site) -> Iterator[list[IO[str]]]:
        """The locks of the run's devices on this machine; none for another machine."""
        paths = devices.locks_of(spec.devices) if site.launcher.holds_device else []
        holder = f"{spec.model} × {spec.method}"
        with ExitStack() as stack:
            yield [stack.enter_context(locked(path, holder, say=site.hooks.say)) for path in paths]

    def _classified(self, ending: Ending) -> RunResult:
        spec, report = self._spec, child_report(self.folder)
        status, detail = classify_exit(ending, report, spec, self.folder)
        if status in ("killed", "timed_out") and "the next run" not in (detail or ""):
            detail = _join(detail, self.outlook(self.folder))
        if spec.after:
            detail = _join(f"begun before: {spec.after}", detail)
        return self._last_word(status, detail, ending)

    def _interrupted(self, error: BaseException) -> None:
        # The child finished before it could be stopped.
        if child_report(self.folder).get("status") == "ok":
            self._last_word("ok", None)
            return
        self._last_word("killed", _join(_why(error), self.outlook(self.folder)))

    def _last_word(
        self, status: Status, detail: str | None, ending: Ending | None = None, reason: str | None = None
    ) -> RunResult:
        report = child_report(self.folder)
        phase, detail = self.phase or report["phase"], _join(detail, in_words(status, self._spec, report)) or None
        return write_result(self.folder, status, phase, detail, ending, reason)


def _why(error: BaseException) -> str:
    """The reason as text. A cancel (Ctrl-C, SIGTERM, Dagster's) is no `Exception`; any `Exception`
    here is a bug of ours."""
    if isinstance(error, Exception):
        return f"interrupted ({type(error).__name__})"
    return f"canceled ({error})" if str(error) else "canceled"


def _join(*parts: str | None) -> str:
    return "; ".join(filter(None, parts))


def queue(folder: Path, spec: RunSpec, phase: str = "load") -> None:
    """Write the spec and the state `queued` into `folder`, and reserve disk space for the result.

    Raises:
        WorkError: the folder cannot be written. It is removed again, so that the newest run stays
            the newest.
    """
    existed = folder.exists()
    try:
        disk.reserve_space(folder)
        spec.write(folder)
        note_state(folder, "queued", phase)
    except (OSError, WorkError) as error:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        if disk.is_full(error):
            raise disk.DiskFullError("a new run", folder, disk.ROOM_BYTES) from error
        if isinstance(error, WorkError):
            raise
        raise WorkError(
            f"cannot write {folder}: {error.strerror or error}; make it writable, then try again."
        ) from error


def note_state(folder: Path, status: Status, phase: str) -> None:
    """Write the state of the run, which holds as long as its parent, this process, lives."""
    write_json(folder / STATE, {"status": status, "phase": phase, "started_at": now(), **own_identity()})


def run_with_retry(run: Run, again: Callable[[str], Run], site: Site) -> Run:
    """Run `run`, and if its node is lost, run `again(detail)` once on another node.

    Returns the run whose result counts.
    """
    result = run.to_result(site)
    spec = spec_in(run.folder)
    if result.reason != "node_lost" or spec.after:
        return run
    after = (result.status_detail or "").split(";")[0]
    site.hooks.say(f"{spec.model} × {spec.method} (seed {spec.seed}): {after}; once more on another node")
    second = again(after)
    second.to_result(site)
    return second
