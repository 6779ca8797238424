"""The one reader of every YAML file: what could fill the memory or hide a mistake is refused before anything walks the tree.

Refused, with the line: files above 1 MB, too many or too deeply nested values, aliases that repeat too much or hold themselves,
a key given twice, numbers that fit no column. `where` and `cut` are how every message about such a file names a place and a value.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import UsageError

MAX_BYTES = 1_000_000
MAX_VALUES = 50_000  # about a kilobyte of memory each
MAX_DEPTH = 50
MAX_REPEATED = 100_000  # characters and values that aliases stand for, all together
MAX_INTEGER = 2**63  # what a column of the warehouse holds
MAX_DIGITS = 100
SHOWN_CHARS = 200  # of a value in a message
MESSAGE_CHARS = 2000  # of what is said of one value: lists of allowed names are long
SHOWN_MESSAGES = 20
MERGE = "tag:yaml.org,2002:merge"
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
UNREADABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Place = tuple[str | int, ...]
Lines = dict[Place, int]


class RefusedError(yaml.MarkedYAMLError):
    """YAML that we do not take. Unlike a syntax error its words stand alone."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(None, None, problem, mark)
        self.line = mark.line + 1


def read(path: Path, missing: str) -> tuple[Any, Lines]:
    """What a YAML file holds, and the line of each of its keys and elements. `missing` is said where there is no such file.

    Raises:
        UsageError: not there, not YAML, or refused; the message names the line.
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
        raise UsageError(f"{path}: is larger than {MAX_BYTES / 1e6:g} MB; expected a file that people write.")
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
    """PyYAML's safe loader with limits, and with every value's own failure as an error that names its line."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = self._repeated = 0
        # of every node that is whole: values and characters, and levels, both with what its aliases stand for
        self._sizes: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            return self._aliased(event, super().compose_node(parent, index))
        self._values += 1
        if self._values > MAX_VALUES:
            raise RefusedError(f"holds more than {MAX_VALUES:,} values; expected what people write", event.start_mark)
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
            raise RefusedError(f"{problem}; write out what is needed, without aliases of aliases", event.start_mark)
        return node

    def _require_depth(self, more: int, event: Any) -> None:
        if self._depth + more > MAX_DEPTH:
            raise RefusedError(f"nested more than {MAX_DEPTH} deep; expected far less", event.start_mark)

    def _refuse_repeated_keys(self, node: yaml.MappingNode) -> None:
        """YAML itself would silently keep the last one. Keys that `<<` brings may be given again: that is its purpose."""
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
    """The text, with two escapes that are one character in JSON's way of writing made that character."""
    if "\0" in text:
        raise RefusedError("holds the character U+0000; no text, path or command may hold it", node.start_mark)
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise RefusedError("holds half of a surrogate pair, which is no character", node.start_mark) from None


def _note_lines(node: yaml.Node, place: Place, lines: Lines) -> None:
    """Remember each key's and element's line; of a key that `<<` brings, where it stands in what is merged."""
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
    """`path:line: a.b[0]`, the line of the nearest part that stands in the file."""
    known = place
    while known and known not in lines:
        known = known[:-1]
    dotted = re.sub(r"\.\[", "[", ".".join(f"[{part}]" if isinstance(part, int) else str(part) for part in place))
    return f"{path}:{lines.get(known, 1)}: {cut(dotted) or 'the file'}"


def cut(text: str, chars: int = SHOWN_CHARS) -> str:
    """The text, or its start and how much is left out."""
    return text if len(text) <= chars else f"{text[:chars]}… ({len(text) - chars:,} more characters)"


def joined(messages: list[str]) -> str:
    """The messages one a line, each once, at most `SHOWN_MESSAGES` of them."""
    different = list(dict.fromkeys(messages))
    left = len(different) - SHOWN_MESSAGES
    return "\n".join(different[:SHOWN_MESSAGES] + ([f"… and {left:,} mistakes more"] if left > 0 else []))
