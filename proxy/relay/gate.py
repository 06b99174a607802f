"""Where the calls of a client with limits come in: counted, here and for all who share the state,
or turned away with the reason and when there will be room.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, MutableMapping, Sequence
from functools import lru_cache
from typing import Any

from proxy.clients import UNLIMITED, Client
from proxy.clock import monotonic, now_ms
from proxy.duration import written
from proxy.errors import ErrorReason, GatewayError
from proxy.metering.attempt import Asked
from proxy.metering.meter import Meter
from proxy.relay.outbound import Send
from proxy.routing.limits import SOON, Sliding
from proxy.routing.quotas import Quota, Quotas, Shortage, Use
from proxy.sharing.types import Settlement, State, WindowClaim
from proxy.types import Headers

_SPOKEN = {
    "rpm": "requests per minute",
    "rph": "requests per hour",
    "rpd": "requests per day",
    "tpm": "tokens per minute",
    "tph": "tokens per hour",
    "tpd": "tokens per day",
    "parallel": "calls at a time",
}
_FIELDS = {
    kind: [f"x-ratelimit-{figure}-{kind}".encode() for figure in ("limit", "remaining", "reset")]
    for kind in ("requests", "tokens")
}


class Gate:
    """Lets calls in. ``state`` is what several gateways share, None for one that is alone."""

    def __init__(self, state: State | None) -> None:
        self.quotas = Quotas()
        self._state = state

    def entry(self, client: Client) -> Entry | None:
        """For one call of a client; None where it has no limits."""
        if client.limits == UNLIMITED:
            return None
        return Entry(self.quotas.of(client.id, client.limits), self._state)

    def away(self, nodes: int) -> None:
        """The shared state is away: keep to this gateway's part of every limit."""
        self.quotas.share(1 / nodes)

    def back(self) -> None:
        self.quotas.share(1.0)

    def known(self) -> list[Settlement]:
        """What is counted, for a state that begins with nothing."""
        at, now = now_ms(), monotonic()
        return [
            Settlement(
                window.name, window.limit.seconds, None, count, at - round((now - when) * 1000)
            )
            for window in self.quotas.windows()
            for when, count in window.uses(now)
        ]


class Entry:
    """One call of a client with limits, from when it knocks until its last row is written."""

    def __init__(self, quota: Quota, state: State | None) -> None:
        self._quota = quota
        self._state = state
        self._use: Use | None = None
        self._held: str | None = None
        self._claimed: list[Sliding] = []
        self._at = 0

    def body(self, most: int) -> int:
        """The bytes that its body may have, where anybody's may have ``most``."""
        limit = self._quota.limits.max_body
        return most if limit is None else min(most, limit)

    async def admit(self, answers: int, prompt: int, asked: Asked) -> None:
        """Count it; ``answers`` is how many are made, ``prompt`` the tokens that its prompt is
        expected to have.

        GatewayError 400 where it asks for more output than it may, 429 over any other limit.
        """
        quota, answer = self._quota, asked.max_tokens
        if not answers:
            answer = 0
        elif answer is not None:
            answer *= answers
        most = quota.limits.max_output_tokens
        if most is not None and answer is not None and answer > most:
            raise GatewayError(
                400,
                f"This key may ask for {most} output tokens at most, not for {answer}.",
                ErrorReason.INVALID_REQUEST,
                code="max_output_tokens_exceeded",
                param="max_tokens",
            )
        tokens, now = quota.expects(prompt, answer), monotonic()
        use = quota.take(now, tokens)
        if isinstance(use, Shortage):
            raise _full(use)
        self._use = use
        if self._state is not None and self._state.available:
            if quota.limits.parallel is not None:
                await self._hold(self._state, use, quota.limits.parallel)
            if quota.windows:
                await self._claim(self._state, use)

    async def _hold(self, state: State, use: Use, parallel: int) -> None:
        token = self._held = state.token()  # who leaves while it is asked for gives it back, too
        if not await state.hold(self._quota.slots.name, parallel, token):
            use.undo()
            raise _full(Shortage("parallel", parallel, parallel, 1, SOON))

    async def _claim(self, state: State, use: Use) -> None:
        windows = list(self._quota.windows.values())
        claims = [
            WindowClaim(
                window.name, window.limit.amount, window.limit.seconds, _cost(window, use.tokens)
            )
            for window in windows
        ]

        def counted(at: int, used: Sequence[int]) -> None:
            self._claimed, self._at = windows, at
            self._quota.hear(windows, used)

        denial = await state.claim([], claims, counted=counted)
        if denial is None:
            return
        use.undo()
        raise _full(self._quota.denied(denial.name, denial.wait, monotonic(), use.tokens))

    def end(self, meter: Meter) -> None:
        """It is over, however it ended. Only the first time counts."""
        use, held, self._held = self._use, self._held, None
        if self._state is not None and held is not None:
            self._state.free(self._quota.slots.name, held)
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

    def telling(self, send: Send) -> Send:
        """``send``, with how things stand in the head of the answer."""

        def tell(message: MutableMapping[str, Any]) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers()]
            return send(message)

        return tell

    def _headers(self) -> Headers:
        """As OpenAI tells them: https://platform.openai.com/docs/guides/rate-limits."""
        fields: Headers = []
        for each in self._quota.standings(monotonic()):
            limit, remaining, reset = _FIELDS[each.kind]
            seconds = math.ceil(each.reset) if each.reset > 1 else each.reset
            fields += (
                (limit, b"%d" % each.amount),
                (remaining, b"%d" % each.remaining),
                (reset, _reset(seconds)),
            )
        return fields


@lru_cache(maxsize=1024)
def _reset(seconds: float) -> bytes:
    return written(seconds).encode()


def _cost(window: Sliding, tokens: int) -> int:
    return tokens if window.limit.kind == "tokens" else 1


def _full(shortage: Shortage) -> GatewayError:
    seconds = max(1, math.ceil(shortage.wait))
    needs = f", this call needs about {shortage.needs}" if shortage.limit[0] == "t" else ""
    room = "as soon as one of them ends" if shortage.limit == "parallel" else f"in {seconds} s"
    return GatewayError(
        429,
        f"Rate limit reached for this key: {_SPOKEN[shortage.limit]} ({shortage.limit}):"
        f" limit {shortage.amount}, used {shortage.used}{needs}. There is room {room}.",
        ErrorReason.RATE_LIMIT,
        code="rate_limit_exceeded",
        retry_after=seconds,
    )
