"""One call under the limits of one client, user or tag: counted, here and for all who share the
state, or turned away with the reason and when there will be room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from proxy.clients import Holder
from proxy.clock import monotonic
from proxy.errors import ErrorReason, GatewayError
from proxy.metering.meter import Meter
from proxy.routing.limits import SOON, Sliding
from proxy.routing.quotas import Quota, Shortage, Use
from proxy.sharing.types import State, WindowClaim

_SPOKEN = {
    "rpm": "requests per minute",
    "rph": "requests per hour",
    "rpd": "requests per day",
    "tpm": "tokens per minute",
    "tph": "tokens per hour",
    "tpd": "tokens per day",
    "parallel": "calls at a time",
}


class Ticket:
    """From when the call knocks until its last row is written."""

    def __init__(self, holder: Holder, quota: Quota, state: State | None) -> None:
        self.quota = quota
        self._holder = holder
        self._state = state
        self._use: Use | None = None
        self._held: str | None = None
        self._claimed: list[Sliding] = []
        self._at = 0

    def take(self, prompt: int, answer: int | None) -> None:
        """Count it here; ``prompt`` is the tokens that its prompt is expected to have, ``answer``
        those that it asks for at most.

        GatewayError 400 where it asks for more output than it may, 429 over any other limit.
        """
        quota = self.quota
        most = quota.limits.max_output_tokens
        if most is not None and answer is not None and answer > most:
            raise GatewayError(
                400,
                f"{self._who} may ask for {most} output tokens at most, not for {answer}.",
                ErrorReason.INVALID_REQUEST,
                code="max_output_tokens_exceeded",
                param="max_tokens",
            )
        tokens, now = quota.expects(prompt, answer), monotonic()
        use = quota.take(now, tokens)
        if isinstance(use, Shortage):
            raise self._full(use)
        self._use = use

    async def claim(self) -> None:
        """Count it for all who share the state. GatewayError 429 where others have used it up."""
        use, quota = self._use, self.quota
        if use is not None and self._state is not None and self._state.available:
            if quota.limits.parallel is not None:
                await self._hold(self._state, use, quota.limits.parallel)
            if quota.windows:
                await self._claim(self._state, use)

    async def _hold(self, state: State, use: Use, parallel: int) -> None:
        token = self._held = state.token()  # who leaves while it is asked for gives it back, too
        if not await state.hold(self.quota.slots.name, parallel, token):
            use.undo()
            raise self._full(Shortage("parallel", parallel, parallel, 1, SOON))

    async def _claim(self, state: State, use: Use) -> None:
        windows = list(self.quota.windows.values())
        claims = [
            WindowClaim(
                window.name, window.limit.amount, window.limit.seconds, _cost(window, use.tokens)
            )
            for window in windows
        ]

        def counted(at: int, used: Sequence[int]) -> None:
            self._claimed, self._at = windows, at
            self.quota.hear(windows, used)

        denial = await state.claim([], claims, counted=counted)
        if denial is None:
            return
        use.undo()
        raise self._full(self.quota.denied(denial.name, denial.wait, monotonic(), use.tokens))

    def end(self, meter: Meter) -> None:
        """It is over, however it ended. Only the first time counts."""
        use, held, self._held = self._use, self._held, None
        if self._state is not None and held is not None:
            self._state.free(self.quota.slots.name, held)
        if use is None or use.over:
            return
        used = meter.tokens
        if meter.sent:
            fault = None if meter.last is None else meter.last.fault
            if used is None and fault is not None and not fault.executed:
                used = 0
            use.end(used)
        else:
            used = 0
            use.undo()
        if self._state is None:
            return
        for window in self._claimed:
            cost = _cost(window, use.tokens)
            if window.limit.kind == "tokens":
                left = 0 if used is None else used - cost
            else:
                left = 0 if meter.sent else -cost
            self._state.settle(window.name, window.limit.seconds, None, left, self._at)

    @property
    def _who(self) -> str:
        scope, name = self._holder
        return "This key" if scope == "client" else f"The {scope} '{name}'"

    def _full(self, shortage: Shortage) -> GatewayError:
        who = self._who[0].lower() + self._who[1:]
        seconds = max(1, math.ceil(shortage.wait))
        needs = f", this call needs about {shortage.needs}" if shortage.limit[0] == "t" else ""
        room = "as soon as one of them ends" if shortage.limit == "parallel" else f"in {seconds} s"
        return GatewayError(
            429,
            f"Rate limit reached for {who}: {_SPOKEN[shortage.limit]} ({shortage.limit}):"
            f" limit {shortage.amount}, used {shortage.used}{needs}. There is room {room}.",
            ErrorReason.RATE_LIMIT,
            code="rate_limit_exceeded",
            retry_after=seconds,
        )


def _cost(window: Sliding, tokens: int) -> int:
    return tokens if window.limit.kind == "tokens" else 1
