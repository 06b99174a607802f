"""What the program says on stderr: its own messages, and one line a request.

    setup(level, form, redact)     the loggers of this program and of its libraries
    unchanged(error)               a configuration that was read again, and does not hold
    RequestLog                     one line a request, written from the record that is stored

Both come as JSON, one object a line, or readable. Either way a line is one line: characters that
could break it, or steer a terminal, are written as escapes.
"""

from __future__ import annotations

import logging
import sys
from asyncio import CancelledError
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import TextIO

import msgspec

from proxy.clock import rfc3339
from proxy.errors import ConfigError
from proxy.money import dollars
from proxy.redact import shorten
from proxy.types import CallRecord

_OURS = "tollkeeper"
_LIBRARIES = ("uvicorn.error", "asyncio", "alembic", "sqlalchemy")
"""Heard from ``warning`` on, since the banner says what a start looks like. Without a handler of
ours, Python would print them unredacted."""

_CUT = "ASGI callable returned without completing response."
"""uvicorn's complaint about a response without an end. A broken upstream stream is passed on as a
broken stream, on purpose: a clean end would tell the client that the answer is complete."""

_NO_START = "Application startup failed. Exiting."


def setup(level: str, form: str, redact: Callable[[str], str]) -> None:
    """Send the loggers to stderr, in place of what an earlier call set up.

    ``level`` is a name of the logging module in any case. ``form`` is "json", "text" (readable)
    or "auto": readable on a terminal, else JSON. Messages and tracebacks pass through ``redact``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTERS[_resolve(form, sys.stderr)](redact))
    handler.addFilter(lambda record: not _is_expected(record))
    threshold = _number(level)
    for name in (_OURS, *_LIBRARIES):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(max(threshold, logging.WARNING) if name in _LIBRARIES else threshold)


def unchanged(error: ConfigError) -> None:
    """A line for each mistake in a configuration that was to be used from now on, and is not."""
    for mistake in error.mistakes:
        logging.getLogger(_OURS).error("the configuration stays as it was: %s", mistake)


def _is_expected(record: logging.LogRecord) -> bool:
    """Whether uvicorn tells at length what has a line of ours: a response left without an end, a
    call cancelled because the time to stop is over, a database that is too new to start with."""
    if record.name != "uvicorn.error":
        return False
    cancelled = record.exc_info is not None and record.exc_info[0] is CancelledError
    return cancelled or record.msg in (_CUT, _NO_START) or "SchemaError: " in str(record.msg)


def _resolve(form: str, stream: TextIO) -> str:
    if form != "auto":
        return form
    return "text" if stream.isatty() else "json"


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


class _Readable(logging.Formatter):
    """``time LEVEL logger: message``; a traceback follows, each of its lines indented, so that
    nothing inside it can pass for a line of the log."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        message = _one_line(self._redact(record.getMessage()))
        lines = [f"{_moment(record)} {record.levelname} {record.name}: {message}"]
        request_id = getattr(record, "request_id", None)
        if request_id is not None:
            lines[0] += f" request_id={request_id}"
        lines += ["    " + _one_line(line) for line in self._trace(record).splitlines()]
        return "\n".join(lines)

    def _trace(self, record: logging.LogRecord) -> str:
        stack: str | None = getattr(record, "stack", None)  # told already, less what is private
        if stack is not None:
            return stack
        if not record.exc_info or record.exc_info[0] is None:
            return ""
        return self._redact(self.formatException(record.exc_info))


class _Json(_Readable):
    """One object a line: time, level, logger, message, request_id and exc where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _one_line(self._redact(record.getMessage())),
        }
        request_id = getattr(record, "request_id", None)
        if request_id is not None:
            line["request_id"] = str(request_id)
        if trace := self._trace(record):
            line["exc"] = "\n".join([_one_line(part) for part in trace.splitlines()])
        return msgspec.json.encode(line).decode()


_FORMATTERS = {"json": _Json, "text": _Readable}


def _moment(record: logging.LogRecord) -> str | None:
    return rfc3339(int(record.created * 1000))


def _one_line(text: str) -> str:
    """Control and format characters (line ends, ANSI escapes, U+2028, bidirectional marks, lone
    surrogates) as Python writes them; everything that can be seen as it is."""
    if text.isprintable():
        return text
    return "".join(
        [c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text]
    )


class RequestLog:
    """Writes one line for each request: call it with the final record, others are passed over.

    It does nothing where ``level`` is above info. It writes to the stream itself, since a record
    of the logging module would cost more than all the rest of the line. A stream that cannot be
    written to loses the line and nothing else.
    """

    def __init__(self, level: str, form: str, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._form = _resolve(form, self._stream)
        self._on = _number(level) <= logging.INFO

    def __call__(self, record: CallRecord) -> None:
        if not (self._on and record.is_final):
            return
        with suppress(OSError, ValueError):  # a full disk, a closed pipe; ValueError: closed here
            self._stream.write(request_line(record, self._form) + "\n")


def request_line(record: CallRecord, form: str) -> str:
    """The line of one request, from its final record; ``form`` is "json" or "text".

    The JSON members are the columns of ``api_calls`` (``attempts`` is the number of the last
    attempt, ``cost_usd`` dollars); the readable form leaves out what is unknown.
    """
    return _json_line(record) if form == "json" else _text_line(record)


def _json_line(record: CallRecord) -> str:
    line = {
        "time": _instant(record.finished_at),
        "level": "info",
        "logger": "tollkeeper.request",
        "request_id": record.request_id,
        "endpoint": record.endpoint,
        "status": record.status,
        "http_status": record.http_status,
        "client_status": record.client_status,
        "error_reason": record.error_reason,
        "provider": _name(record.provider),
        "model": _name(record.model),
        "key_id": None if record.key_id is None else _name(record.key_id),
        "client_id": None if record.client_id is None else _name(record.client_id),
        "attempts": record.attempt,
        "is_stream": record.is_stream,
        "total_duration_ms": record.total_duration_ms,
        "time_to_first_token_ms": record.time_to_first_token_ms,
        "tokens_per_second": record.tokens_per_second,
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
        "cost_usd": dollars(record.cost_nano_usd),
    }
    return _encode(line).decode()


def _text_line(record: CallRecord) -> str:
    sent = record.http_status if record.client_status is None else record.client_status
    parts = [
        f"{_instant(record.finished_at)} {record.status} {sent or '-'}"
        f" {_name(record.provider)}/{_name(record.model)}"
    ]
    if record.error_reason is not None:
        parts.append(record.error_reason)
    if record.key_id is not None:
        parts.append(f"key={_name(record.key_id)}")
    parts.append(f"attempts={record.attempt}{' stream' if record.is_stream else ''}")
    if record.total_duration_ms is not None:
        parts.append(f"{record.total_duration_ms:.1f}ms")
    if record.time_to_first_token_ms is not None:
        parts.append(f"ttft={record.time_to_first_token_ms:.1f}ms")
    if record.tokens_per_second is not None:
        parts.append(f"{record.tokens_per_second:.1f}tok/s")
    if record.input_tokens is not None:
        parts.append(f"in={record.input_tokens}")
    if record.output_tokens is not None:
        parts.append(f"out={record.output_tokens}")
    if record.cost_nano_usd is not None:
        parts.append(f"${dollars(record.cost_nano_usd):.6f}")
    parts.append(record.request_id)
    return " ".join(parts)


_encode = msgspec.json.Encoder().encode


def _name(text: str) -> str:
    """A name as it may stand between spaces; a model's is whatever the client wrote."""
    if text.isprintable() and " " not in text and len(text) <= 200:
        return text
    return shorten(_one_line(text).replace(" ", "\\x20"), 200)


def _instant(ms: int) -> str:
    return f"{_second(ms // 1000)}.{ms % 1000:03d}Z"


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    """Requests come many to a second, and formatting a date costs more than the line."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
