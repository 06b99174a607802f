"""Runs the gateway: one socket, one process, and what it says once it is up.

serve     by itself
run       as one worker, with a socket that somebody else has opened
"""

from __future__ import annotations

import asyncio
import errno
import gc
import math
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

import uvicorn
from pydantic import SecretStr

from proxy.app import create_app
from proxy.banner import banner
from proxy.config import master_key
from proxy.errors import ConfigError
from proxy.log import setup, unchanged
from proxy.redact import Redactor
from proxy.schema import AuthSettings, Settings
from proxy.sharing.member import Member
from proxy.wire import OneWriteProtocol

Providers = Sequence[tuple[str, int]]
"""Their names, with the number of keys of each."""

_KEEP_ALIVE = 75  # seconds; longer than the pools of common clients, so that they close first
_BACKLOG = 2048
_GARBAGE = 50_000  # objects until a collection; the default of 700 runs several times a request

_WORDS = {
    errno.EADDRINUSE: "is in use; stop what listens there, or choose another --port",
    errno.EACCES: "may not be opened by this user; choose a --port above 1023",
    errno.EADDRNOTAVAIL: "is no address of this machine",
}


def serve(
    settings: Settings, announce: Callable[[str], None], reread: Callable[[], Settings]
) -> int:
    """Serve until told to stop, and return the exit status.

    ``announce`` gets the banner when the gateway is ready; ``reread`` the settings anew, when a
    SIGHUP or ``POST /admin/reload`` asks for it. Raises ConfigError if the address
    cannot be opened or the master key cannot be kept.
    """
    key, made = master_key(settings)
    listener = bind(settings.server.host, settings.server.port)
    locked, place = with_key(settings, key), address(listener)

    def ready(providers: Providers, example: str | None) -> None:
        announce(banner(locked, place, providers, example=example, key_made=made))

    return run(settings, key, listener, reread, ready)


def run(
    settings: Settings,
    key: str | None,
    listener: socket.socket,
    reread: Callable[[], Settings],
    ready: Callable[[Providers, str | None], None],
    member: Member | None = None,
) -> int:
    """Serve on a socket; ``key`` opens the gateway. ``ready`` is told of the providers and of a
    model to try, ``member`` is what this worker shares with others."""
    auth = settings.auth
    settings = with_key(settings, key)
    redact = Redactor(settings.secrets())
    setup(settings.server.log_level, settings.server.log_format, redact)
    app = create_app(
        settings, reread=lambda: _like(auth, reread(), key), redact=redact, member=member
    )
    config = uvicorn.Config(
        app,
        loop="asyncio" if sys.platform == "win32" else "uvloop",
        http=OneWriteProtocol,
        ws="none",
        lifespan="on",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(settings.server.drain),
    )

    def up() -> None:
        gc.collect()
        gc.freeze()  # what lives as long as the process need not be looked at again
        gc.set_threshold(_GARBAGE)
        ready(app.state.providers, app.state.example_model)

    def stopping() -> None:
        app.state.ready = False

    stop_well()
    server = _Server(config, up, stopping)
    try:
        server.run(sockets=[listener])
    except SystemExit as stopped:  # uvicorn's own way out of a start that failed
        return 0 if not stopped.code else 1
    return 0 if server.started else 1


def stop_well() -> None:
    """A stop that was asked for is a success; uvicorn raises the signal once more when it is
    done."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stopped)


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it is ready and when it is told to stop."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], stopping: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._stopping = stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            if sys.platform != "win32":
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
            self._ready()

    def _reload(self) -> None:
        try:
            self.config.app.state.reload()  # type: ignore[union-attr]
        except ConfigError as error:
            unchanged(error)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stopping()
        super().handle_exit(sig, frame)


def with_key(settings: Settings, key: str | None) -> Settings:
    """The settings with the master key, wherever it was kept."""
    if key is None:
        return settings
    auth = settings.auth.model_copy(update={"master_key": SecretStr(key)})
    return settings.model_copy(update={"auth": auth})


def _like(auth: AuthSettings, again: Settings, key: str | None) -> Settings:
    """What was read again, with the key that is in use, unless it says something new of that."""
    return with_key(again, key) if again.auth == auth else again


def _stopped(*_: object) -> NoReturn:
    raise SystemExit(0)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port in use is known before anything else is started."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError:
        raise ConfigError([f"server.host: {host} is no address of this machine"]) from None
    try:
        if sys.platform != "win32":  # there it would let two processes share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        words = _WORDS.get(error.errno or 0, f"cannot be opened: {error.strerror}")
        raise ConfigError([f"server: port {port} on {host} {words}"]) from None
    listener.setblocking(False)
    return listener


def address(listener: socket.socket) -> str:
    """The URL under which this machine reaches the gateway."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
