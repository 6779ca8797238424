"""An API key taken out of what a provider says, also where it repeats it in another form, or only a part of it."""

from base64 import b64encode
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import quote

SHORTEST_KEY = 9  # characters; anything shorter is a word that other texts hold, too
PART = 12  # so many consecutive characters of a key are shown nowhere


def without(message: str, key: str | None) -> str:
    """`message` without the key, and as text that can be written anywhere.

    The key is found in upper and lower case, URL-encoded, in hexadecimal and in base64, whole or PART characters of it.
    """
    text = message.encode("utf-8", "replace")  # JSON can hold halves of characters
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
    """Each form in lower case, with the length from which on a part of it is taken out: that of PART characters of the key."""
    raw = key.encode()
    forms = [(raw, 1.0), (quote(key, safe="").encode(), 1.0), (raw.hex().encode(), 2.0)]
    forms.append((b"".join(b"%%%02x" % byte for byte in raw), 3.0))
    for before in range(
        3
    ):  # what stands before the key shifts its base64: as the text alone, after "Bearer ", after a name
        encoded = b64encode(b"\0" * before + raw).rstrip(b"=")
        encoded = encoded[(0, 2, 3)[before] : -1 if (before + len(raw)) % 3 else None]
        forms += [(encoded, 4 / 3), (encoded.replace(b"+", b"-").replace(b"/", b"_"), 4 / 3)]
    least = min(PART, len(key))
    return tuple(dict.fromkeys((form.lower(), min(len(form), int(least * scale))) for form, scale in forms))


def _repeats(lowered: bytes, form: bytes, least: int) -> Iterator[tuple[int, int]]:
    """Where at least so many consecutive characters of `form` stand. Each such run holds one of the blocks looked for."""
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
