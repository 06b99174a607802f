"""The calls that are relayed. Plain ASGI, in front of FastAPI: nothing stands before the relay.

FastAPI's own stack costs a request as much as half of the relay does, and each chunk of a stream
three more calls, so it serves everything but this.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from proxy.relay.relay import Relay
from proxy.types import Operation

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

RELAYED = {f"/v1{operation.path}": operation for operation in Operation}
"""The paths whose POSTs are relayed."""


class Calls:
    """Hands POSTs of the table to the relay and everything else to the app.

    ``relay`` is there from the moment the app has started.
    """

    relay: Relay

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            operation = RELAYED.get(scope["path"])
            if operation is not None:
                await self.relay.serve(operation, scope, receive, send)
                return
        await self._app(scope, receive, send)
