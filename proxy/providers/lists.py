"""Which models the providers have: each one's list, fetched when asked for and kept a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import httpx

from proxy.clock import monotonic
from proxy.providers.base import Provider
from proxy.types import ModelInfo

_FRESH = 300.0  # seconds that a list is believed
_RETRY = 30.0  # seconds until a provider that did not answer is asked again
_DEADLINE = 10.0  # seconds for one provider's answer, with all that belongs to it
_LARGEST = 16 << 20  # bytes of one answer


class ModelLists:
    """The model lists of all providers. A dead provider keeps its last list, or is missing.

    ``key(provider)`` gives the name and secret of a key to ask with, None for none.
    ``refused(provider, name)`` is told of a key that was answered 401, ``updated(models)`` of each
    list that came.
    """

    def __init__(
        self,
        providers: Iterable[Provider],
        transport: httpx.AsyncBaseTransport,
        *,
        key: Callable[[str], tuple[str, str] | None],
        refused: Callable[[str, str], None],
        updated: Callable[[list[ModelInfo]], None],
    ) -> None:
        self._shelves: list[_Shelf] = []
        self.replace(providers)
        self._transport = transport
        self._key = key
        self._refused = refused
        self._updated = updated
        self._lock = asyncio.Lock()

    def replace(self, providers: Iterable[Provider]) -> None:
        """Ask these from now on; the list of a provider that is still the same stays."""
        known = {shelf.provider.name: shelf for shelf in self._shelves}
        self._shelves = []
        for provider in providers:
            shelf = known.get(provider.name)
            if shelf is None or shelf.provider.base_url != provider.base_url:
                shelf = _Shelf(provider)
            shelf.provider = provider
            self._shelves.append(shelf)

    async def all(self) -> list[ModelInfo]:
        """Every model, in the order of the configuration; fetches what is too old. Never raises."""
        async with self._lock:  # who comes while a fetch runs waits for it and finds it done
            now = monotonic()
            due = [shelf for shelf in self._shelves if shelf.due <= now]
            await asyncio.gather(*[self._refresh(shelf) for shelf in due])
        return [model for shelf in self._shelves for model in shelf.models.values()]

    async def reached(self, provider: str) -> bool:
        """Whether a provider answers now when it is asked for its list."""
        for shelf in self._shelves:
            if shelf.provider.name == provider:
                async with self._lock:
                    await self._refresh(shelf)
                return shelf.due > monotonic() + _RETRY
        return False

    def find(self, model: str) -> str | None:
        """The first provider that lists a bare model, by what was fetched last."""
        for shelf in self._shelves:
            # Ollama lists what is called plainly "llama3.2" as "llama3.2:latest".
            if model in shelf.models or f"{model}:latest" in shelf.models:
                return shelf.provider.name
        return None

    def names(self) -> list[str]:
        """All names by which a listed model can be asked for: bare, and after its provider's."""
        shelves = [
            (shelf.provider.name, model) for shelf in self._shelves for model in shelf.models
        ]
        return [name for provider, model in shelves for name in (model, f"{provider}/{model}")]

    async def _refresh(self, shelf: _Shelf) -> None:
        provider = shelf.provider
        key = self._key(provider.name)
        fetch = Fetcher(self._transport, provider, key[1] if key else None)
        try:
            async with asyncio.timeout(_DEADLINE):
                body = await fetch("GET", provider.dialect.models_url(provider.base_url))
            models = provider.dialect.models(provider.name, body)
        except FAILURES as failure:
            shelf.due = monotonic() + _RETRY
            if key and isinstance(failure, _Refused):
                self._refused(provider.name, key[0])
            return
        try:
            async with asyncio.timeout(_DEADLINE):
                models = await provider.dialect.enrich(
                    provider.base_url, models, fetch, shelf.known
                )
        except FAILURES:
            pass  # the plain list is still a list
        shelf.models = {model.name: model for model in models}
        shelf.due = monotonic() + _FRESH
        self._updated(models)


class _Shelf:
    """One provider's list, and when it is due."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.models: dict[str, ModelInfo] = {}
        self.known: dict[str, Any] = {}
        self.due = 0.0


class _Refused(Exception):
    """The provider answered 401."""


FAILURES = (
    _Refused,
    *(httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, RecursionError),
    *(LookupError, TypeError, AttributeError),  # a list of a shape that nobody expects
)
"""What asking a provider may raise."""


class Fetcher:
    """Asks one provider; a call returns the body of a 200 and raises for anything else."""

    def __init__(
        self, transport: httpx.AsyncBaseTransport, provider: Provider, secret: str | None
    ) -> None:
        self._transport = transport
        self._headers = [
            *provider.dialect.headers(secret),
            (b"accept", b"application/json"),
            (b"accept-encoding", b"identity"),
        ]
        waits = {"connect": provider.connect, "first_byte": _DEADLINE, "read": _DEADLINE}
        self._extensions = {"timeout": waits}

    async def __call__(self, method: str, url: str, body: bytes | None = None) -> bytes:
        headers = list(self._headers)
        if body is not None:
            headers.append((b"content-type", b"application/json"))
        request = httpx.Request(
            method, url, headers=headers, content=body, extensions=self._extensions
        )
        response = await self._transport.handle_async_request(request)
        try:
            if response.status_code == 401:
                raise _Refused
            if response.status_code != 200:
                raise ValueError(f"HTTP {response.status_code}")
            return await _read(response)
        finally:
            await response.aclose()


async def _read(response: httpx.Response) -> bytes:
    parts: list[bytes] = []
    size = 0
    assert isinstance(response.stream, httpx.AsyncByteStream)
    async for part in response.stream:
        size += len(part)
        if size > _LARGEST:
            raise ValueError("the answer is too large")
        parts.append(part)
    return b"".join(parts)
