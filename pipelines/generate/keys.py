"""Removes an API key from a provider's messages, also if the key is encoded or only a part of it
appears."""

from base64 import b64encode
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import quote

# Characters. A shorter key could be a word of ordinary text.
SHORTEST_KEY = 9
# This many consecutive characters of a key are removed.
PART = 12


def without(message: str, key: str | None) -> str:
    """`message` without the key, as text that can be written anywhere.

    The key is found in upper and lower case, URL-encoded, in hexadecimal and in base64, whole or
    PART characters of it.
    """
    # JSON can hold lone surrogates, which UTF-8 cannot.
    text = message.encode("utf-8", "replace")
    if not key or len(key) < SHORTEST_KEY:
        return text.decode()
    lowered = text.lower()
    pieces, end = list[bytes](), 0
    for start, stop in sorted({span for form, least in _forms(key) for span in _repeats(lowered, form, least)}):
        if start > end or not pieces:
            pieces += [text[end:start], "…".encode()]
        end = max(end, stop)
    return b"".join([*pieces, text[end:]]).decode()


@lru_cache(maxsize=16)
def _forms(key: str) -> tuple[tuple[bytes, int], ...]:
    """Each encoded form in lower case, with the least length of a removed part: that of PART
    characters of the key."""
    raw = key.encode()
    forms = [(raw, 1.0), (quote(key, safe="").encode(), 1.0), (raw.hex().encode(), 2.0)]
    forms.append((b"".join(b"%%%02x" % byte for byte in raw), 3.0))
    # The bytes before the key shift its base64: none for the key alone, more after "Bearer " or a
    # name.
    for before in range(3):
        encoded = b64encode(b"\0" * before + raw).rstrip(b"=")
        encoded = encoded[(0, 2, 3)[before] : -1 if (before + len(raw)) % 3 else None]
        forms += [(encoded, 4 / 3), (encoded.replace(b"+", b"-").replace(b"/", b"_"), 4 / 3)]
    least = min(PART, len(key))
    return tuple(dict.fromkeys((form.lower(), min(len(form), int(least * scale))) for form, scale in forms))


def _repeats(lowered: bytes, form: bytes, least: int) -> Iterator[tuple[int, int]]:
    """Spans of `lowered` with at least `least` consecutive characters of `form`.

    Every such run contains at least one of the blocks that are searched for; each hit is extended
    to both sides.
    """
    block = (least + 1) // 2
    for at in range(0, len(form) - block + 1, block):
        hit = lowered.find(form[at : at + block])
        while hit >= 0:
            start, before = hit, at
            while start > 0 and before > 0 and lowered[start - 1] == form[before - 1]:
                start, before = start - 1, before - 1
            stop, after = hit + block, at + block
            while stop < len(lowered) and after < len(form) and lowered[stop] == form[after]:
                stop, after = stop + 1, after + 1
            if stop - start >= least:
                yield start, stop
            hit = lowered.find(form[at : at + block], hit + block)
