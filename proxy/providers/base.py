"""What differs between providers (a dialect), and one configured provider."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from collections.abc import Set as AbstractSet
from datetime import tzinfo
from typing import Any, ClassVar

import httpx
import msgspec

from proxy.clock import until_midnight
from proxy.errors import ErrorReason
from proxy.loopback import is_loopback
from proxy.providers import faults, hints, scope
from proxy.providers.faults import ErrorBody
from proxy.providers.members import inner, number, text
from proxy.providers.translation import Translation
from proxy.providers.usage import count
from proxy.types import Fault, Headers, Memory, ModelInfo, Operation, Usage

Fetch = Callable[[str, str, bytes | None], Awaitable[bytes]]
"""Method, address and JSON body to the body of a 200; anything else raises."""

_HINT_HEADERS = (b"retry-after", b"retry-after-ms")
_MASKED = re.compile(r"[^\s'\"`:=]*\*{3,}[^\s'\"`]*")


class Dialect:
    """How to speak to one kind of provider. Subclasses hold only what is different there."""

    name: ClassVar[str]
    base_url: ClassVar[str | None] = None
    """None where it has to be configured; may hold ``{account_id}``."""
    root: ClassVar[str] = ""
    """The path that an address without one stands for: ``/v1`` for Ollama."""
    include_usage: ClassVar[bool] = True
    """Streams tell their usage only when asked by ``stream_options.include_usage``."""
    mends_tool_indices: ClassVar[bool] = False
    """Several tool calls of a stream may come under one index, and are then told apart."""
    windows: ClassVar[Mapping[str, int]] = {}
    """Seconds of the windows in ``x-ratelimit-limit-<name>``."""
    first_byte: ClassVar[float] = 120.0
    """Seconds to wait for the head of an answer unless configured otherwise."""
    catalog: ClassVar[str | None] = None
    """Its id in the price catalogue; None if it is not there."""
    forwarded: ClassVar[frozenset[bytes]] = frozenset()
    """Request headers of the client that this provider gets beyond the common ones."""
    day: ClassVar[tzinfo | None] = None
    """Where its days end, if an exhausted day's allowance comes back at midnight."""

    def headers(self, secret: str | None) -> Headers:
        """Who we are, for the provider."""
        return [] if secret is None else [(b"authorization", b"Bearer " + secret.encode())]

    def defaults(self, sent: AbstractSet[bytes]) -> Headers:
        """Headers to add where the client sent none; ``sent`` are the names of those it did."""
        return []

    def classify(self, status: int, headers: Headers, body: bytes, now: float) -> Fault:
        """Makes a fault of an HTTP answer that is no success. ``now`` is epoch seconds."""
        return self._fault(status, headers, self.explain(faults.parse(body)), now)

    def classify_event(self, error: Any, now: float) -> Fault:
        """Makes a fault of the ``error`` member in a 200's body or stream.

        ``Fault.status`` is then the status that the error itself names.
        """
        return self._fault(None, [], self.explain(faults.read(error)), now)

    def explain(self, error: ErrorBody) -> ErrorBody:
        """Adds to a refusal what this provider tells elsewhere in it."""
        return error

    def usage(self, raw: Mapping[str, Any]) -> Usage:
        """Reads a raw ``usage`` object."""
        return count(raw)

    def url(self, base_url: str, operation: Operation) -> str:
        """The address of an operation."""
        return base_url + operation.path

    def translate(
        self, operation: Operation, body: bytes, stream: bool
    ) -> tuple[bytes, Translation | None]:
        """A body as this provider takes it, and what puts its answer back into OpenAI's words.

        None where it speaks OpenAI's. Raises Untranslatable.
        """
        return body, None

    def models_url(self, base_url: str) -> str:
        """Where the provider lists its models."""
        return base_url + "/models"

    def models(self, provider: str, body: bytes) -> list[ModelInfo]:
        """Reads a model list; ValueError if it is none. ``provider`` is the configured name."""
        return listed(provider, msgspec.json.decode(body))

    async def enrich(
        self, base_url: str, models: list[ModelInfo], fetch: Fetch, known: dict[str, Any]
    ) -> list[ModelInfo]:
        """Asks what the list does not tell. ``known`` is kept from one time to the next."""
        return models

    def running_url(self, base_url: str, model: str) -> str | None:
        """Where it tells whether a model is in its memory; None if it does not."""
        return None

    def memory(self, model: str, body: bytes) -> Memory | None:
        """What a model holds by that answer; None if the answer is none."""
        return None

    def _fault(self, status: int | None, headers: Headers, error: ErrorBody, now: float) -> Fault:
        reason = faults.reason_of(status, error)
        said = hints.retry_after(headers, error, now)
        wait, probe_after = said, None
        if reason is ErrorReason.QUOTA_EXCEEDED and self.day is not None:
            end = hints.reset(headers, error, now) or until_midnight(now, self.day)
            wait, probe_after = _rest_of_day(end, said, faults.has_no_allowance(error))
        in_header = any(name in _HINT_HEADERS for name, _ in headers)
        message = error.message or _no_message(status)
        if reason is ErrorReason.AUTHENTICATION:
            message = _MASKED.sub("***", message)  # OpenAI quotes both ends of the key it refuses
        return Fault(
            reason=reason,
            message=message,
            status=status if status is not None else error.status,
            type=error.type,
            code=error.code,
            param=error.param,
            retry_after=wait,
            hint=None if wait is None or wait != said else "header" if in_header else "body",
            executed=reason in (ErrorReason.TIMEOUT, ErrorReason.STREAM_ERROR),
            covers=scope.covers(reason, error),
            probe_after=probe_after,
            of_key=scope.of_key(reason, error),
            quoted=bool(error.message),
        )


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """One configured provider. Times are seconds; ``base_url`` has no trailing slash."""

    name: str
    dialect: Dialect
    base_url: str
    connect: float
    first_byte: float
    idle: float
    include_usage: bool
    is_local: bool
    """Whether it runs on this machine, as far as its address says."""
    urls: Mapping[Operation, httpx.URL]

    @classmethod
    def of(
        cls,
        name: str,
        dialect: Dialect,
        *,
        base_url: str | None = None,
        account_id: str | None = None,
        connect: float | None = None,
        first_byte: float | None = None,
        idle: float | None = None,
        include_usage: bool | None = None,
    ) -> Provider:
        """Fills what is None from the dialect. ValueError without an address or account."""
        address = (base_url or dialect.base_url or "").rstrip("/")
        if "{account_id}" in address:
            address = address.replace("{account_id}", account_id or "")
            if not account_id:
                raise ValueError(f"provider {name} needs an account_id")
        if not address:
            raise ValueError(f"provider {name} needs a base_url")
        if dialect.root and httpx.URL(address).path in ("", "/"):
            address += dialect.root
        return cls(
            name=name,
            dialect=dialect,
            base_url=address,
            connect=5.0 if connect is None else connect,
            first_byte=dialect.first_byte if first_byte is None else first_byte,
            idle=120.0 if idle is None else idle,
            include_usage=dialect.include_usage if include_usage is None else include_usage,
            is_local=is_loopback(httpx.URL(address).host),
            urls={each: httpx.URL(dialect.url(address, each)) for each in Operation},
        )

    def url(self, operation: Operation) -> httpx.URL:
        """The address of an operation."""
        return self.urls[operation]


def listed(provider: str, answer: Any) -> list[ModelInfo]:
    """OpenAI's model list, with the sizes that Groq, OpenRouter, vLLM and llama.cpp add."""
    if not isinstance(answer, Mapping) or "data" not in answer:
        raise ValueError("no model list")
    return [
        ModelInfo(
            provider=provider,
            name=name,
            raw=entry,
            context_length=_first(
                entry, "context_length", "context_window", "max_model_len", "max_context_length"
            )
            or _first(inner(entry, "meta"), "n_ctx", "n_ctx_train"),
            max_output_tokens=_first(entry, "max_completion_tokens", "max_output_tokens")
            or number(inner(entry, "top_provider").get("max_completion_tokens")),
            parameters=number(inner(entry, "meta").get("n_params")),
            type=text(entry.get("type")) or text(inner(entry, "architecture").get("modality")),
        )
        for entry in faults.mappings(answer["data"])
        if (name := text(entry.get("id")))
    ]


def _first(entry: Mapping[str, Any], *names: str) -> int | None:
    """The first size that is told; 0 is none."""
    return next((size for name in names if (size := number(entry.get(name)))), None)


def _rest_of_day(end: float, said: float | None, hopeless: bool) -> tuple[float, float | None]:
    """Seconds until an exhausted day is over, and until one call may look whether it is.

    Gemini says "36s" beside a day that is used up. Reports differ on whether that is worth a call,
    so one is spent on it; none where it is ``hopeless``.
    """
    if said is None or hopeless:
        return end, None
    return (end, said) if said < end else (said, None)


def _no_message(status: int | None) -> str:
    return "the provider sent an error without a message" + (f" (HTTP {status})" if status else "")
