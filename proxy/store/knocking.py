"""After a try to connect that failed there is none for a second.

While the server is away, every question and every batch would knock at its door otherwise.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Dialect

from proxy.clock import monotonic

_PAUSE = 1.0


class Knocking:
    """Makes the connections of one process."""

    def __init__(self) -> None:
        self._until = 0.0
        self._failure = ""

    def connect(self, dialect: Dialect, _record: Any, args: Any, options: Any) -> Any:
        """A new connection, for the event ``do_connect``. Raises what the driver does, or
        ConnectionError with the same words if it did so less than a second ago."""
        if monotonic() < self._until:
            raise ConnectionError(self._failure)
        try:
            return dialect.connect(*args, **options)
        except Exception as error:
            self._until = monotonic() + _PAUSE
            self._failure = str(error) or type(error).__name__
            raise
