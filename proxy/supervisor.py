"""Several processes that serve on one socket, and the one that keeps them going.

The supervisor serves nobody. It opens the socket and makes the master key once for all, starts the
workers, replaces those that die, hands signals on, and is the hub of what they share. When it ends,
however it does, so do they. The first worker starts alone: it brings the database to its schema.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from proxy.app import FIXED
from proxy.banner import banner
from proxy.clock import monotonic
from proxy.config import master_key
from proxy.errors import ConfigError
from proxy.log import setup, unchanged
from proxy.redact import Redactor
from proxy.schema import Settings
from proxy.serve import address, bind, stop_well, with_key
from proxy.sharing.frames import Ready, Reload
from proxy.sharing.hub import Hub
from proxy.worker import Orders

BACKOFF = (0.0, 0.5, 1.0, 2.0, 5.0)
"""Seconds until a worker that died is replaced, by its deaths in a row."""

STEADY_SECONDS = 10.0
"""Who has served for so long did not die of how it was started."""

_TURN = 60.0
_PACKAGES = Path(__file__).parents[1]
_WELL = (0, -signal.SIGTERM, -signal.SIGINT)

_log = logging.getLogger("tollkeeper")


def supervise(
    settings: Settings, announce: Callable[[str], None], reread: Callable[[], Settings]
) -> int:
    """Serve with several workers until told to stop, and return the exit status; as ``serve``.

    ``reread`` goes to the workers, so it can be pickled.
    """
    if sys.platform == "win32":
        raise ConfigError(["server.workers: there is one worker on Windows; accepted: 1"])
    key, made = master_key(settings)
    locked = with_key(settings, key)
    setup(settings.server.log_level, settings.server.log_format, Redactor(locked.secrets()))
    stop_well()

    def ready(first: Ready) -> None:
        announce(banner(locked, place, first.providers, example=first.example, key_made=made))

    try:
        with bind(settings.server.host, settings.server.port) as listener:
            place = address(listener)
            return _Supervisor(settings, key, listener, reread, ready).run()
    except SystemExit:
        return 0


class _Supervisor:
    def __init__(
        self,
        settings: Settings,
        key: str | None,
        listener: socket.socket,
        reread: Callable[[], Settings],
        ready: Callable[[Ready], None],
    ) -> None:
        self._settings = settings
        self._key = key
        self._listener = listener
        self._reread = reread
        self._announce = ready
        self._hub = Hub(ready=self._ready, reload=self._read_again)
        self._workers = [_Worker(number + 1) for number in range(settings.server.workers)]
        self._signals: list[int] = []
        self._announced = False
        self._stopping = False

    def run(self) -> int:
        wake, waker = socket.socketpair()
        for end in (wake, waker):
            end.setblocking(False)
        self._hub.watch(wake)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda number, _: self._signals.append(number))
        try:
            return self._run()
        finally:
            signal.set_wakeup_fd(-1)
            for worker in self._workers:
                if worker.process is not None:
                    worker.process.kill()
                    worker.process.wait()
            self._hub.close()
            wake.close()
            waker.close()

    def _run(self) -> int:
        while True:
            now = monotonic()
            for worker in self._missing():
                if worker.due <= now:
                    self._start(worker)
            self._hub.turn(min([_TURN, *[worker.due - now for worker in self._missing()]]))
            while self._signals:
                self._heed(self._signals.pop(0))
            for worker in self._workers:
                if worker.process is not None and worker.process.poll() is not None:
                    self._bury(worker)
            if self._stopping and not any(worker.process for worker in self._workers):
                return 0 if all(each.status in _WELL for each in self._workers) else 1
            first = self._workers[0]
            if first.deaths and not first.served:
                return 1

    def _missing(self) -> list[_Worker]:
        """Those to be started, now or later."""
        places = self._workers if self._workers[0].served else self._workers[:1]
        return [] if self._stopping else [each for each in places if each.process is None]

    def _start(self, worker: _Worker) -> None:
        orders = Orders(str(Path.cwd()), self._settings, self._key, self._reread)
        with self._hub.join(worker.number) as theirs:
            sockets = (self._listener.fileno(), theirs.fileno())
            # In a session of its own, so that what a terminal sends comes through here alone.
            worker.process = subprocess.Popen(
                [sys.executable, "-m", "proxy.worker", *map(str, sockets)],
                stdin=subprocess.DEVNULL,
                pass_fds=sockets,
                start_new_session=True,
                cwd=_PACKAGES,  # else a folder named "proxy" where it was started would be run
            )
        worker.since = monotonic()
        worker.ready = False
        self._hub.send(worker.number, orders.frame())

    def _bury(self, worker: _Worker) -> None:
        """Take note of a worker that has ended, and of when to replace it."""
        assert worker.process is not None
        self._hub.leave(worker.number)
        now, status = monotonic(), worker.process.returncode
        pid, worker.process, worker.status = worker.process.pid, None, status
        if self._stopping:
            return
        if worker.ready and now - worker.since > STEADY_SECONDS:
            worker.deaths = 0
        pause = BACKOFF[min(worker.deaths, len(BACKOFF) - 1)]
        worker.deaths += 1
        worker.due = now + pause
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended: {status}"
        _log.error("worker %d (process %d) %s", worker.number, pid, how)

    def _ready(self, number: int, told: Ready) -> None:
        worker = self._workers[number - 1]
        worker.ready = worker.served = True
        if not self._announced and all(each.ready for each in self._workers):
            self._announced = True
            self._announce(told)

    def _heed(self, number: int) -> None:
        """Do what a signal says; a second stop is one at once, as ``uvicorn`` means SIGINT."""
        if number == signal.SIGHUP:
            try:
                self._read_again()
            except ConfigError as error:
                unchanged(error)
            else:
                self._hub.tell_all(Reload())
        elif number in (signal.SIGINT, signal.SIGTERM):
            order = signal.SIGINT if self._stopping else signal.SIGTERM
            self._stopping = True
            self._listener.close()  # the workers hold theirs as long as they accept
            for worker in self._workers:
                if worker.process is not None:
                    worker.process.send_signal(order)

    def _read_again(self) -> None:
        """A worker that starts from now on gets the new settings, as far as the others have."""
        kept = {name: getattr(self._settings, name) for name in FIXED}
        self._settings = self._reread().model_copy(update=kept)


class _Worker:
    """A place in the row. ``served``: it has been ready once; ``due``: when it is to be started."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.status = 0
        self.since = 0.0
        self.due = 0.0
        self.deaths = 0
        self.ready = False
        self.served = False
