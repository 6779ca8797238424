"""What a child runs of this project's own code: the import closure of its module, worked out without importing anything.

A result depends on these files and on no others, whatever the commit was: a change on the parent's side leaves it current.
"""

import hashlib
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path

from pipelines.paths import PROJECT


@cache
def code_fingerprint(*modules: str) -> str:
    """16 hex digits for the sources that a process runs which starts with `modules`; worked out once a process."""
    return hash_of(closure(*modules), PROJECT)


def closure(*modules: str, root: Path = PROJECT) -> list[Path]:
    """The files under `root` that `modules` import, directly or not, at the top of a file or inside a function, with their own and
    their packages'. What is installed is not followed: a result's `versions` tell of that."""
    finder = ModuleFinder(path=[str(root)])
    for module in modules:
        finder.import_hook(module)
    files = (getattr(found, "__file__", None) for found in finder.modules.values())
    return sorted(Path(file) for file in files if file)


def hash_of(files: list[Path], root: Path) -> str:
    """Of the files' content and their names under `root`."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
