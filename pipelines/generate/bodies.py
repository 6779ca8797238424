"""Response bodies, decoded while they arrive and never beyond a cap: 50 kB of gzip may expand to 50
MB."""

import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2

MEGABYTE = 1_000_000
# Bytes kept of a body that is not an answer: enough to recognize it.
EXCERPT_BYTES = 100_000


@dataclass
class Cap:
    """The most bytes of one decoded body. The results of a batch hold many answers, so the cap is
    raised for them."""

    most_bytes: float


class TooLarge(httpx2.ReadError):
    """A body exceeds the cap; `start` is its beginning."""

    def __init__(self, most_bytes: float, start: bytes) -> None:
        super().__init__(f"the answer is larger than {most_bytes / MEGABYTE:g} MB (max_answer_mb of the provider)")
        self.start = start


class CappedStream(httpx2.AsyncByteStream):
    """`stream`, decoded from `encodings` (in the order of the header) and cut off at `cap`."""

    def __init__(self, stream: Any, encodings: list[str], cap: Cap) -> None:
        self._stream, self._cap = stream, cap
        self._decoders = [_Decoder(encoding) for encoding in reversed(encodings) if encoding != "identity"]
        self._start, self._count = b"", 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            room = int(self._cap.most_bytes) - self._count
            for decoder in self._decoders:
                chunk = decoder.decode(chunk, room + 1)
                if len(chunk) > room:
                    break
            self._start += chunk[: EXCERPT_BYTES - len(self._start)]
            if len(chunk) > room:
                raise TooLarge(self._cap.most_bytes, self._start)
            self._count += len(chunk)
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Decoder:
    def __init__(self, encoding: str) -> None:
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise httpx2.DecodingError(f"the body is encoded as {encoding[:40]!r}; expected gzip or deflate")
        # Some servers send deflate without the zlib header.
        self._raw = encoding == "deflate"
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | (0 if self._raw else 16))

    def decode(self, chunk: bytes, most: int) -> bytes:
        try:
            try:
                decoded = self._zlib.decompress(chunk, most)
            except zlib.error:
                if not self._raw:
                    raise
                self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)
                decoded = self._zlib.decompress(chunk, most)
        except zlib.error as error:
            raise httpx2.DecodingError(f"the body cannot be decoded: {error}") from None
        self._raw = False
        return decoded
