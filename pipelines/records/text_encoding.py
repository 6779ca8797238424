"""Detection of the encoding of a text file: from its byte order mark, else from its bytes.

UTF-8 is preferred. Another encoding is guessed only if most lines with non-ASCII bytes are not
UTF-8, because a wrong guess produces text that nobody wrote.
"""

import codecs
from typing import IO, Any, Literal

# Encodings that a source may declare. Without one, that of a CSV file is detected.
Encoding = Literal[
    "utf-8", "cp949", "cp932", "euc_jp", "gb18030", "big5", "cp1252", "cp1250", "cp1251", "koi8_r", "mac_roman"
]
# Size of the sample of lines that are not ASCII.
SAMPLE_BYTES = 1 << 18
PIECE_BYTES = 1 << 20
# UTF-32 comes before UTF-16, because its mark begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Encodings of common spreadsheets, with one or two bytes per character.
ONE_BYTE = ("cp1252", "cp1250", "cp1251", "koi8_r", "mac_roman")
TWO_BYTES = ("cp949", "cp932", "euc_jp", "gb18030", "big5")
# Languages of cp1250.
CENTRAL_EUROPE = frozenset(("bs", "cs", "hr", "hu", "pl", "ro", "sk", "sl", "sq"))
LANGUAGE_CHARS = 4000
# Coherence, from 0 to 1, is how well the letters fit a language. Any bytes are text in an encoding
# with one byte per character, so such an encoding needs it.
MIN_COHERENCE = 0.1
MAX_CHAOS = 0.2
CLEAR_CHAOS_MARGIN = 0.05


def detect(handle: IO[bytes]) -> str:
    """The name of the codec for `handle`; UTF-8 unless another one is certain.

    Rewinds `handle` to its start.
    """
    head = handle.read(4096)
    codec = next((codec for mark, codec in MARKS if head.startswith(mark)), None) or _unmarked_utf16(head)
    if not codec:
        handle.seek(0)
        codec = _guess(_lines_beyond_ascii(handle))
    handle.seek(0)
    return codec


def display_name(codec: str) -> str:
    """The codec's name for people."""
    return {"utf-8-sig": "UTF-8"}.get(codec, codec.upper() if codec.startswith("utf") else codec)


def _unmarked_utf16(head: bytes) -> str | None:
    """UTF-16 of mostly Latin text has a zero in every other byte."""
    zeros = (head[::2].count(0), head[1::2].count(0))
    if max(zeros) < 0.2 * len(head) / 2 or min(zeros) > 0.1 * max(zeros) or not any(head.replace(b"\0", b"")):
        return None
    return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"


def _lines_beyond_ascii(handle: IO[bytes]) -> list[bytes]:
    """A sample of the lines that are not ASCII."""
    lines: list[bytes] = []
    total, rest = 0, b""
    while total < SAMPLE_BYTES and (piece := handle.read(PIECE_BYTES)):
        *complete, rest = (rest + piece).split(b"\n")
        # A line of unlimited length.
        if len(rest) > PIECE_BYTES:
            complete, rest = [*complete, rest[:PIECE_BYTES]], b""
        if not piece.isascii():
            lines += [line for line in complete if not line.isascii()]
            total = sum(map(len, lines))
    return lines if total >= SAMPLE_BYTES or rest.isascii() else [*lines, rest]


def _guess(lines: list[bytes]) -> str:
    broken = [line for line in lines if not _is_utf8(line)]
    if 2 * len(broken) <= len(lines):
        return "utf-8-sig"
    # Imported here because it loads slowly, and most files are UTF-8.
    from charset_normalizer import from_bytes

    sample = b"\n".join(lines)[: 2 * SAMPLE_BYTES]
    best, *others = [*from_bytes(sample, cp_isolation=[*TWO_BYTES, *ONE_BYTE], threshold=MAX_CHAOS)] or [None]
    if best is None or (best.encoding in ONE_BYTE and best.coherence < MIN_COHERENCE):
        return "utf-8-sig"
    if best.encoding in TWO_BYTES and not all(_is_clearer(best, other) for other in others):
        return "utf-8-sig"
    return _european(sample) if best.encoding in ("cp1250", "cp1252") else best.encoding


def _is_clearer(best: Any, other: Any) -> bool:
    """Whether `best` beats `other` clearly.

    A few two-byte characters are valid text in every East Asian encoding.
    """
    return best.coherence >= other.coherence + MIN_COHERENCE or best.chaos + CLEAR_CHAOS_MARGIN <= other.chaos


def _european(sample: bytes) -> str:
    """The encoding of Western or Central Europe.

    Nearly all bytes are letters in both, so the language decides.
    """
    import py3langid

    language, _ = py3langid.classify(sample.decode("cp1252", errors="ignore")[:LANGUAGE_CHARS])
    return "cp1250" if language in CENTRAL_EUROPE else "cp1252"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
