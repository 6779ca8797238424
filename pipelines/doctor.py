"""What this machine has, what each profile can run on it, what is missing and how to get it."""

import os
import platform
import shutil
from collections.abc import Iterator

import psutil

from pipelines import machine, weights
from pipelines.experiments import Experiments
from pipelines.paths import DataRoot


def examine(data: DataRoot, experiments: Experiments) -> Iterator[str]:
    disk = shutil.disk_usage(data.root if data.root.exists() else data.root.parent)
    memory = psutil.virtual_memory()
    yield f"machine    {machine.machine_class()}; Python {platform.python_version()} on {platform.system()}"
    yield f"memory     {memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free"
    yield f"disk       {disk.free / 1e9:.1f} GB free at {data.root}"
    yield f"GPU        {machine.cuda_name() or 'none: profile gpu needs a CUDA device'}"
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "HF_TOKEN"):
        yield f"{name:<18} {'set' if os.environ.get(name) else 'not set'}"
    for name, profile in experiments.profiles.items():
        yield f"profile {name}: {len(profile.models)} models × {len(profile.methods)} methods"
        for model in profile.models:
            present = weights.is_present(data, model, experiments.model(model))
            yield f"  {model:<16} {'weights are here' if present else f'weights missing: run `featherweight fetch {model}`'}"
