"""The calls that are relayed, as a table. Plain ASGI: nothing stands between them and the relay."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.routing import Route

from proxy.relay.relay import Relay
from proxy.types import Operation

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


RELAYED = {f"/v1{operation.path}": operation for operation in Operation}
"""The paths whose POSTs are relayed."""


class Endpoint:
    """One operation's ASGI endpoint."""

    def __init__(self, relay: Relay, operation: Operation) -> None:
        self._relay = relay
        self._operation = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._relay.serve(self._operation, scope, receive, send)


def routes(relay: Relay) -> list[Route]:
    """``POST /v1/chat/completions``, ``/v1/completions`` and ``/v1/embeddings``."""
    return [
        Route(path, Endpoint(relay, operation), methods=["POST"])
        for path, operation in RELAYED.items()
    ]
