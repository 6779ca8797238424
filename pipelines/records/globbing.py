"""The paths of a glob. It follows no cycle of links, and no link out of its folder."""

import glob
import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path


def files_of(pattern: str, say: Callable[[str], None]) -> Iterator[Path]:
    """Every matching path, with `**` for folders of any depth. Hidden names match only a pattern
    with the dot.

    `**` enters no folder through a link; `say` gets a line for each linked folder.
    """
    if "**" not in Path(pattern).parts:
        yield from map(Path, glob.glob(pattern))
        return
    root, parts = _split(pattern)
    unique: set[Path] = set()
    for path in _matches(root, parts, say):
        if path not in unique:
            unique.add(path)
            yield path


def leads_out(pattern: str, path: Path) -> Path | None:
    """The folder of the glob `pattern` if the resolved `path` lies outside it; else None."""
    root, parts = _split(pattern)
    if not parts or str(path) == pattern:
        return None
    return None if path.resolve().is_relative_to(root.resolve()) else root


def _split(pattern: str) -> tuple[Path, list[str]]:
    """The folder before the first part with a wildcard, and the parts from there."""
    parts = Path(pattern).parts
    first = next((at for at, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:first]), list(parts[first:])


def _matches(folder: Path, parts: list[str], say: Callable[[str], None]) -> Iterator[Path]:
    part, rest = parts[0], parts[1:]
    names = _names(folder)
    if part == "**":
        yield from _matches(folder, rest, say) if rest else (folder / name for name in names)
        for name in names:
            below = folder / name
            if name.startswith(".") or not below.is_dir():
                continue
            if below.is_symlink():
                say(
                    f"{below}: is a link to the folder {below.resolve()}, which ** does not enter; name it if it is meant"
                )
            else:
                yield from _matches(below, parts, say)
        return
    hidden = part.startswith(".")
    for name in names:
        if fnmatchcase(name, part) and (hidden or not name.startswith(".")):
            path = folder / name
            if not rest:
                yield path
            elif path.is_dir():
                yield from _matches(path, rest, say)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
