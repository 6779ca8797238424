"""Other tools for comparison, each in a separate environment under .venv-peers/, made at the first
call."""

import os
import subprocess
import sys

from pipelines.lake.paths import PROJECT
from pipelines.runs.process import SPINS, child_environment

PACKAGES = {
    "distilabel": ["distilabel[openai]==1.5.3", "requests"],
    "curator": ["bespokelabs-curator==0.1.31"],
    "trl": ["trl==1.16.0", "torch==2.13.0", "transformers==5.23.0", "peft==0.21.0", "datasets==5.2.0", "accelerate"],
    "near-duplicates": ["datasketch==2.0.0", "datatrove==0.10.1", "regex", "spacy", "tokenizers", "numpy"],
}


def peer_python(name: str) -> str | None:
    """The interpreter of a peer's environment; None where its packages cannot be installed."""
    folder = PROJECT / ".venv-peers" / name
    python = folder / "bin" / "python"
    if not (folder / "stamp").exists():
        create = [sys.executable, "-m", "venv", str(folder)]
        install = [str(python), "-m", "pip", "install", "--quiet", *PACKAGES[name]]
        for step in (create, install):
            if subprocess.run(step, capture_output=True, check=False).returncode:
                return None
        (folder / "stamp").touch()
    return str(python)


def peer_environment() -> dict[str, str]:
    """Our children's environment, except that threads wait as libgomp does by default, which is a
    little faster on an idle machine."""
    return {name: value for name, value in child_environment().items() if name not in SPINS or name in os.environ}
