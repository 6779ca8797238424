"""What a child runs of this project's own code: the import closure of its module, worked out without importing anything.

A result depends on these files and on no others, whatever the commit was: a change on the parent's side leaves it current.
"""

import hashlib
from collections.abc import Iterable
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from pipelines.lake.paths import PROJECT

PACKAGE = "pipelines"
Stamps = list[tuple[Path, int, int]]
_fingerprints: dict[tuple[str, ...], tuple[Stamps, str]] = {}


def code_fingerprint(*modules: str) -> str:
    """16 hex digits for the sources that a process runs which starts with `modules`. Worked out once a process, and again where
    one of them has changed on disk: a code server may outlive an upgrade, and the children that it starts run what is there."""
    if (cached := _fingerprints.get(modules)) and cached[0] == _stamps(file for file, _, _ in cached[0]):
        return cached[1]
    files = closure(*modules)
    _fingerprints[modules] = _stamps(files), hash_of(files, PROJECT)
    return _fingerprints[modules][1]


def closure(*modules: str, root: Path = PROJECT) -> list[Path]:
    """The files under `root` that `modules` import, directly or not, at the top of a file or inside a function, with their own and
    their packages'. What is installed is not followed: a result's `versions` tell of that."""
    finder = _OwnModules(path=[str(root)])
    for module in modules:
        finder.import_hook(module)
    files = (getattr(module, "__file__", None) for module in finder.modules.values())
    return sorted(Path(file) for file in files if file)


class _OwnModules(ModuleFinder):
    """Follows this project's modules alone, whatever else lies beside them: the folder of another library's runs, or, where the
    project is installed, all other packages."""

    def find_module(self, name: str, path: Any, parent: Any = None) -> Any:
        if path is None and name != PACKAGE:  # a module at the top
            raise ImportError(name)
        return super().find_module(name, path, parent)  # type: ignore[misc]


def hash_of(files: Iterable[Path], root: Path) -> str:
    """Of the files' content and their names under `root`."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _stamps(files: Iterable[Path]) -> Stamps:
    stamps: Stamps = []
    for file in files:
        try:
            stat = file.stat()
        except FileNotFoundError:
            return []
        stamps.append((file, stat.st_mtime_ns, stat.st_size))
    return stamps
