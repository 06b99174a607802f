"""An upstream whose every byte a test decides: a real HTTP/1.1 server on loopback.

upstream.script = json_answer({...})            what every request gets
upstream.by_key["sk-2"] = refusal(429, {...})   what the requests of one key get
upstream.requests                               what came, in order
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "up"}


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def key(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")


class Exchange:
    """One request and the socket to answer it on. ``gone`` is set when the gateway has left."""

    def __init__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self.writer = writer
        self.gone = asyncio.Event()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int = 200, **headers: str) -> None:
        fields = {k.replace("_", "-"): v for k, v in headers.items()}
        lines = [f"HTTP/1.1 {status} X", *(f"{k}: {v}" for k, v in fields.items()), "", ""]
        await self.send("\r\n".join(lines).encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Exchange], Awaitable[None]]


def answer(status: int, body: bytes, **headers: str) -> Script:
    """A whole answer with a length."""

    async def script(exchange: Exchange) -> None:
        await exchange.head(
            status, **{"content-type": "application/json", **headers}, content_length=str(len(body))
        )
        await exchange.send(body)

    return script


def json_answer(document: Any, status: int = 200, **headers: str) -> Script:
    return answer(status, json.dumps(document).encode(), **headers)


def completion(text: str = "Hello", prompt: int = 9, output: int = 12, **more: Any) -> Script:
    """A plain chat completion."""
    message = {"role": "assistant", "content": text}
    return json_answer(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "up",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": output,
                "total_tokens": prompt + output,
            },
            **more,
        }
    )


def error(status: int, message: str = "no", code: str | None = None, **headers: str) -> Script:
    """An error in OpenAI's shape."""
    body = {"error": {"message": message, "type": "x", "param": None, "code": code}}
    return json_answer(body, status, **headers)


def event(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    """One chunk of a stream as a server-sent event."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return b"data: " + json.dumps({**CHUNK, "choices": [choice], **more}).encode() + b"\n\n"


def usage_event(prompt: int, output: int) -> bytes:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }
    return b"data: " + json.dumps({**CHUNK, "choices": [], "usage": usage}).encode() + b"\n\n"


def words(*texts: str, prompt: int = 5) -> list[bytes]:
    """The events of a whole stream that says these words, usage and ``[DONE]`` included."""
    return [
        event({"role": "assistant", "content": ""}),
        *(event({"content": text}) for text in texts),
        event(finish="stop"),
        usage_event(prompt, len(texts)),
        b"data: [DONE]\n\n",
    ]


def stream(
    parts: Iterable[bytes | float], *, ends: str = "clean", content_type: str = "text/event-stream"
) -> Script:
    """Sends the parts, each a chunk of its own; a number is a pause in seconds.

    ``ends``: "clean", "cut" (closed without the last chunk), "open" (left to the caller) or "hang"
    (nothing more comes).
    """

    async def script(exchange: Exchange) -> None:
        await exchange.head(content_type=content_type, transfer_encoding="chunked")
        for part in parts:
            if isinstance(part, bytes):
                await exchange.chunk(part)
            else:
                await asyncio.sleep(part)
        if ends == "clean":
            await exchange.end()
        elif ends == "cut":
            await exchange.close()
        elif ends == "hang":
            await exchange.gone.wait()

    return script


async def hang(exchange: Exchange) -> None:
    """Never answers."""
    await exchange.gone.wait()


async def drop(exchange: Exchange) -> None:
    """Reads the request and resets the connection."""
    exchange.reset()


@dataclass
class Upstream:
    """``by_key`` goes before ``by_model``, which goes before ``script``.

    ``models`` is what a question for the list gets, unless ``lists`` says what it gets.
    """

    url: str = ""
    script: Script = field(default_factory=completion)
    by_key: dict[str, Script] = field(default_factory=dict)
    by_model: dict[str, Script] = field(default_factory=dict)
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "json"}])
    lists: Script | None = None
    requests: list[Request] = field(default_factory=list)
    open: set[Exchange] = field(default_factory=set)
    connections: int = 0

    def reset(self) -> None:
        """As it was at first, for the next test of a module that shares it."""
        self.script = completion()
        self.by_key.clear()
        self.by_model.clear()
        self.requests.clear()

    async def asked(self, count: int = 1) -> None:
        """Waits until so many calls have come."""
        for _ in range(1000):
            if len(self.calls) >= count:
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"{len(self.calls)} calls have come instead of {count}")

    @property
    def calls(self) -> list[Request]:
        """The requests that were no questions for models."""
        return [request for request in self.requests if request.method == "POST"]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (request := await _read(reader)) is not None:
                self.requests.append(request)
                exchange = Exchange(request, writer)
                self.open.add(exchange)
                watch = asyncio.ensure_future(_watch(reader, exchange))
                try:
                    await self._script(request)(exchange)
                finally:
                    watch.cancel()
                    self.open.discard(exchange)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _script(self, request: Request) -> Script:
        if request.method == "GET":
            if self.lists is not None:
                return self.lists
            return json_answer({"object": "list", "data": self.models})
        if request.key in self.by_key:
            return self.by_key[request.key]
        return self.by_model.get(request.json.get("model", ""), self.script)


async def _watch(reader: asyncio.StreamReader, exchange: Exchange) -> None:
    """An end of file while an answer is due means that the gateway has hung up."""
    while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110 (no event for it)
        await asyncio.sleep(0.005)
    exchange.gone.set()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    line = await reader.readline()
    if not line:
        return None
    method, path, _ = line.decode("latin-1").split(" ", 2)
    headers = {}
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, body)


@asynccontextmanager
async def upstream_server() -> AsyncIterator[Upstream]:
    """A running upstream; ``url`` ends in ``/v1``."""
    upstream = Upstream()
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await upstream.serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=64 * 1024 * 1024)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield upstream
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
