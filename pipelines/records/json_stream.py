"""A streaming reader of JSON lists, which needs little memory for files of any size."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

# Characters that are read at once.
PIECE = 1 << 20
SPACE = re.compile(r"[ \t\n\r]*")


class RepeatedKeyError(ValueError):
    """An object has the same key twice, so its value is ambiguous."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        earlier: set[str] = set()
        repeated = next(key for key, _ in pairs if key in earlier or earlier.add(key))
        raise RepeatedKeyError(f"the key {repeated!r:.60} stands twice in one object")
    return result


STRICT = json.JSONDecoder(object_pairs_hook=_unique)
PLAIN = json.JSONDecoder()


def loads(text: str) -> Any:
    """`text` as JSON.

    Raises:
        ValueError: not JSON, or an object with the same key twice.
        RecursionError: nested too deeply.
    """
    return STRICT.decode(text)


def list_items(handle: TextIO) -> Iterator[tuple[Any, str | None]]:
    """Each element of the list in `handle` with its problem: None, or the repeated key.

    Raises:
        ValueError: not JSON, not a list, or not in the handle's encoding.
        RecursionError: nested too deeply.
    """
    pieces = _Pieces(handle)
    if pieces.next_sign() != "[":
        raise ValueError("not a list")
    pieces.at += 1
    if pieces.next_sign() == "]":
        pieces.at += 1
    else:
        yield pieces.element()
        while pieces.next_sign() == ",":
            pieces.at += 1
            pieces.next_sign()
            yield pieces.element()
        if pieces.next_sign() != "]":
            raise ValueError("the list does not end")
        pieces.at += 1
    if pieces.next_sign():
        raise ValueError("something follows the list")


class _Pieces:
    def __init__(self, handle: TextIO) -> None:
        self.handle, self.text, self.at, self.ended = handle, "", 0, False

    def read_on(self) -> None:
        """Read twice the current rest, so that a long element is not parsed again too often."""
        rest = self.text[self.at :]
        piece = self.handle.read(max(PIECE, 2 * len(rest)))
        self.text, self.at, self.ended = rest + piece, 0, not piece

    def next_sign(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            self.at = self._after_space(self.at)
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.read_on()

    def _after_space(self, at: int) -> int:
        match = SPACE.match(self.text, at)
        return match.end() if match else at

    def _sign_after(self, at: int) -> str:
        at = self._after_space(at)
        return self.text[at : at + 1]

    def element(self) -> tuple[Any, str | None]:
        while True:
            try:
                value, end, problem = self._decode()
                # The next character shows that the element is complete: a number may continue in
                # the next piece.
                if self.ended or self._sign_after(end) in (",", "]"):
                    self.at = end
                    return value, problem
            except json.JSONDecodeError:
                if self.ended:
                    raise
            self.read_on()

    def _decode(self) -> tuple[Any, int, str | None]:
        try:
            return *STRICT.raw_decode(self.text, self.at), None
        except RepeatedKeyError as error:
            return *PLAIN.raw_decode(self.text, self.at), str(error)
