"""The one reader of every YAML file. It refuses whatever could fill the memory or hide a mistake,
before anything walks the tree.

It refuses, and names the line of: files above 1 MB, too many or too deeply nested values, aliases
that repeat too much or contain themselves, duplicate keys, and numbers that fit no column. Messages
about a file name the place with `where` and the value with `cut`.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import UsageError

MAX_BYTES = 1_000_000
# Each value takes about a kilobyte of memory.
MAX_VALUES = 50_000
MAX_DEPTH = 50
# Characters and values that all aliases together stand for.
MAX_REPEATED = 100_000
# Exclusive limit of an integer column of the warehouse.
MAX_INTEGER = 2**63
MAX_DIGITS = 100
# Length limit of a value in a message.
SHOWN_CHARS = 200
# Length limit of the message about one value; lists of allowed names are long.
MESSAGE_CHARS = 2000
SHOWN_MESSAGES = 20
MERGE = "tag:yaml.org,2002:merge"
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
UNREADABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Place = tuple[str | int, ...]
Lines = dict[Place, int]


class RefusedError(yaml.MarkedYAMLError):
    """YAML that this reader refuses. Unlike that of a syntax error, its message is complete."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(None, None, problem, mark)
        self.line = mark.line + 1


def read(path: Path, missing: str) -> tuple[Any, Lines]:
    """The content of a YAML file, and the line of each of its keys and elements.

    `missing` is the advice in the error for a missing file.

    Raises:
        UsageError: the file is missing, is not YAML, or is refused; the message names the line.
    """
    try:
        text = _decoded(path)
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            lines: Lines = {}
            if root is not None:
                _note_lines(root, (), lines)
            return (None if root is None else loader.construct_document(root)), lines
        finally:
            loader.dispose()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; {missing}") from None
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read: {error.strerror or error}; expected a file that you may read."
        ) from None
    except RefusedError as error:
        raise UsageError(f"{path}:{error.line}: {error.problem}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        problem = cut(getattr(error, "problem", None) or str(error))
        tab = "; indent with spaces" if "'\\t'" in problem else ""
        raise UsageError(f"{place}: not YAML: {problem}{tab}") from None


def _decoded(path: Path) -> str:
    with path.open("rb") as handle:
        content = handle.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path}: is larger than {MAX_BYTES / 1e6:g} MB; expected a file written by hand.")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError(f"{path}: cannot be read as UTF-8 text: it is UTF-16; save the file as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8.") from None
    if bad := UNREADABLE.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        raise UsageError(
            f"{path}:{line}: not YAML: holds the control character U+{ord(bad[0]):04X}; take it out, or write it as an escape "
            "within quotation marks."
        )
    return text


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits.

    Every failure to convert a value is an error that names its line.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = self._repeated = 0
        # For every complete node: its values and characters, and its levels, both with its aliases
        # expanded.
        self._sizes: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            return self._aliased(event, super().compose_node(parent, index))
        self._values += 1
        if self._values > MAX_VALUES:
            raise RefusedError(
                f"holds more than {MAX_VALUES:,} values; expected a file written by hand", event.start_mark
            )
        self._require_depth(1, event)
        self._depth += 1
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.MappingNode):
            self._refuse_repeated_keys(node)
        inner = [self._sizes[id(one)] for one in _children(node)]
        own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        self._sizes[id(node)] = (
            1 + own + sum(size for size, _ in inner),
            1 + max((deep for _, deep in inner), default=0),
        )
        return node

    def _aliased(self, event: Any, node: Any) -> Any:
        name = f"*{cut(event.anchor)}"
        if id(node) not in self._sizes:
            raise RefusedError(f"not YAML that can be read: {name} stands within what it names", event.start_mark)
        size, deep = self._sizes[id(node)]
        self._require_depth(deep, event)
        self._repeated += size
        if self._repeated > MAX_REPEATED:
            problem = f"{name}: the aliases up to here repeat more than {MAX_REPEATED:,} characters"
            raise RefusedError(f"{problem}; write the values out, without aliases of aliases", event.start_mark)
        return node

    def _require_depth(self, more: int, event: Any) -> None:
        if self._depth + more > MAX_DEPTH:
            raise RefusedError(f"nested more than {MAX_DEPTH} deep; expected far less", event.start_mark)

    def _refuse_repeated_keys(self, node: yaml.MappingNode) -> None:
        """YAML itself would silently keep the last one.

        A key may override one from `<<`: that is the purpose of `<<`.
        """
        first_lines: dict[Hashable, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise RefusedError("a key is a list or a mapping; expected a name", key.start_mark)
            name = key.value if key.tag == MERGE else self.construct_object(key, deep=True)
            if name in first_lines:
                raise RefusedError(
                    f"{cut(repr(key.value))} is given twice (first in line {first_lines[name]})", key.start_mark
                )
            first_lines[name] = line

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node.tag in NUMBERS and isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_DIGITS:
            raise RefusedError(
                f"a number of {len(node.value):,} characters; text needs quotation marks", node.start_mark
            )
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
            problem = str(error) if isinstance(error, ValueError) else f"no {node.tag.rpartition(':')[2]} is written so"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None
        if isinstance(value, int) and not -MAX_INTEGER <= value < MAX_INTEGER:
            raise RefusedError(f"got {value}; expected a number of at most 64 bits", node.start_mark)
        return _whole_text(value, node) if isinstance(value, str) else value


def _children(node: Any) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _whole_text(text: str, node: Any) -> str:
    """The text, with surrogate pairs of two escapes (JSON's notation) as one character."""
    if "\0" in text:
        raise RefusedError("holds the character U+0000; no text, path or command may hold it", node.start_mark)
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise RefusedError("holds half of a surrogate pair, which is no character", node.start_mark) from None


def _note_lines(node: yaml.Node, place: Place, lines: Lines) -> None:
    """Note the line of each key and element; for a `<<` key its line in the merged mapping."""
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _note_lines(value, (*place, i), lines)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.tag != MERGE:
            lines.setdefault((*place, key.value), key.start_mark.line + 1)
            _note_lines(value, (*place, key.value), lines)
    for key, value in node.value:
        if key.tag == MERGE:
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                _note_lines(source, place, lines)


def where(path: Path, lines: Lines, place: Place) -> str:
    """`path:line: a.b[0]`, with the line of the nearest part that the file has."""
    known = place
    while known and known not in lines:
        known = known[:-1]
    dotted = re.sub(r"\.\[", "[", ".".join(f"[{part}]" if isinstance(part, int) else str(part) for part in place))
    return f"{path}:{lines.get(known, 1)}: {cut(dotted) or 'the file'}"


def cut(text: str, chars: int = SHOWN_CHARS) -> str:
    """The text, or its beginning and the number of omitted characters."""
    return text if len(text) <= chars else f"{text[:chars]}… ({len(text) - chars:,} more characters)"


def joined(messages: list[str]) -> str:
    """The different messages, one per line, at most `SHOWN_MESSAGES` of them."""
    different = list(dict.fromkeys(messages))
    left = len(different) - SHOWN_MESSAGES
    return "\n".join(different[:SHOWN_MESSAGES] + ([f"… and {left:,} mistakes more"] if left > 0 else []))
