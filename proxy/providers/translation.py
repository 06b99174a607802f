"""The stage between an upstream that does not speak OpenAI's paths and everything that does."""

from __future__ import annotations

from typing import Protocol

import httpx

from proxy.types import Headers


class Untranslatable(ValueError):
    """A request asks for what a provider has no words for; the message is for the client."""


class Translation(Protocol):
    """An answer in a provider's own words, put into OpenAI's.

    It does no I/O: bytes in, bytes out, whatever the reads looked like. ``content_type`` is that of
    what it makes. ``feed`` and ``finish`` (the answer has ended) raise RemoteProtocolError alone.
    """

    content_type: bytes

    def feed(self, data: bytes) -> bytes: ...
    def finish(self) -> bytes: ...


def translated(response: httpx.Response, translation: Translation) -> Headers:
    """Let a response be read in translation; its header fields as they then are."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    response.stream = TranslatedStream(response.stream, translation)
    fields = [field for field in response.headers.raw if field[0].lower() != b"content-type"]
    return [*fields, (b"content-type", translation.content_type)]


class TranslatedStream(httpx.AsyncByteStream):
    """A body in translation. A read that was cancelled has lost nothing and may be repeated."""

    def __init__(self, stream: httpx.AsyncByteStream, translation: Translation) -> None:
        self._stream = stream
        self._chunks = aiter(stream)
        self._translation = translation
        self._ended = False

    def __aiter__(self) -> TranslatedStream:
        return self

    async def __anext__(self) -> bytes:
        while not self._ended:
            try:
                data = self._translation.feed(await anext(self._chunks))
            except StopAsyncIteration:
                self._ended = True
                data = self._translation.finish()
            if data:
                return data
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Give up the rest; waits only if the stream behind it does."""
        await self._stream.aclose()
