"""The request as it arrives: read once, bounded in size and time, and changed as little as can be.

Only two edits of a body exist: ``model``, and ``stream_options.include_usage`` where the provider
needs to be asked for usage. Everything else, ``messages`` above all, goes on as the bytes it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from proxy.errors import ErrorReason, GatewayError
from proxy.metering import tokenizer
from proxy.metering.attempt import Asked
from proxy.metering.names import word
from proxy.metering.tokenizer import Sample
from proxy.tags import listed
from proxy.types import Headers, Operation

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_INT64 = 2**63
MOST_OUTPUT = 1_000_000
MOST_ANSWERS = 1_000
"""More than anybody gives: what is asked for beyond that is taken for that much."""


class ClientGone(Exception):
    """The client left before its request had arrived."""


class Inbound(msgspec.Struct, frozen=True):
    """One request: its body, and what of it decides how it is relayed."""

    body: bytes
    model: str
    asked: Asked
    wants_usage: bool
    session: str | None = None
    """OpenAI's ``prompt_cache_key``, else ``user``: whose prompts are likely to begin alike."""
    prompt: Sample | None = None
    user: str | None = None
    """OpenAI's ``user``, else ``safety_identifier``."""
    tags: tuple[str, ...] = ()
    """As they stand in ``metadata.tags``."""
    answers: int = 1
    """How many are made, and paid for: none of embeddings. Each prompt of a list has its own, and
    ``best_of`` makes more than are shown."""

    @property
    def lacks_usage(self) -> bool:
        """Whether it asks for a stream, and not for usage at the end of it."""
        return self.asked.stream and not self.wants_usage

    def edited(self, model: str, ask_usage: bool) -> bytes:
        """The body for an upstream: its own model name, and usage asked for in a stream."""
        if model == self.model and not (ask_usage and self.lacks_usage):
            return self.body
        members = _members(self.body)
        members["model"] = msgspec.Raw(msgspec.json.encode(model))
        if ask_usage and self.lacks_usage:
            members["stream_options"] = _with_usage(members.get("stream_options"))
        return msgspec.json.encode(members)


def content_length(headers: Headers) -> int | None:
    """The Content-Length of a request, if it has one that is a number."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return None


async def read_body(receive: Receive, length: int | None, limit: int, seconds: float) -> bytes:
    """The whole body.

    Raises GatewayError 413 (more than ``limit`` bytes) or 408 (not there after ``seconds``), and
    ClientGone.
    """
    if length is not None and length > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(seconds):
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                body = message.get("body", b"")
                if len(body) > limit:
                    raise _too_large(limit)
                return bytes(body)
            return await _read_on(receive, message, limit)
    except TimeoutError:
        raise GatewayError(
            408,
            f"The request's body did not arrive within {seconds:g} s.",
            ErrorReason.TIMEOUT,
            code="request_timeout",
        ) from None


async def _read_on(receive: Receive, message: MutableMapping[str, Any], limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()


def parse(body: bytes, operation: Operation) -> Inbound:
    """Read what the relay and the meter need; GatewayError 400 for what cannot be served."""
    try:
        body.decode()  # what is skipped unread must be text, too
        read: dict[str, Any] = _typed(body, operation)
    except msgspec.ValidationError:
        read = _untyped(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise _invalid(f"The body is not valid JSON: {exc}") from None
    model = read.get("model")
    if model is None:
        raise _invalid("You must provide a model parameter.", "model")
    if not isinstance(model, str) or not model.strip():
        raise _invalid("'model' must be a string that is not empty.", "model")
    options = read.get("stream_options")
    wants_usage = isinstance(options, dict) and options.get("include_usage") is True
    session = read.get("prompt_cache_key") or read.get("user")
    session = session[:256] if isinstance(session, str) else None
    users = (read.get(name) for name in ("user", "safety_identifier"))
    return Inbound(
        body,
        model,
        _asked(read, model, operation),
        wants_usage,
        session,
        read.get("prompt_sample"),
        next((user for user in users if user and isinstance(user, str)), None),
        _tags(read.get("metadata")),
        _answers(read, operation),
    )


class _Part(msgspec.Struct):
    text: str | None = None


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None


class _Request(msgspec.Struct):
    """The members that are read; the rest is skipped."""

    model: Any = None
    stream: Any = None
    stream_options: Any = None
    messages: list[_Message] | None = None
    prompt: Any = None
    input: Any = None
    temperature: Any = None
    top_p: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    top_k: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    stop: Any = None
    tools: list[msgspec.Raw] | None = None
    n: Any = None
    best_of: Any = None
    seed: Any = None
    reasoning_effort: Any = None
    reasoning: Any = None
    prompt_cache_key: Any = None
    user: Any = None
    safety_identifier: Any = None
    metadata: msgspec.Raw | None = None


class _Metadata(msgspec.Struct):
    tags: Any = None


_decode = msgspec.json.Decoder(_Request).decode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_metadata = msgspec.json.Decoder(_Metadata).decode
_options = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode


def _typed(body: bytes, operation: Operation) -> dict[str, Any]:
    request = _decode(body)
    read = msgspec.structs.asdict(request)
    texts: list[str] | None = None
    if operation is not Operation.CHAT:
        texts = _texts(request.input if operation is Operation.EMBEDDINGS else request.prompt)
    elif request.messages is not None:
        read["message_count"] = len(request.messages)
        texts = [text for message in request.messages for text in _parts(message.content)]
    if texts is not None:
        read["prompt_length"] = sum(map(len, texts))
        read["prompt_sample"] = _sample(texts)
    return read


def _untyped(body: bytes) -> dict[str, Any]:
    """A body whose members have odd types is the upstream's to judge; the row keeps less."""
    try:
        loose = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise _invalid(f"The body is not valid JSON: {exc}") from None
    if not isinstance(loose, dict):
        raise _invalid("The body must be a JSON object.")
    messages = loose.get("messages")
    counted = len(messages) if isinstance(messages, list) else None
    return {**loose, "message_count": counted, "prompt_length": None}


def _asked(read: dict[str, Any], model: str, operation: Operation) -> Asked:
    stop, tools, reasoning = read.get("stop"), read.get("tools"), read.get("reasoning")
    effort = read.get("reasoning_effort")
    if effort is None and isinstance(reasoning, dict):
        effort = reasoning.get("effort")
    # Where both stand there, a server may go by either. To some 0 is no limit, to others an error.
    names = ("max_tokens", "max_completion_tokens")[: 2 if operation is Operation.CHAT else 1]
    most = [count for name in names if (count := _count(read.get(name), MOST_OUTPUT))]
    return Asked(
        model=model[:256],
        stream=read.get("stream") is True,
        message_count=read.get("message_count"),
        prompt_length=read.get("prompt_length"),
        temperature=_number(read.get("temperature")),
        top_p=_number(read.get("top_p")),
        frequency_penalty=_number(read.get("frequency_penalty")),
        presence_penalty=_number(read.get("presence_penalty")),
        top_k=_integer(read.get("top_k")),
        max_tokens=max(most, default=None),
        stop_count=1 if isinstance(stop, str) else len(stop) if isinstance(stop, list) else None,
        tool_count=len(tools) if isinstance(tools, list) else None,
        n=_count(read.get("n"), MOST_ANSWERS) or None,
        seed=_integer(read.get("seed")),
        reasoning_effort=word(effort),
    )


def _answers(read: dict[str, Any], operation: Operation) -> int:
    if operation is Operation.EMBEDDINGS:
        return 0
    choices = _count(read.get("n"), MOST_ANSWERS) or 1
    if operation is Operation.CHAT:
        return choices
    choices = max(choices, _count(read.get("best_of"), MOST_ANSWERS) or 1)
    prompt = read.get("prompt")
    if isinstance(prompt, list) and any(isinstance(each, str | list) for each in prompt):
        choices *= len(prompt)
    return choices


def _parts(content: str | list[_Part] | None) -> list[str]:
    """The texts of a message."""
    if isinstance(content, str):
        return [content]
    return [part.text for part in content or () if part.text]


def _texts(value: Any) -> list[str] | None:
    """A string, or a list of strings; of token arrays no text is known."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return value
    return None


def _sample(texts: list[str]) -> Sample | None:
    sample = tokenizer.sample()
    if sample is not None:
        for text in texts:
            sample.add(text)
    return sample


def _tags(metadata: Any) -> tuple[str, ...]:
    """``metadata`` is the provider's to judge; what is no object has no tags."""
    if isinstance(metadata, msgspec.Raw):
        try:
            return listed(_metadata(metadata).tags)
        except msgspec.DecodeError:
            return ()
    return listed(metadata.get("tags")) if isinstance(metadata, dict) else ()


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 else None


def _integer(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if -_INT64 <= value < _INT64 else None


def _count(value: Any, most: int) -> int | None:
    """A number of tokens or answers, as lenient servers read it: ``"100"`` and ``100.0`` are one, a
    negative one says nothing, and beyond ``most`` there is no more."""
    if isinstance(value, str) and value.isascii() and value.strip().isdigit():
        value = int(value.strip()[:20])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return min(value, most)


def _with_usage(options: msgspec.Raw | None) -> msgspec.Raw:
    members: dict[str, Any] = {}
    if options is not None:
        try:
            members = dict(_options(options) or {})
        except msgspec.DecodeError:
            return options
    members["include_usage"] = True
    return msgspec.Raw(msgspec.json.encode(members))


def _invalid(message: str, param: str | None = None) -> GatewayError:
    return GatewayError(400, message, ErrorReason.INVALID_REQUEST, param=param)


def _too_large(limit: int) -> GatewayError:
    return GatewayError(
        413,
        f"The request's body is larger than {limit} bytes.",
        ErrorReason.TOO_LARGE,
        code="request_too_large",
    )
