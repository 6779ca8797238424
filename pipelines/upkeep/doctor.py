"""A check-up: the machine, what each profile can run on it, and how to get the rest."""

import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator

import psutil

from pipelines.errors import UnavailableError
from pipelines.generate.providers import missing_key
from pipelines.generate.trained_on import left_out
from pipelines.hardware import cuda_devices, machine
from pipelines.lake.paths import DataRoot
from pipelines.runs.command import Placement
from pipelines.runs.launchers.chosen import launcher_for
from pipelines.runs.process import child_environment
from pipelines.settings import benchmarks
from pipelines.settings.experiments import Experiments
from pipelines.settings.profiles import Profile
from pipelines.settings.providers import Provider
from pipelines.weights import store

# The module of the process that examines a GPU.
CARD_REPORT = "pipelines.train.trainer.devices.card_report"


def _provider_state(provider: Provider, local: bool) -> str:
    if provider.kind == "local":
        return "asked on this machine" if local else "not asked (sources.local_generator)"
    if not provider.enabled:
        return "not asked (enabled: false)"
    budget = "no budget" if provider.budget_usd is None else f"budget ${provider.budget_usd:.4g}"
    return missing_key(provider) or f"asked over its API, {budget}"


def _launcher_state(profile: Profile) -> str:
    """The launcher of the profile's cells, and its missing parts."""
    line = profile.launcher
    if profile.devices > 1:
        line += f", {profile.devices} devices by {profile.sharding}"
    try:
        launcher = launcher_for(profile)
        launcher.require(Placement(profile.devices, profile.sharding))
        if state := launcher.describe():
            return f"{line}: {state}"
    except UnavailableError as error:
        return f"{line}: {error}"
    cards = machine.cuda_count()
    return f"{line}: this machine has {cards} CUDA device(s)" if 0 < cards < profile.devices else line


def _benchmarks(profile: Profile) -> Iterator[str]:
    """Whether the profile's benchmarks, if any, can run."""
    settings = profile.evaluation
    if not settings.benchmarks:
        return
    try:
        benchmarks.require(settings.harness_tasks)
        yield f"  {'benchmarks':<16} {', '.join(settings.benchmark_names)} can be asked"
    except UnavailableError as error:
        yield f"  {'benchmarks':<16} {str(error).removeprefix('benchmarks: ')}"


def _gpu() -> Iterator[str]:
    """The GPU, and the report of a child that uses it. Without a GPU no child starts."""
    listed, name = cuda_devices.listed(), machine.cuda_name()
    if name:
        yield f"GPU        {name}"
        yield from _card_report()
    elif listed:
        visible = os.environ.get(cuda_devices.VISIBLE)
        names = ", ".join(card.name for card in listed)
        yield f"GPU        none visible of {names}: {_why_hidden(visible)}"
    else:
        trouble = cuda_devices.trouble()
        yield f"GPU        none: {f'nvidia-smi says: {trouble}' if trouble else 'profile gpu needs a CUDA device'}"


def _why_hidden(visible: str | None) -> str:
    if visible is None:
        return "it is divided by MIG and has no slice yet; `nvidia-smi mig -cgi … -C` makes one"
    return f"{cuda_devices.VISIBLE}={visible} names none of them; unset it, or name one by its number or UUID (`nvidia-smi -L`)"


def _card_report() -> Iterator[str]:
    """The lines of a process that imports torch."""
    command = [sys.executable, "-m", CARD_REPORT]
    try:
        process = subprocess.run(
            command, env=child_environment(), capture_output=True, encoding="utf-8", errors="replace",
            timeout=cuda_devices.DRIVER_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        yield f"  {'problem':<13} no answer of `{' '.join(command)}` within {error.timeout} s"
        return
    yield from (f"  {line}" for line in process.stdout.splitlines())
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        yield f"  {'problem':<13} `{' '.join(command)}` ended with exit code {process.returncode}: {last}"


def examine(data: DataRoot, experiments: Experiments) -> Iterator[str]:
    """The lines of the check-up."""
    disk = shutil.disk_usage(data.root if data.root.exists() else data.root.parent)
    memory = psutil.virtual_memory()
    yield f"machine    {machine.machine_class()}; Python {platform.python_version()} on {platform.system()}"
    yield f"memory     {memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free"
    yield f"disk       {disk.free / 1e9:.1f} GB free at {data.root}"
    if data.lake.exists() and stat.S_IMODE(data.lake.stat().st_mode) & 0o077:
        yield f"lake       others on this machine can look into it: `chmod 700 {data.lake}` ends that"
    yield from _gpu()
    yield f"{'HF_TOKEN':<10} {'set' if os.environ.get('HF_TOKEN') else 'not set: only gated models need it'}"
    for name, provider in experiments.providers.items():
        yield f"provider {name}: {provider.model}, {_provider_state(provider, experiments.sources.uses_local_generator)}"
    yield from left_out(experiments)
    for name, profile in experiments.profiles.items():
        yield f"profile {name}: {len(profile.models)} models × {len(profile.methods)} methods, {_launcher_state(profile)}"
        yield from _benchmarks(profile)
        for model in profile.models:
            present = store.is_present(data, model, experiments.model(model))
            yield f"  {model:<16} {'weights are here' if present else f'weights missing: run `featherweight fetch {model}`'}"
