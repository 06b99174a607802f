"""One call under the limits of somebody; what is shared with others is in test_gate.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from proxy.clients import ClientLimits, Holder
from proxy.errors import GatewayError
from proxy.relay.ticket import Ticket
from proxy.routing.quotas import Quotas

ENDED: Any = SimpleNamespace(sent=True, tokens=5, last=SimpleNamespace(fault=None))
UNSENT: Any = SimpleNamespace(sent=False, tokens=None, last=None)


class Office:
    """Tickets for one holder."""

    def __init__(self, holder: Holder, **limits: int) -> None:
        self.holder = holder
        self.quota = Quotas().of(holder, ClientLimits(**limits))

    async def ticket(self, prompt: int = 1, answer: int | None = 1) -> Ticket:
        made = Ticket(self.holder, self.quota, None)
        made.take(prompt, answer)
        await made.claim()
        return made


@pytest.mark.parametrize(
    ("holder", "who"),
    [
        (("client", "ck-1"), "this key"),
        (("user", "ann"), "the user 'ann'"),
        (("tag", "Nightly"), "the tag 'Nightly'"),
    ],
)
async def test_whoever_is_over_a_limit_is_named(holder: Holder, who: str) -> None:
    office = Office(holder, rpm=1, max_output_tokens=9)
    await office.ticket()
    with pytest.raises(GatewayError) as full:
        await office.ticket()
    assert full.value.message.startswith(f"Rate limit reached for {who}: requests per minute (rpm)")
    with pytest.raises(GatewayError, match="9 output tokens at most") as asked:
        await office.ticket(answer=10)
    assert asked.value.message.startswith(who[0].upper() + who[1:])


async def test_a_call_that_was_never_made_is_given_back() -> None:
    office = Office(("user", "ann"), rpm=1, parallel=1)
    ticket = await office.ticket()
    ticket.end(UNSENT)
    ticket.end(ENDED)  # only the first end counts
    assert office.quota.windows["rpm"].used == 0
    await office.ticket()


async def test_tokens_are_counted_as_expected_and_then_as_used() -> None:
    office = Office(("tag", "x"), tpm=100)
    ticket = await office.ticket(prompt=20, answer=30)
    assert office.quota.windows["tpm"].used == 50
    ticket.end(ENDED)
    assert office.quota.windows["tpm"].used == 5


async def test_who_waits_for_a_slot_is_told_so() -> None:
    office = Office(("user", "ann"), parallel=1)
    await office.ticket()
    with pytest.raises(GatewayError, match="as soon as one of them ends"):
        await office.ticket()
