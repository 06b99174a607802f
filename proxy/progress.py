"""A bar on a terminal that says how far a long command is."""

from __future__ import annotations

from typing import TextIO

from proxy.clock import monotonic

_WIDTH = 30
_EVERY = 0.1  # seconds between two pictures of it


class Progress:
    """Counts rows up to ``total``, and shows it where ``stream`` is a terminal; else nothing."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total = total
        self._stream = stream
        self._shows = stream.isatty()
        self._begun = self._shown = monotonic()
        self._done = 0

    def add(self, rows: int) -> None:
        """So many more are done."""
        self._done += rows
        if self._shows and monotonic() - self._shown >= _EVERY:
            self._show()

    def close(self) -> None:
        """Leave the last picture standing."""
        if self._shows:
            self._show()
            self._stream.write("\n")

    def _show(self) -> None:
        self._shown = monotonic()
        text = bar(self._done, self._total, self._shown - self._begun)
        self._stream.write(f"\r{text}\x1b[K")
        self._stream.flush()


def bar(done: int, total: int, seconds: float) -> str:
    """How far it is after so many seconds, and how long it will still take at this pace.

    More may come to be done than there was at first: then that is the total.
    """
    total = max(done, total)
    share = done / total if total else 1.0
    filled = int(_WIDTH * share)
    text = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {share:4.0%}  {done:,} of {total:,} rows"
    return text if share in (0, 1) else f"{text}, {seconds * (1 - share) / share:.0f} s left"
