"""``python -m proxy.worker``: one of several processes that serve. ``supervisor`` starts it.

The arguments are the numbers of two sockets that it has inherited: the one to listen on, and the
one to its supervisor, on which the frame comes that tells all else. So no secret stands where
others may read it.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from typing import NamedTuple

from proxy.schema import Settings
from proxy.serve import run
from proxy.sharing.frames import HEAD, framed
from proxy.sharing.member import Member


class Orders(NamedTuple):
    """What a worker is told first. ``folder`` is where the command was typed."""

    folder: str
    settings: Settings
    key: str | None
    reread: Callable[[], Settings]

    def frame(self) -> bytes:
        return framed(pickle.dumps(tuple(self)))


def main() -> int:
    """Serve until told to stop, or until the supervisor has ended."""
    listener, shared = [socket.socket(fileno=int(word)) for word in sys.argv[1:]]
    orders = _orders(shared)
    if orders is None:
        return 0
    os.chdir(orders.folder)
    settings = orders.settings
    member = Member(shared, settings.server.workers, _stop)
    return run(settings, orders.key, listener, orders.reread, member.ready, member)


def _orders(shared: socket.socket) -> Orders | None:
    """The first frame, and not a byte more; None: there is no supervisor any more."""
    size = int.from_bytes(_read(shared, HEAD))
    payload = _read(shared, size)
    return Orders(*pickle.loads(payload)) if payload and len(payload) == size else None


def _read(shared: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := shared.recv(size - len(data))):
        data += part
    return data


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
