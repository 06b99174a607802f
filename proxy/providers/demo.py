"""The built-in provider ``demo``: a simulated model behind real HTTP on loopback.

It is there so that the first request works, and is metered, where nothing is configured and no
model is found. It speaks OpenAI's API at a person's reading pace, says in each answer what it is,
and charges nothing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec

from proxy.clock import new_id, now_ms
from proxy.redact import shorten

MODEL = "echo"

_MAX_HEAD = 64 * 1024
_MAX_BODY = 1024 * 1024
_DIMENSIONS = 16
_CHARACTERS_A_TOKEN = 4  # the usual rule of thumb for English text
_STATUS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    411: "Length Required",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
}

_Count = Annotated[int, msgspec.Meta(ge=1)]


class _Options(msgspec.Struct):
    include_usage: bool | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


class _Generation(msgspec.Struct):
    model: str
    stream: bool | None = None
    stream_options: _Options | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None


class _Chat(_Generation, kw_only=True):
    messages: list[_Message]


class _Completion(_Generation, kw_only=True):
    prompt: str | list[str] = ""


class _Embeddings(msgspec.Struct):
    model: str
    input: str | list[Any]  # a text, texts, tokens, or lists of tokens
    encoding_format: Literal["float", "base64"] = "float"


_Request = TypeVar("_Request", _Chat, _Completion, _Embeddings)


class _Head(NamedTuple):
    method: str
    path: str
    length: int
    keep_alive: bool


class _Refusal(Exception):
    """An answer in OpenAI's error envelope."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


class DemoServer:
    """The simulated model's server. ``word_seconds`` is the pace of its answers."""

    def __init__(self, word_seconds: float = 0.03) -> None:
        self._pace = word_seconds
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()

    async def start(self) -> str:
        """Listen on a free port of 127.0.0.1; answers the base address, ending in ``/v1``."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_MAX_HEAD)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}/v1"

    async def close(self) -> None:
        """Stop listening and end every connection, in the middle of an answer too."""
        if self._server is None:
            return
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            # A client that left and a close() of ours end a connection; neither is worth a word.
            with suppress(OSError, EOFError, asyncio.CancelledError):
                while self._is_open() and await self._exchange(reader, writer):
                    pass
        finally:
            self._connections.discard(connection)
            writer.close()

    def _is_open(self) -> bool:
        """False for a connection that was accepted, but not served yet, when close() was called."""
        return self._server is not None and self._server.is_serving()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False where the connection must end after it."""
        try:
            head = await _read_head(reader)
        except _Refusal as refusal:  # where its body ends is unknown, so nothing can follow it
            await _send(writer, refusal.status, _error(refusal), keep_alive=False)
            return False
        body = await reader.readexactly(head.length)
        try:
            await self._answer(head, body, reader, writer)
        except _Refusal as refusal:
            await _send(writer, refusal.status, _error(refusal))
        return head.keep_alive

    async def _answer(
        self, head: _Head, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        answer: object
        match head.method, head.path:
            case "POST", "/v1/chat/completions":
                chat = _decode(body, _Chat)
                return await self._generate(_Answer(chat, _last_user_text(chat)), reader, writer)
            case "POST", "/v1/completions":
                completion = _decode(body, _Completion)
                prompt = completion.prompt
                text = prompt if isinstance(prompt, str) else "\n".join(prompt)
                return await self._generate(_Answer(completion, text), reader, writer)
            case "POST", "/v1/embeddings":
                answer = _embeddings(_decode(body, _Embeddings))
            case "GET", "/v1/models":
                answer = {"object": "list", "data": [_model()]}
            case "GET", path if path == f"/v1/models/{MODEL}":
                answer = _model()
            case _:
                raise _Refusal(404, f"Unknown request URL: {head.method} {shorten(head.path)}.")
        await _send(writer, 200, answer)

    async def _generate(
        self, answer: _Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if not answer.streamed:
            await asyncio.sleep(self._pace * len(answer.words))
            await _send(writer, 200, answer.whole())
            return
        fields = "content-type: text/event-stream\r\ncache-control: no-cache\r\n"
        writer.write(_start(200, fields + "transfer-encoding: chunked\r\n"))
        async for event in answer.events(self._pace):
            if reader.at_eof():
                raise EOFError
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()


class _Answer:
    """What the simulated model says to one request, whole or event by event."""

    def __init__(self, request: _Generation, text: str) -> None:
        self._chat = isinstance(request, _Chat)
        self.streamed = bool(request.stream)
        options = request.stream_options
        self._usage_wanted = options is not None and bool(options.include_usage)
        reply = (
            "This is Tollkeeper's built-in demo, a simulated model. "
            f"You said: {shorten(text.strip(), 200) or '(nothing)'}"
        )
        self.words = re.findall(r"\S+\s*", reply)
        allowed = request.max_completion_tokens or request.max_tokens or len(self.words)
        self._finish = "stop" if allowed >= len(self.words) else "length"
        self.words = self.words[:allowed]
        self._usage = _usage(_prompt_length(request), len(self.words))
        self._common = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{new_id()}",
            "created": now_ms() // 1000,
            "model": MODEL,
        }

    def whole(self) -> dict[str, Any]:
        text = "".join(self.words)
        choice: dict[str, Any] = {"index": 0, "finish_reason": self._finish, "logprobs": None}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._common, "object": kind, "choices": [choice], "usage": self._usage}

    async def events(self, pace: float) -> AsyncIterator[bytes]:
        if self._chat:
            yield self._event({"delta": {"role": "assistant", "content": ""}})
        for word in self.words:
            await asyncio.sleep(pace)
            yield self._event({"delta": {"content": word}} if self._chat else {"text": word})
        last: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        yield self._event(last, self._finish)
        if self._usage_wanted:
            yield self._event(None)
        yield b"data: [DONE]\n\n"

    def _event(self, choice: dict[str, Any] | None, finish: str | None = None) -> bytes:
        """An event with one choice; None: the last one, which has the usage and no choice."""
        chunk = {
            **self._common,
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "choices": [] if choice is None else [{"index": 0, **choice, "finish_reason": finish}],
        }
        if self._usage_wanted:
            chunk["usage"] = self._usage if choice is None else None
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


async def _read_head(reader: asyncio.StreamReader) -> _Head:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise _Refusal(431, "The request's head is too long.") from None
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _Refusal(400, "This is no HTTP/1.1 request.")
    pairs = [line.partition(":") for line in lines]
    fields = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if "transfer-encoding" in fields:
        raise _Refusal(411, "Send the body with a Content-Length.")
    length = fields.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise _Refusal(400, "The Content-Length is no number.")
    if len(length) > 9 or int(length) > _MAX_BODY:
        raise _Refusal(413, f"The body is longer than {_MAX_BODY} bytes.")
    keep_alive = words[2] != "HTTP/1.0" and fields.get("connection", "").lower() != "close"
    return _Head(words[0], words[1].partition("?")[0], int(length), keep_alive)


def _decode(body: bytes, kind: type[_Request]) -> _Request:
    try:
        request = msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Refusal(400, f"The body cannot be read: {error}") from None
    if request.model != MODEL:
        name = shorten(request.model, 100)
        raise _Refusal(404, f"The model `{name}` does not exist.", "model_not_found")
    return request


def _start(status: int, fields: str) -> bytes:
    line = f"HTTP/1.1 {status} {_STATUS[status]}\r\nx-request-id: demo-{new_id()}\r\n"
    return (line + fields + "\r\n").encode("ascii")


async def _send(
    writer: asyncio.StreamWriter, status: int, answer: object, *, keep_alive: bool = True
) -> None:
    body = msgspec.json.encode(answer)
    fields = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    if not keep_alive:
        fields += "connection: close\r\n"
    writer.write(_start(status, fields) + body)
    await writer.drain()


def _error(refusal: _Refusal) -> dict[str, Any]:
    kind = "invalid_request_error"
    return {
        "error": {"message": refusal.message, "type": kind, "param": None, "code": refusal.code}
    }


def _text(message: _Message) -> str:
    if isinstance(message.content, list):
        texts = [part.get("text") for part in message.content]
        return " ".join([text for text in texts if isinstance(text, str)])
    return message.content or ""


def _last_user_text(chat: _Chat) -> str:
    return next((_text(m) for m in reversed(chat.messages) if m.role == "user"), "")


def _prompt_length(request: _Generation) -> int:
    """In characters."""
    if isinstance(request, _Chat):
        return sum(len(_text(message)) for message in request.messages)
    prompt = request.prompt if isinstance(request, _Completion) else ""
    return sum(len(text) for text in ([prompt] if isinstance(prompt, str) else prompt))


def _usage(characters: int, completion: int | None = None) -> dict[str, Any]:
    """OpenAI's ``usage``; ``cost`` as OpenRouter puts it, because nothing is charged."""
    prompt = max(1, round(characters / _CHARACTERS_A_TOKEN))
    usage: dict[str, Any] = {"prompt_tokens": prompt, "total_tokens": prompt + (completion or 0)}
    if completion is not None:
        usage["completion_tokens"] = completion
    return {**usage, "cost": 0}


def _embeddings(request: _Embeddings) -> dict[str, Any]:
    given = request.input
    one = isinstance(given, str) or (given and isinstance(given[0], int))
    texts = [str(item) for item in ([given] if one else given)]
    data = []
    for index, text in enumerate(texts):
        vector: list[float] | str = _vector(text)
        if request.encoding_format == "base64":
            vector = base64.b64encode(struct.pack(f"<{_DIMENSIONS}f", *vector)).decode("ascii")
        data.append({"object": "embedding", "index": index, "embedding": vector})
    usage = _usage(sum(len(text) for text in texts))
    return {"object": "list", "data": data, "model": MODEL, "usage": usage}


def _vector(text: str) -> list[float]:
    """The same for the same text, of length one, and without any meaning."""
    digest = hashlib.shake_256(text.encode()).digest(_DIMENSIONS)
    raw = [byte - 127.5 for byte in digest]
    norm = sum(value * value for value in raw) ** 0.5
    return [value / norm for value in raw]


def _model() -> dict[str, Any]:
    return {
        "id": MODEL,
        "object": "model",
        "created": 0,
        "owned_by": "tollkeeper",
        "description": "simulated: repeats what it is told; no model is behind it",
    }
