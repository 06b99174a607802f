"""How many retries the upstreams are asked to bear: a share of the requests, not a multiple.

Without a budget an outage multiplies the load by the tries of each request, and keeps a struggling
upstream down. The rule is Finagle's, https://finagle.github.io/blog/2016/02/08/retry-budgets/, and
Envoy's ``retry_budget``: a ratio, with a minimum for the hours when hardly anybody asks.
"""

from __future__ import annotations

from proxy.routing.window import Window


class RetryBudget:
    """Grants upstream calls beyond the first of each request.

    Whenever one is granted, those granted in the last ``window`` seconds, this one included, are
    at most ``minimum`` or ``ratio`` times the requests of the same seconds, whichever is more.
    ``minimum`` and ``ratio`` 0: never.
    """

    __slots__ = ("_minimum", "_ratio", "_requests", "_retries")

    def __init__(self, ratio: float = 0.2, minimum: int = 10, window: float = 10.0) -> None:
        self._ratio = ratio
        self._minimum = minimum
        self._requests = Window(window)
        self._retries = Window(window)

    def configure(self, ratio: float, minimum: int) -> None:
        """Grant by these from now on; what was granted counts."""
        self._ratio, self._minimum = ratio, minimum

    def request(self, now: float) -> None:
        """A client asked."""
        self._requests.add(now)

    def spend(self, now: float) -> bool:
        """Ask for one more upstream call; False: the budget is used up."""
        retries = self._retries.total(now) + 1
        if retries > self._minimum and retries > self._ratio * self._requests.total(now):
            return False
        self._retries.add(now)
        return True
