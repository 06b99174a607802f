"""A count over the last seconds: what happened before them is forgotten, at no cost per event."""

from __future__ import annotations

BUCKETS = 10


class Window:
    """Counts events of the last ``seconds``, in ten buckets and with a running sum.

    Buckets begin at multiples of a tenth of the window, so two windows of the same length forget
    together. The bucket that fills counts as a whole one: a count spans nine tenths of the window
    at least, and never more than all of it.
    """

    __slots__ = ("_at", "_buckets", "_epoch", "_span", "_sum")

    def __init__(self, seconds: float) -> None:
        self._span = seconds / BUCKETS
        self._buckets = [0] * BUCKETS
        self._epoch = float("-inf")  # the number of the bucket that fills, counted from time 0
        self._at = 0
        self._sum = 0

    def add(self, now: float) -> None:
        """One more."""
        epoch = now // self._span
        if epoch > self._epoch:
            self._advance(epoch)
        self._buckets[self._at] += 1
        self._sum += 1

    def total(self, now: float) -> int:
        """How many there were in the window that ends now."""
        epoch = now // self._span
        if epoch > self._epoch:
            self._advance(epoch)
        return self._sum

    def clear(self) -> None:
        """Forget all."""
        self._buckets = [0] * BUCKETS
        self._sum = 0

    def _advance(self, epoch: float) -> None:
        """Empty the buckets that were entered since the last look."""
        passed = epoch - self._epoch
        self._epoch = epoch
        if passed >= BUCKETS:
            self.clear()
            return
        for _ in range(int(passed)):
            self._at = (self._at + 1) % BUCKETS
            self._sum -= self._buckets[self._at]
            self._buckets[self._at] = 0
