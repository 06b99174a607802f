"""A budget as one process holds it: what it has leased, what of that is reserved, what is used.

A process leases part of what is left, and spends that without asking anybody. Before a call its
estimate is reserved; when its row is made, the estimate is let go and the cost is used.
"""

from __future__ import annotations

from typing import NamedTuple

from proxy.budget import Budget
from proxy.periods import HOUR_MS, Window

SLICES = 100
"""The part of a budget that a process leases beyond what it needs at once is at most one of these;
what crashes and clocks that jump can let through beyond the limit is that for each process."""
_NEAR = 8  # nearer to the limit a process takes at most one of so many parts of what is left


class Lease:
    """``amount`` nano-dollars that nobody else may spend, until ``until`` (monotonic seconds).

    ``start`` is the window that it is for, 0 for a rolling one. ``busy``: something was reserved
    since that was looked at last.
    """

    __slots__ = ("amount", "busy", "id", "reserved", "start", "until", "used")

    def __init__(self, id: str, start: int) -> None:
        self.id = id
        self.start = start
        self.until = float("-inf")
        self.amount = self.reserved = self.used = 0
        self.busy = True

    @property
    def free(self) -> int:
        """What may yet be reserved; below 0 where calls cost more than was estimated."""
        return self.amount - self.reserved - self.used


class Reservation(NamedTuple):
    """An estimate that is held for a call."""

    lease: Lease
    amount: int

    def release(self) -> None:
        """The call is over. Once only."""
        self.lease.reserved -= self.amount

    def use(self, cost: int) -> None:
        """An attempt of the call has cost so much."""
        self.lease.used += cost


class Account:
    """``left`` is what the ledger last had beyond all leases, ``spent`` what calls had cost that
    this process's lease has not paid for; ``trusted`` is until when that is believed (monotonic
    seconds). ``wanted`` is what calls wait for just now, ``trouble`` why the ledger could not be
    asked."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.name = budget.account
        self.period = budget.span
        self.lease: Lease | None = None
        self.wanted = 0
        self.left = 0
        self.spent = 0
        self.trusted = float("-inf")
        self.trouble: str | None = None
        self._window = Window(0, 0)
        self._heard_of = 0  # the window that the ledger spoke of

    def adopt(self, budget: Budget) -> None:
        """Go by other terms; those that make it another account are the same."""
        if more := budget.limit_nano - self.budget.limit_nano:
            self.left += more
            self.trusted = float("-inf")
        self.budget = budget

    def hear(self, left: int, spent: int, start: int, until: float) -> None:
        """What the ledger says of the window, or of the rolling one, to be believed for a while."""
        self.left, self.spent, self.trusted = left, spent, until
        self._heard_of = start

    def window(self, at: int) -> Window:
        """What counts at an instant, UTC milliseconds."""
        start, end = self._window
        # Of a rolling window the start lies far back: only its last hour is the present one.
        if not (max(start, end - HOUR_MS) if self.period.hours else start) <= at < end:
            self._window = self.period.window(at)
        return self._window

    def starts(self, at: int) -> int:
        """What a lease of that instant is for."""
        return 0 if self.period.hours is not None else self.window(at).start

    def current(self, at: int, now: float) -> Lease | None:
        """The lease, if it is still one at the instant ``at``, which is ``now`` on the monotonic
        clock."""
        lease = self.lease
        if lease is not None and (lease.until <= now or lease.start != self.starts(at)):
            lease = self.lease = None
        return lease

    def reserve(self, amount: int, at: int, now: float) -> Reservation | None:
        """Hold so many nano-dollars for a call; None if that much is not leased."""
        lease = self.current(at, now)
        if lease is None or lease.free < amount:
            return None
        lease.reserved += amount
        lease.busy = True
        return Reservation(lease, amount)

    def short(self, amount: int, at: int, now: float) -> bool:
        """Whether the ledger is known to have too little for such a call."""
        if now >= self.trusted or self._heard_of != self.starts(at):
            return False
        lease = self.current(at, now)
        return (0 if lease is None else max(lease.free, 0)) + self.left < amount

    def grant(self, left: int, amount: int) -> int:
        """What to lease of what is ``left``, for one call that needs ``amount`` and all that wait.

        Nothing if that one cannot be served. What goes beyond need becomes less towards the limit,
        and is nothing once it would not serve another call.
        """
        free = 0 if self.lease is None else self.lease.free
        if left < amount - max(free, 0):
            return 0
        spare = self._spare(left)
        needed = max(self.wanted, amount) - max(free, 0) + (spare if spare >= amount else 0)
        return min(left, needed) + max(-free, 0)  # and what calls cost beyond what was leased

    @property
    def unspent(self) -> int:
        """What calls have not cost yet, as far as it is known here; some of it may be reserved."""
        used = 0 if self.lease is None else self.lease.used
        return self.budget.limit_nano - self.spent - used

    @property
    def hoards(self) -> bool:
        """Whether calls have let go of so much that others may lack it."""
        return self.lease is not None and self.lease.free > max(self.left, 0) // _NEAR

    def trim(self, idle: bool) -> None:
        """Keep of the lease what is used and reserved, and some to go on with unless it is idle."""
        lease = self.lease
        if lease is not None and (gone := lease.free - (0 if idle else self._spare(self.left))) > 0:
            lease.amount -= gone
            self.left += gone

    def _spare(self, left: int) -> int:
        """What may be held beyond need."""
        return min(self.budget.limit_nano // SLICES, max(left, 0) // _NEAR)
