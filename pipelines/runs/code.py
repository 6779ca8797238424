"""The code fingerprint of a child: a hash of its module's import closure, found without importing
anything.

A result depends only on these files, not on the commit. A change of the parent's code leaves it
current.
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
    """16 hex digits for the sources of a process that starts with `modules`.

    Computed once per process, and again after one of the files has changed on disk. A code server
    may outlive an upgrade, but the children that it starts run the new files.
    """
    if (cached := _fingerprints.get(modules)) and cached[0] == _stamps(file for file, _, _ in cached[0]):
        return cached[1]
    files = closure(*modules)
    _fingerprints[modules] = _stamps(files), hash_of(files, PROJECT)
    return _fingerprints[modules][1]


def closure(*modules: str, root: Path = PROJECT) -> list[Path]:
    """The files under `root` that `modules` import, including their own files and those of their
    packages.

    Indirect imports and imports inside functions count, too. Installed packages do not: a result's
    `versions` cover them.
    """
    finder = _OwnModules(path=[str(root)])
    for module in modules:
        finder.import_hook(module)
    files = (getattr(module, "__file__", None) for module in finder.modules.values())
    return sorted(Path(file) for file in files if file)


class _OwnModules(ModuleFinder):
    """Follows only this project's modules.

    Beside them may lie other things: the folder of a library's runs, or all packages of an
    environment in which the project is installed.
    """

    def find_module(self, name: str, path: Any, parent: Any = None) -> Any:
        # Refuse every other top-level module.
        if path is None and name != PACKAGE:
            raise ImportError(name)
        return super().find_module(name, path, parent)  # type: ignore[misc]


def hash_of(files: Iterable[Path], root: Path) -> str:
    """16 hex digits of the files' content and their names under `root`."""
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
