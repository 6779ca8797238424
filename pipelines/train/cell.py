"""The parent's half of a cell: what it is made of, whether it is current, running it, and judging how it ended."""

import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from pipelines import disk, machine, trackers, weights
from pipelines.clean.clean import current as current_examples
from pipelines.clean.select import Selected, Selection, select
from pipelines.errors import UnavailableError, UsageError, WorkError
from pipelines.experiments import Experiments
from pipelines.files import announce, locked, read_json, stable_hash, write_json
from pipelines.machine import own_identity
from pipelines.paths import DataRoot
from pipelines.runs import cells, restart
from pipelines.runs.cells import Attempt, CellKey
from pipelines.runs.clock import now
from pipelines.runs.code import code_fingerprint
from pipelines.runs.launchers.base import CellCommand, Ending, Launcher, Placement, Starter
from pipelines.runs.launchers.chosen import launcher_class, launcher_for
from pipelines.runs.status import RANKS, Status
from pipelines.runs.watchdog import run_to_end
from pipelines.train.ranks import require_divisible
from pipelines.weights_record import revision_of

CHILD = "pipelines.train.child"
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)  # what a process does to itself
NEARLY = 0.8  # of a memory budget: what was asked for was last seen before the request that was refused
GRACE_SECONDS = 30  # for a cell that is stopped by its time limit or from outside to write a checkpoint
VERDICT = ("status", "detail", "bytes_requested", "bytes_needed", "bytes_available")  # of a child's report
# What is asked of a run but does not change its weights or what is measured of them stays out of the recipe.
OUTSIDE_RECIPE = (
    "eval_every_steps", "checkpoint_every_steps", "time_limit_minutes", "memory_budget_gb", "learning_rate_source",
    "target_loss", "report_to",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """Where one works: the data root, the checked configuration and the profile's name."""

    data: DataRoot
    experiments: Experiments
    profile: str

    @property
    def selection(self) -> Selection:
        profile = self.experiments.profile(self.profile)
        return Selection(profile.languages, profile.max_train_examples, profile.max_eval_examples)

    def selection_of(self, method: str) -> Selection:
        """The profile's selection, but for what the method says of its data."""
        data = self.experiments.method(method).data
        if data is None:
            return self.selection
        return replace(self.selection, provider=data.provider, max_train=data.max_examples or self.selection.max_train)

    def devices_of(self, method: str) -> dict[str, Any]:
        """`devices` and `sharding` of the method's cells; what trains nothing is one process on one device."""
        profile = self.experiments.profile(self.profile)
        if self.experiments.method(method).kind == "none":
            return {"devices": 1, "sharding": "none"}
        return {"devices": profile.devices, "sharding": profile.sharding}

    def placement_of(self, method: str) -> Placement:
        return Placement(**self.devices_of(method), tuning=self.experiments.profile(self.profile).deepspeed)

    def machine_of(self, method: str) -> str:
        """What the method's cells run on, as far as it is known beforehand."""
        return self.launcher().machine(self.placement_of(method))

    def launcher(self, say: Callable[[str], None] = announce) -> Launcher:
        return launcher_for(self.experiments.profile(self.profile), say=say)


@dataclass(frozen=True)
class Watch:
    """What a caller adds to a run: environment for the child, a call every half second, who says what is going on, a launcher
    other than the profile's, and what is put around either."""

    env: Mapping[str, str] = field(default_factory=dict)
    on_tick: Callable[[Attempt], None] = lambda _attempt: None
    say: Callable[[str], None] = announce
    launcher: Starter | None = None
    around: Callable[[Starter], Starter] = lambda inner: inner


def recipe_of(stage: Stage, key: CellKey) -> dict[str, Any]:
    """All that decides a cell's weights and measurements, apart from data, seed, machine and the trainer's code."""
    model = stage.experiments.model(key.model)
    method = stage.experiments.method(key.method)
    source = weights.source_id(model.source)
    limits = {} if model.fp16 else {"fp16": False}
    template = {"template": model.template} if model.template else {}
    if method.kind == "none":
        settings = stage.experiments.training_for(stage.profile, key.model, key.method)
        plain = {"precision": settings.precision, "attention": settings.attention, "max_length": settings.max_length}
        fixed = {"quantization": None, "gradient_checkpointing": False}
        shots = {"shots": method.shots} if method.shots else {}
        return {
            "model": key.model,
            "source": source,
            "kind": "none",
            "prompt": model.prompt,
            **template,
            **plain,
            **fixed,
            **limits,
            **shots,
        }
    settings = stage.experiments.training_for(stage.profile, key.model, key.method)
    decided = {k: v for k, v in settings.model_dump().items() if k not in OUTSIDE_RECIPE}
    if not isinstance(settings.learning_rate, list):
        del decided["search_share"]
    if settings.turns == "all":
        del decided["turns"]
    if settings.early_stop_patience:  # evaluations then decide when training ends
        decided["eval_every_steps"] = settings.eval_every_steps
    decided["targets"] = stage.experiments.targets_for(key.model, settings) if method.kind == "lora" else None
    adapter = {
        "rank": method.rank,
        "alpha": method.alpha,
        "dropout": method.dropout,
        "rslora": method.rslora,
        "dora": method.dora,
        "quantization": method.quantization,
        "double_quantization": method.quantization in ("nf4", "fp4") and method.double_quantization is not False,
    }
    return {
        "model": key.model,
        "source": source,
        "kind": method.kind,
        "prompt": model.prompt,
        **template,
        **decided,
        **adapter,
        **limits,
    }


def examples_now(stage: Stage) -> tuple[Path, Selected]:
    """The current examples file and what the profile takes of it.

    Raises:
        UsageError: nothing was cleaned yet, or the profile's languages leave nothing on one side.
    """
    cleaned = current_examples(stage.data)
    if cleaned is None:
        raise UsageError(f"no examples in {stage.data.clean}: run `featherweight clean` first (or `make run`).")
    path = cleaned.folder / "examples.parquet"
    selected = select(path, stage.selection)
    if not selected.train or not selected.eval:
        raise UsageError(
            f"profile {stage.profile} selects {len(selected.train)} train and {len(selected.eval)} eval records (languages: "
            f"{stage.selection.languages}); both need at least one: change profiles.{stage.profile}.languages or the sources."
        )
    return path, selected


def for_method(stage: Stage, method: str, selected: Selected) -> Selected:
    """What of the profile's examples the method trains on: `data` in experiments.yaml, else all."""
    selection = stage.selection_of(method)
    return selected.narrowed(selection.provider, selection.max_train)


def fingerprints(stage: Stage, key: CellKey, selected: Selected) -> dict[str, str | None]:
    """What a result was made from. `base` trains on nothing, so its data fingerprint is None; examples in a prompt are data."""
    recipe = recipe_of(stage, key)
    untouched = recipe["kind"] == "none" and not recipe.get("shots")
    return {
        "data": None if untouched else for_method(stage, key.method, selected).data_fingerprint,
        "recipe": stable_hash(recipe),
        "code": code_fingerprint(CHILD, *_runs_in(stage, key.method)),
        "machine": stage.machine_of(key.method),
    }


def _runs_in(stage: Stage, method: str) -> tuple[str, ...]:
    """The modules of this project in which several processes of the method's cells run."""
    return stage.launcher().runs if stage.placement_of(method).devices > 1 else ()


def changed(recorded: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """The names of the fingerprints that no longer match."""
    return [name for name, value in expected.items() if recorded.get(name) != value]


def train(
    stage: Stage, key: CellKey, *, force: bool = False, watch: Watch | None = None, seen: str | None = None
) -> tuple[Attempt, bool]:
    """Make the cell current and return its newest attempt, and whether that was reused.

    An attempt is made whatever happens; how it ended is its status. A cell whose last attempt is ok and whose fingerprints
    all match is reused, unless `force`; one that was ended too early goes on from its last checkpoint, in a new attempt.
    `seen`: the newest attempt when this was asked for ("" for none); what somebody else has made since is taken as it is.

    Raises:
        UsageError: unknown model or method, or nothing to train on.
        WorkError: the lake cannot be written.
    """
    watch = watch or Watch()
    examples, selected = examples_now(stage)
    expected = fingerprints(stage, key, selected)
    with locked(key.folder(stage.data) / "cell.lock", f"train {key}", say=watch.say):
        earlier = cells.attempts(stage.data, key)
        newest = earlier[-1] if earlier else None
        current = newest and newest.status == "ok" and not changed(newest.result["fingerprints"], expected)
        if newest and seen is not None and newest.run_id != seen:
            watch.say(f"{key} has been run since this was asked for: {newest.run_id} is {newest.status}")
            return newest, True
        if newest and current and not force:
            restart.clear(earlier)
            return newest, True
        if newest and not force and _goes_on_elsewhere(newest, expected):
            _run(stage, newest, watch)
            finished = Attempt(key, newest.folder)
        else:
            finished = _next_attempt(stage, key, earlier, examples, expected, watch=watch, force=force)
        if finished.result.get("reason") == "node_lost" and "after" not in finished.spec:
            after = finished.result["status_detail"].split(";")[0]
            watch.say(f"{key}: {after}; once more on another node")
            earlier = cells.attempts(stage.data, key)
            finished = _next_attempt(stage, key, earlier, examples, expected, watch=watch, after=after)
        if finished.status in restart.FINAL:
            restart.clear([*earlier, finished])
        if finished.status == "ok":
            _drop_superseded_models(stage.data, finished)
        return finished, False


def _goes_on_elsewhere(newest: Attempt, expected: Mapping[str, Any]) -> bool:
    """Whether the cell still runs on a cluster as it should be, though whoever watched it is gone."""
    lost = newest.status == "lost" and newest.spec.get("fingerprints") == dict(expected)
    return lost and launcher_class(newest.spec["launcher"]).is_under_way(newest.folder)


def _next_attempt(
    stage: Stage,
    key: CellKey,
    earlier: list[Attempt],
    examples: Path,
    expected: dict[str, str | None],
    *,
    watch: Watch,
    force: bool = False,
    after: str | None = None,
) -> Attempt:
    """Run a new attempt, from the last checkpoint of `earlier` where there is one. `after`: why it is made at once."""
    for attempt in earlier:
        launcher_class(attempt.spec.get("launcher", "local")).end(attempt.folder)
    resume = None if force else restart.resumable(earlier, expected, stage.data.root)
    restart.clear(earlier, keep=resume["run_id"] if resume else None)
    attempt = _new_attempt(stage, key, examples, expected, resume, after)
    _, selected = examples_now(stage)
    if for_method(stage, key.method, selected).train:
        _run(stage, attempt, watch)
    else:
        write_result(attempt.folder, "unavailable", "load", no_examples(stage, key.method))
    return Attempt(key, attempt.folder)


def no_examples(stage: Stage, method: str) -> str:
    """Why the method has nothing to train on, and what to do."""
    provider = stage.selection_of(method).provider
    named = "sources.providers" if provider != stage.experiments.local_provider else "sources.local_generator"
    return (
        f"methods.{method}.data names provider {provider}, and no example of it is among those that profile {stage.profile} "
        f"trains on (languages: {stage.selection.languages}): let it be asked (enabled, {named}), run "
        f"`featherweight generate --provider {provider}`, then `featherweight clean`"
    )


def _new_attempt(
    stage: Stage,
    key: CellKey,
    examples: Path,
    expected: dict[str, str | None],
    resume: dict[str, Any] | None,
    after: str | None = None,
) -> Attempt:
    settings = stage.experiments.training_for(stage.profile, key.model, key.method)
    model, profile = stage.experiments.model(key.model), stage.experiments.profile(stage.profile)
    folder = key.folder(stage.data) / cells.new_run_id()
    weights_folder = weights.model_folder(stage.data, key.model, model)
    spec = {
        "run_id": folder.name, "model": key.model, "method": key.method, "seed": key.seed, "profile": stage.profile,
        "root": str(stage.data.root), "examples": str(examples.relative_to(stage.data.root)),
        "weights": str(weights_folder if model.source.path else weights_folder.relative_to(stage.data.root)),
        "selection": asdict(stage.selection_of(key.method)), "recipe": recipe_of(stage, key), "fingerprints": expected,
        "eval_every_steps": settings.eval_every_steps, "checkpoint_every_steps": settings.checkpoint_every_steps,
        "resume": resume, "memory_budget_gb": settings.memory_budget_gb,
        "time_limit_minutes": settings.time_limit_minutes, "learning_rate_source": settings.learning_rate_source,
        "report_to": settings.report_to, "tokens": {"bos": model.bos, "end": model.end},
        "licence": model.licence,
        "launcher": profile.launcher, **stage.devices_of(key.method), "deepspeed": profile.deepspeed,
    }  # fmt: skip
    if after:
        spec["after"] = after
    write_json(folder / "spec.json", spec)
    write_json(folder / "state.json", {"status": "queued", "phase": "load", "started_at": now(), **own_identity()})
    disk.keep_room(folder)
    return Attempt(key, folder)


def _run(stage: Stage, attempt: Attempt, watch: Watch) -> None:
    """Run the attempt's child to its end and write its result, also when a cancel from outside interrupts it."""
    try:
        trackers.require(attempt.spec["report_to"])
        require_divisible(attempt.spec["recipe"], attempt.spec["sharding"])
        stage.launcher().require(stage.placement_of(attempt.key.method))
        weights.fetch(stage.data, stage.experiments, attempt.key.model, say=watch.say)
    except (UnavailableError, UsageError) as error:
        write_result(attempt.folder, "unavailable", "load", str(error))
        return
    except WorkError as error:
        write_result(attempt.folder, "failed", "load", str(error))
        return
    try:
        ending = run_child(stage, attempt.folder, CHILD, watch, on_tick=lambda: watch.on_tick(attempt))
    except UnavailableError as error:
        write_result(attempt.folder, "unavailable", "load", str(error))
        return
    except BaseException as error:
        report = child_report(attempt.folder)
        if report.get("status") == "ok":  # it was done before it could be stopped
            write_result(attempt.folder, "ok", report["phase"], None)
        else:
            detail = f"interrupted ({type(error).__name__}); {restart.outlook(attempt.folder)}"
            write_result(attempt.folder, "killed", report["phase"], detail)
        raise
    report = child_report(attempt.folder)
    status, detail = judge(ending, report, attempt.folder)
    if status in ("killed", "timed_out") and "the next run" not in (detail or ""):
        detail = f"{detail}; {restart.outlook(attempt.folder)}"
    if after := attempt.spec.get("after"):
        detail = "; ".join(filter(None, (f"begun before: {after}", detail)))
    write_result(attempt.folder, status, report["phase"], detail, ending)


def run_child(stage: Stage, folder: Path, module: str, watch: Watch, *, on_tick: Callable[[], None]) -> Ending:
    """Hold the device, say `running`, and run `python -m MODULE FOLDER` under the spec's limit and its budget, which is that of
    one device."""
    spec = read_json(folder / "spec.json") or {}
    # a trial or an export is not a cell of the grid: it is run here
    launcher = stage.launcher(watch.say) if "launcher" in spec else launcher_class("local")()
    with _device_of(stage, spec, launcher, watch) as lock:
        state = {"status": "running", "phase": "load", "started_at": now(), **own_identity()}
        write_json(folder / "state.json", state)
        budget, devices = spec.get("memory_budget_gb"), spec.get("devices", 1)
        command = CellCommand(
            arguments=["-m", module, str(folder)],
            folder=folder,
            env={**trackers.keys(spec.get("report_to", ())), **watch.env},
            keep_open=(lock.fileno(),) if lock else (),
            memory_budget=round(budget * 1e9) * devices if budget and machine.device_slug() == "cpu" else None,
            time_limit=spec["time_limit_minutes"] * 60 if lock else None,
            grace_seconds=GRACE_SECONDS,
            devices=devices,
        )
        return run_to_end(watch.around(watch.launcher or launcher), command, on_tick=on_tick)


def _device_of(
    stage: Stage, spec: Mapping[str, Any], launcher: Launcher, watch: Watch
) -> AbstractContextManager[IO[str] | None]:
    """The lock of this machine's device; nothing where the cell does not run on it."""
    if not launcher.holds_device:
        return nullcontext()
    holder = f"{spec['model']} × {spec['method']}"
    return locked(stage.data.locks / f"{machine.device_slug()}.lock", holder, say=watch.say)


def judge(ending: Ending, report: Mapping[str, Any], folder: Path) -> tuple[Status, str | None]:
    """The status of an ending and a sentence on it. A SIGKILL is out of memory on evidence only."""
    spec = read_json(folder / "spec.json") or {}
    elsewhere: dict[str | None, Status] = {"node_lost": "killed", "unreachable": "killed", "refused": "unavailable"}
    if ending.reason in elsewhere:
        return elsewhere[ending.reason], ending.detail
    if ending.reason == "memory_budget":
        used, budget, devices = ending.peak_bytes / 1e9, spec["memory_budget_gb"], spec.get("devices", 1)
        share = f"{devices} × {budget:g}" if devices > 1 else f"{budget:g}"
        return "out_of_memory", f"used {used:.2f} GB of a budget of {share} GB and was stopped"
    if ending.reason == "time_limit":
        return "timed_out", f"stopped after {ending.seconds / 60:.1f} minutes; time_limit_minutes is the limit"
    if report.get("status"):
        return report["status"], report.get("detail")
    if ending.reason == "interrupted":
        return "killed", ending.detail
    ended = read_json(folder / RANKS)
    whom = f"rank {ended['rank']}" if ended else "it"
    if ending.exit_code == -signal.SIGKILL and ending.kernel_oom_kill:
        return "out_of_memory", f"the kernel's out-of-memory killer ended {whom} at {ending.peak_bytes / 1e9:.2f} GB"
    if -ending.exit_code in CRASHES:
        return _crashed(ending, whom, spec)
    if ending.exit_code < 0:
        name = _signal_name(-ending.exit_code)
        return "killed", f"{whom} was ended by {name} from outside" if ended else f"ended by {name} from outside"
    if ending.exit_code == disk.EXIT_CODE:
        return "failed", str(disk.DiskFullError("the cell's own report", folder, None))
    last = " | ".join((folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-4:])
    return (
        "failed",
        f"{f'{whom}: ' if ended else ''}exit code {ending.exit_code}: {last[-800:] or 'it printed nothing'}",
    )


def _crashed(ending: Ending, whom: str, spec: Mapping[str, Any]) -> tuple[Status, str]:
    """A library that is refused memory may crash rather than say so; where the budget was all but used that is what it means."""
    name, budget = _signal_name(-ending.exit_code), spec.get("memory_budget_gb")
    asked = max(ending.peak_bytes, ending.asked_bytes) / 1e9 / spec.get("devices", 1)
    if budget and asked > NEARLY * budget:
        return (
            "out_of_memory",
            f"{whom} crashed ({name}) when it had asked for {asked:.2f} GB of a budget of {budget:g} GB",
        )
    return "killed", f"{whom} crashed ({name})"


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def child_report(folder: Path) -> dict[str, Any]:
    """What the child knew; the verdict may be that of another of a cell's processes, where the first could give none."""
    report = {"phase": "load", "measured": {}, **(read_json(folder / "child.json") or {})}
    if report.get("status"):
        return report
    others = [read_json(path) or {} for path in sorted(folder.glob("rank-*.json"))]
    verdict = next((other for other in others if other.get("status") not in (None, "ok")), {})
    return {**report, **{name: verdict[name] for name in VERDICT if name in verdict}}


def write_result(folder: Path, status: Status, phase: str, detail: str | None, ending: Ending | None = None) -> None:
    """The attempt's or evaluation's last word: what was asked, how it ended, all that the child had measured by then."""
    spec, report = read_json(folder / "spec.json") or {}, child_report(folder)
    state = read_json(folder / "state.json") or {}
    measured = report["measured"]
    if ending and measured.get("peak_memory_gb") is None and phase in ("probe", "train"):
        seen = max(ending.peak_bytes / 1e9, measured.get("probe_peak_memory_gb") or 0)  # by the watchdog, by the child
        measured = {**measured, "peak_memory_gb": seen}
    copied = (
        "run_id", "model", "method", "seed", "profile", "recipe", "fingerprints", "memory_budget_gb", "resume",
        "learning_rate_source", "launcher", "devices", "sharding",
    )  # fmt: skip
    disk.give_room_back(folder)
    write_json(
        folder / "result.json",
        {
            **{name: spec.get(name) for name in copied},
            "status": status,
            "phase": phase,
            "status_detail": detail,
            "reason": ending.reason if ending else None,
            **{name: report.get(name) for name in ("bytes_requested", "bytes_needed", "bytes_available")},
            "measured": measured,
            "versions": report.get("versions", {}),
            "weights_revision": revision_of(Path(spec["root"]) / spec["weights"]) if "weights" in spec else None,
            "device": launcher_class(spec.get("launcher", "local")).ran_on(
                folder, Placement(spec.get("devices", 1), spec.get("sharding", "none"))
            ),
            "started_at": state.get("started_at"),
            "finished_at": now(),
            "seconds": ending.seconds if ending else None,
        },
    )


def _drop_superseded_models(data: DataRoot, finished: Attempt) -> None:
    """Of one cell only the newest good model is kept; the other attempts keep their numbers."""
    for attempt in cells.attempts(data, finished.key):
        if attempt.run_id < finished.run_id:
            shutil.rmtree(attempt.model_folder, ignore_errors=True)
