"""Where the calls of those with limits come in: clients, users and tags."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Iterable, Iterator, MutableMapping
from functools import lru_cache
from typing import Any

from proxy.clients import UNLIMITED, Client, ClientLimits, Holder
from proxy.clock import monotonic, now_ms
from proxy.duration import written
from proxy.metering.attempt import Asked, Attribution
from proxy.metering.meter import Meter
from proxy.relay.outbound import Send
from proxy.relay.ticket import Ticket
from proxy.routing.quotas import Quota, Quotas, Standing
from proxy.schema import Settings
from proxy.sharing.types import Settlement, State
from proxy.types import Headers

_FIELDS = {
    kind: [f"x-ratelimit-{figure}-{kind}".encode() for figure in ("limit", "remaining", "reset")]
    for kind in ("requests", "tokens")
}


class Gate:
    """Lets calls in. ``state`` is what several gateways share, None for one that is alone."""

    def __init__(self, state: State | None) -> None:
        self._quotas = Quotas()
        self._limits: dict[Holder, ClientLimits] = {}
        self._state = state

    def configure(self, settings: Settings) -> None:
        """Go by these limits of users and tags from the next call on."""
        self._limits = {
            each.holder: ClientLimits(
                rpm=each.rpm,
                rph=each.rph,
                rpd=each.rpd,
                tpm=each.tpm,
                tph=each.tph,
                tpd=each.tpd,
                parallel=each.parallel,
                max_output_tokens=each.max_output_tokens,
            )
            for each in settings.limits
        }

    def entry(self, client: Client | None) -> Entry | None:
        """For one call; None where nobody who is known of by now has limits, nor may have any."""
        if client is not None and client.limits != UNLIMITED:
            return Entry(self, self._ticket(("client", client.id), client.limits))
        return Entry(self, None) if self._limits else None

    def tickets(self, who: Attribution) -> list[Ticket]:
        """One for the user of a call, and for each of its tags, that has limits."""
        holders: list[Holder] = [("tag", tag) for tag in who.tags]
        if who.user_id is not None:
            holders.insert(0, ("user", who.user_id))
        return [
            self._ticket(holder, self._limits[holder])
            for holder in holders
            if holder in self._limits
        ]

    def quotas(self, clients: Iterable[Client]) -> Iterator[tuple[Holder, Quota]]:
        """The quota of everybody who has limits, among the ``clients`` too."""
        for client in clients:
            if client.limits != UNLIMITED and client.revoked_at is None:
                yield ("client", client.id), self._quotas.of(("client", client.id), client.limits)
        for holder, limits in self._limits.items():
            yield holder, self._quotas.of(holder, limits)

    def away(self, nodes: int) -> None:
        """The shared state is away: keep to this gateway's part of every limit."""
        self._quotas.share(1 / nodes)

    def back(self) -> None:
        self._quotas.share(1.0)

    def known(self) -> list[Settlement]:
        """What is counted, for a state that begins with nothing."""
        at, now = now_ms(), monotonic()
        return [
            Settlement(
                window.name, window.limit.seconds, None, count, at - round((now - when) * 1000)
            )
            for window in self._quotas.windows()
            for when, count in window.uses(now)
        ]

    def _ticket(self, holder: Holder, limits: ClientLimits) -> Ticket:
        return Ticket(holder, self._quotas.of(holder, limits), self._state)


class Entry:
    """One call that has limits to keep, from when it knocks until its last row is written. ``own``
    is of its client."""

    def __init__(self, gate: Gate, own: Ticket | None) -> None:
        self._gate = gate
        self._tickets = [] if own is None else [own]

    def body(self, most: int) -> int:
        """The bytes that its body may have, where anybody's may have ``most``."""
        for ticket in self._tickets:
            limit = ticket.quota.limits.max_body
            if limit is not None and limit < most:
                most = limit
        return most

    async def admit(self, who: Attribution, answers: int, prompt: int, asked: Asked) -> None:
        """Count it; ``answers`` is how many are made, ``prompt`` the tokens that its prompt is
        expected to have.

        GatewayError 400 where it asks for more output than it may, 429 over any other limit. What
        was counted by then is given back at the end, as nobody was asked.
        """
        answer = asked.max_tokens
        if not answers:
            answer = 0
        elif answer is not None:
            answer *= answers
        self._tickets += self._gate.tickets(who)
        for ticket in self._tickets:
            ticket.take(prompt, answer)
        for ticket in self._tickets:  # nothing is claimed of others that is refused here
            await ticket.claim()

    def end(self, meter: Meter) -> None:
        """It is over, however it ended. Only the first time counts."""
        for ticket in self._tickets:
            ticket.end(meter)

    def telling(self, send: Send) -> Send:
        """``send``, with how things stand in the head of the answer."""

        def tell(message: MutableMapping[str, Any]) -> Awaitable[None]:
            if message["type"] == "http.response.start" and self._tickets:
                message["headers"] = [*message["headers"], *self._headers()]
            return send(message)

        return tell

    def _headers(self) -> Headers:
        """As OpenAI tells them: https://platform.openai.com/docs/guides/rate-limits. Of several
        limits of a kind, the one of which the least is left."""
        tightest: dict[str, Standing] = {}
        now = monotonic()
        for ticket in self._tickets:
            for each in ticket.quota.standings(now):
                least = tightest.setdefault(each.kind, each)
                if each.remaining < least.remaining:
                    tightest[each.kind] = each
        fields: Headers = []
        for each in tightest.values():
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
