"""The calls that are relayed. Plain ASGI, in front of FastAPI: nothing stands before the relay.

FastAPI's own stack costs a request as much as half of the relay does, and each chunk of a stream
three more calls, so it serves everything but this.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from proxy.errors import ErrorReason, GatewayError
from proxy.relay.outbound import send_error
from proxy.relay.relay import Relay
from proxy.types import Operation

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

RELAYED = {f"/v1{operation.path}": operation for operation in Operation}
"""The paths whose POSTs are relayed."""


class Calls:
    """Hands the table's paths to the relay and everything else to the app.

    ``relay`` is there from the moment the app has started.
    """

    relay: Relay

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = RELAYED.get(scope["path"]) if scope["type"] == "http" else None
        if operation is None:
            await self._app(scope, receive, send)
        elif scope["method"] == "POST":
            await self.relay.serve(operation, scope, receive, send)
        else:
            message = f"{scope['method']} is not allowed on {scope['path']}."
            error = GatewayError(405, message, ErrorReason.INVALID_REQUEST)
            await send_error(send, error, [(b"allow", b"POST")])
