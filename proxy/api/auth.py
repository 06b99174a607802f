"""The door: every request passes here first, gets an id, and must show a key where one is set.

Pure ASGI, around everything; a list of two paths is open. Without a master key the gateway serves
whoever is on this machine, and nobody whom a browser sends: a ``Host`` that is not loopback (DNS
rebinding) or a foreign ``Origin`` is turned away.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from proxy.clients import PREFIX, Client, Keyring, Refusal
from proxy.clock import monotonic, new_id, now_ms
from proxy.errors import ErrorReason, GatewayError
from proxy.loopback import is_loopback
from proxy.types import Caller

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset(("/healthz", "/readyz"))


class Door:
    """Lets callers in.

    Answers get ``x-request-id`` here, but for POSTs to ``named_elsewhere``, which name themselves.
    ``turned_away`` is called for each request that was not let in. ``state`` is the app's. Where
    there is a master key, a client's own key from the ``keyring`` opens ``/v1``.
    """

    def __init__(
        self,
        app: App,
        *,
        master_key: str | None,
        keyring: Keyring,
        named_elsewhere: Collection[str],
        turned_away: Callable[[], None],
        state: Any = None,
    ) -> None:
        self.state = state
        self._app = app
        self._named_elsewhere = frozenset(named_elsewhere)
        self._turned_away = turned_away
        self._digest = sha256(master_key.encode()).digest() if master_key else None
        self._keyring = keyring
        self._known: dict[tuple[bytes | None, bytes | None], bool] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["started"] = monotonic()
        request_id = scope["request_id"] = new_id()
        try:
            scope["caller"] = self._admit(scope)
        except GatewayError as error:
            self._turned_away()
            await _refuse(send, error, request_id)
            return
        if scope["path"] not in self._named_elsewhere or scope["method"] != "POST":
            send = _named(send, request_id)
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> Caller:
        if scope["path"] in OPEN:
            return _NOBODY
        if self._digest is None:
            self._check_local(scope["headers"])
            return self._known_client(scope)
        key = _key(scope["headers"])
        if key is None:
            raise _unauthorized("No API key was sent. Send 'Authorization: Bearer KEY'.")
        if hmac.compare_digest(sha256(key).digest(), self._digest):
            return _MASTER
        caller = self._client(key)
        if caller is None:
            raise _unauthorized(_REFUSALS["unknown"])
        if not scope["path"].startswith("/v1/"):
            raise GatewayError(
                403,
                "This path needs the master key.",
                ErrorReason.FORBIDDEN,
                code="master_key_needed",
            )
        return caller

    def _known_client(self, scope: Scope) -> Caller:
        """Who shows a key that is not asked for: its calls are its own, its limits hold."""
        if not scope["path"].startswith("/v1/"):
            return _NOBODY
        try:
            key = _key(scope["headers"])
        except GatewayError:  # two of them: neither is asked for
            return _NOBODY
        if key is None or not key.startswith(PREFIX):  # whatever a program has in its settings
            return _NOBODY
        return self._client(key) or _NOBODY

    def _client(self, key: bytes) -> Caller | None:
        """Whose key it is, None where nobody's. GatewayError where it opens nothing any more."""
        client = self._keyring.find(key, now_ms())
        if isinstance(client, Client):
            return Caller(client.id, client)
        if client == "unknown":
            return None
        raise _unauthorized(_REFUSALS[client])

    def _check_local(self, headers: list[tuple[bytes, bytes]]) -> None:
        host = origin = None
        for name, value in headers:
            if name == b"host":
                host = value
            elif name == b"origin":
                origin = value
        place = (host, origin)
        local = self._known.get(place)
        if local is None:
            local = _is_local(host, origin)
            if len(self._known) < 256:  # the same few come again and again
                self._known[place] = local
        if not local:
            raise GatewayError(
                403,
                "This gateway has no key and serves only programs on its own machine.",
                ErrorReason.FORBIDDEN,
                code="foreign_origin",
            )


_REFUSALS: dict[Refusal, str] = {
    "unknown": "Incorrect API key.",
    "revoked": "This API key was revoked.",
    "expired": "This API key has expired.",
}
_NOBODY = Caller()
_MASTER = Caller("master")


def _is_local(host: bytes | None, origin: bytes | None) -> bool:
    if host is not None and not is_loopback(_hostname(b"//" + host)):
        return False
    return origin is None or is_loopback(_hostname(origin))


def _hostname(address: bytes) -> str:
    """The host that an address names; empty where it names none."""
    try:
        return urlsplit(address.decode("ascii")).hostname or ""
    except ValueError:
        return ""


def _key(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """The one credential of a request; two different ones are refused."""
    found: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, value = value.partition(b" ")
            if scheme.lower() != b"bearer":
                continue
        elif name not in (b"x-api-key", b"api-key"):
            continue
        value = value.strip()
        if found is not None and value != found:
            raise GatewayError(
                400, "Two different API keys were sent.", ErrorReason.INVALID_REQUEST
            )
        found = value
    return found


def _unauthorized(message: str) -> GatewayError:
    return GatewayError(401, message, ErrorReason.AUTHENTICATION, code="invalid_api_key")


def _named(send: Send, request_id: str) -> Send:
    async def named(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
        await send(message)

    return named


async def _refuse(send: Send, error: GatewayError, request_id: str) -> None:
    body = error.body()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
    ]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
