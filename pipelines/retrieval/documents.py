"""A user's documents as passages: text, Markdown and JSONL files, cut after paragraphs, else after
lines, sentences or words."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UsageError
from pipelines.lake.files import announce, stable_hash
from pipelines.records import globbing, text_encoding

KINDS = (".txt", ".md", ".jsonl")
# All files together. They are read into memory.
MOST_BYTES = 256_000_000
MOST_PASSAGES = 200_000
# A file with a larger share of unreadable characters is not text.
MOST_UNREADABLE = 0.02
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1f\ufffd]")
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
# Where a piece that is too long may be cut, the best kind of place first.
_CUTS = (re.compile(r"\n"), re.compile(r"[.!?。！？](?=\s|$)|[。！？]"), re.compile(r"\s"))


@dataclass(frozen=True)
class Passage:
    """A piece of a document. `name`: the file's name, with the line number in a JSONL file."""

    name: str
    text: str


def files_of(patterns: Sequence[str], folder: Path) -> list[Path]:
    """The files that paths and globs name, each once; relative ones are in `folder`.

    Raises:
        UsageError: a pattern names nothing, a folder, something that is not a regular file, or a
            file of another kind; a glob matches a link that leads out of its folder; or the files
            are too large.
    """
    files: dict[Path, Path] = {}
    for pattern in patterns:
        expanded = os.path.expanduser(pattern)
        anywhere = os.path.join(glob.escape(str(folder)), expanded)
        paths = sorted(globbing.files_of(anywhere, announce)) or [folder / expanded]
        for path in paths:
            if path.is_dir() and len(paths) > 1:
                continue
            _require_document(path)
            if glob.has_magic(expanded) and (out := globbing.leads_out(anywhere, path)) is not None:
                raise UsageError(
                    f"{path}: is a link that leads out of {out} to {path.resolve()}; if you mean that file, name it by itself, "
                    "without * in its path (retrieval.documents)."
                )
            files.setdefault(path.resolve(), path)
    size = sum(path.stat().st_size for path in files)
    if size > MOST_BYTES:
        raise UsageError(
            f"retrieval.documents: {len(files)} files of {size / 1e6:.0f} MB together; expected at most {MOST_BYTES / 1e6:.0f} MB: "
            "name fewer or smaller ones."
        )
    return list(files.values())


def _require_document(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name its files, such as {path}/**/*.md.")
    if not path.is_file():
        problem = "not a file" if path.exists() else "no such file"
        raise UsageError(f"{path}: {problem} (retrieval.documents); expected text, Markdown or JSONL files.")
    if path.suffix.lower() not in KINDS:
        raise UsageError(
            f"{path}: unknown kind {path.suffix!r} (retrieval.documents); expected one of {', '.join(KINDS)}."
        )


def content_hash(patterns: Sequence[str], folder: Path) -> str:
    """Hash of the documents' names and bytes. It changes if a file is changed, added, renamed or
    removed.

    Raises:
        UsageError: as for `files_of`, or a file cannot be read.
    """
    return stable_hash(sorted([path.name, _digest(path)] for path in files_of(patterns, folder)))


# File → its inode, size and time, and the digest of its content at that time.
_digests: dict[Path, tuple[tuple[int, int, int], str]] = {}


def _digest(path: Path) -> str:
    stat = path.stat()
    stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if path not in _digests or _digests[path][0] != stamp:
        try:
            with path.open("rb") as handle:
                _digests[path] = stamp, hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror or error}.") from None
    return _digests[path][1]


def passages(patterns: Sequence[str], folder: Path, size: int) -> list[Passage]:
    """Every passage of the documents, of at most about `size` characters, each text once.

    Raises:
        UsageError: as for `files_of`, or a file holds no text, there is no passage at all, or there
            are too many.
    """
    by_text: dict[str, Passage] = {}
    for path in files_of(patterns, folder):
        for name, text in _texts(path):
            for piece in pieces(text, size):
                by_text.setdefault(piece, Passage(name, piece))
        if len(by_text) > MOST_PASSAGES:
            raise UsageError(
                f"retrieval.documents: more than {MOST_PASSAGES:,} passages up to {path}; raise passage_chars or name fewer files."
            )
    if not by_text:
        raise UsageError(
            f"retrieval.documents: {', '.join(patterns)} hold no text to look up; name files with text in them."
        )
    return list(by_text.values())


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    text = _read(path)
    if path.suffix.lower() != ".jsonl":
        yield path.name, text
        return
    # Not splitlines(): it splits at U+2028 and U+0085, which may be part of a JSONL line.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path.name}:{number}", _text_in(line, path, number)


def _read(path: Path) -> str:
    """The file's text in its detected encoding.

    Raises:
        UsageError: the file cannot be read, or is not text.
    """
    try:
        with path.open("rb") as handle:
            codec = text_encoding.detect(handle)
            text = handle.read().decode(codec, errors="replace")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}.") from None
    if len(_NO_TEXT.findall(text)) > MOST_UNREADABLE * len(text):
        raise UsageError(f"{path}: holds no text (read as {text_encoding.display_name(codec)}); expected a text file.")
    return text


def _text_in(line: str, path: Path, number: int) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}:{number}: no JSON ({error}); expected an object with the text `text`.") from None
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise UsageError(f"{path}:{number}: got {line[:60]!r}; expected an object with the text `text`.")
    # No prompt can hold a lone surrogate.
    return value["text"].encode("utf-8", errors="replace").decode()


def pieces(text: str, size: int) -> list[str]:
    """`text` in pieces of at most `size` characters: as many whole paragraphs as fit; longer
    paragraphs are cut."""
    finished: list[str] = []
    current = ""
    for paragraph in _PARAGRAPH.split(text.replace("\r\n", "\n").replace("\r", "\n")):
        for piece in _cut(paragraph.strip(), size):
            if current and len(current) + 2 + len(piece) > size:
                finished.append(current)
                current = ""
            current = f"{current}\n\n{piece}" if current else piece
    return [*finished, current] if current else finished


def _cut(paragraph: str, size: int) -> Iterator[str]:
    start = 0
    while len(paragraph) - start > size:
        end = _end_of_piece(paragraph, start, size)
        if piece := paragraph[start:end].strip():
            yield piece
        start = end
    if rest := paragraph[start:].strip():
        yield rest


def _end_of_piece(text: str, start: int, size: int) -> int:
    """The end of the piece from `start`: after the last line, sentence or word in its second half,
    else at `size`."""
    window = text[start : start + size]
    for kind in _CUTS:
        ends = [match.end() for match in kind.finditer(window) if match.end() > size // 2]
        if ends:
            return start + ends[-1]
    return start + size
