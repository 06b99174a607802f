from __future__ import annotations

import asyncio

import httpx
import pytest

from proxy.providers.translation import TranslatedStream, translated
from tests.wire import Body, Part


class Shouting:
    """Puts lines into capitals, a line at a time, and tells at the end how many there were."""

    content_type = b"text/loud"

    def __init__(self) -> None:
        self.rest = b""
        self.lines = 0

    def feed(self, data: bytes) -> bytes:
        *lines, self.rest = (self.rest + data).split(b"\n")
        self.lines += len(lines)
        return b"".join(line.upper() + b"\n" for line in lines)

    def finish(self) -> bytes:
        return b"%d" % self.lines if self.lines else b""


def stream(*parts: Part) -> tuple[Body, TranslatedStream]:
    body = Body(*parts)
    return body, TranslatedStream(body, Shouting())


async def test_what_is_read_is_the_translation_and_never_nothing() -> None:
    _, loud = stream(b"a", b"", b"b\nc\n", b"d", b"\n")
    assert [chunk async for chunk in loud] == [b"AB\nC\n", b"D\n", b"3"]
    assert [chunk async for chunk in loud] == []


async def test_an_end_without_words_is_an_end() -> None:
    _, loud = stream(b"a")
    assert [chunk async for chunk in loud] == []


async def test_a_read_that_was_cancelled_has_lost_nothing() -> None:
    _, loud = stream(b"a", 0.05, b"b\n")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(loud)
    assert await anext(loud) == b"AB\n"


async def test_a_failure_passes_as_it_is() -> None:
    _, loud = stream(b"a\nb", httpx.ReadError("cut"))
    assert await anext(loud) == b"A\n"
    with pytest.raises(httpx.ReadError, match="cut"):
        await anext(loud)


async def test_closing_closes_what_lies_behind() -> None:
    body, loud = stream(b"a\n")
    await loud.aclose()
    assert body.closed == 1


async def test_a_response_changes_its_type_and_its_body() -> None:
    headers = [(b"Content-Type", b"application/x-ndjson"), (b"x-request-id", b"r")]
    response = httpx.Response(200, headers=headers, stream=Body(b"a\n"))
    fields = translated(response, Shouting())
    assert fields == [(b"x-request-id", b"r"), (b"content-type", b"text/loud")]
    assert await response.aread() == b"A\n1"
