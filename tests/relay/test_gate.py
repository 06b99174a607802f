"""What a call of a limited client counts, here and in the shared state; that is a recording."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.clients import Client, ClientLimits
from proxy.clock import monotonic
from proxy.duration import duration
from proxy.errors import ErrorReason, GatewayError
from proxy.metering.attempt import Asked, Attribution
from proxy.relay.gate import Entry, Gate
from proxy.routing.limits import MINUTE
from proxy.schema import Settings
from proxy.sharing.types import Denial, Granted, WindowClaim
from proxy.types import Fault

WHO = Attribution()


class State:
    """What is claimed and settled; ``denials`` are the answers to come, then all is granted."""

    def __init__(self) -> None:
        self.available = True
        self.denials: list[Denial] = []
        self.claims: list[list[WindowClaim]] = []
        self.settled: list[tuple[str, int, int]] = []
        self.slots: dict[str, str] = {}
        self.free_slots = 1
        self.others = 0  # what they count in each window

    def token(self) -> str:
        return f"t{len(self.slots)}"

    async def hold(self, name: str, limit: int, token: str) -> bool:
        assert (name, limit) == ("client:ck-1:parallel", 1)
        await asyncio.sleep(0)
        if len(self.slots) >= self.free_slots:
            return False
        self.slots[token] = name
        return True

    def free(self, name: str, token: str) -> None:
        assert name == "client:ck-1:parallel"
        self.slots.pop(token, None)

    async def claim(
        self, places: list[str], windows: list[WindowClaim], *, counted: Granted
    ) -> Denial | None:
        assert not places
        self.claims.append(windows)
        await asyncio.sleep(0)
        if self.denials:
            return self.denials.pop(0)
        counted(7, [each.cost + self.others for each in windows])
        return None

    def settle(self, name: str, seconds: int, start: int | None, difference: int, at: int) -> None:
        assert start is None
        self.settled.append((name.removeprefix("client:ck-1:"), difference, at))


def enter(gate: Gate, **limits: int) -> Entry:
    entry = gate.entry(Client("ck-1", "ann", 0, limits=ClientLimits(**limits)))
    assert entry is not None
    return entry


def limited(*limits: dict[str, Any]) -> Settings:
    """Settings with limits of users and tags."""
    of: list[dict[str, Any]] = []
    for limit in limits:
        (scope, value), *others = limit.items()
        of.append({"scope": scope, "value": value, **dict(others)})
    return Settings(limits=of)


def meter(sent: bool = True, tokens: int | None = None, fault: Fault | None = None) -> Any:
    return SimpleNamespace(sent=sent, tokens=tokens, last=SimpleNamespace(fault=fault))


async def told(entry: Entry) -> dict[str, str]:
    """The head of an answer."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    telling = entry.telling(send)
    await telling({"type": "http.response.start", "headers": [(b"a", b"b")]})
    await telling({"type": "http.response.body"})
    start, body = sent
    assert body == {"type": "http.response.body"}
    assert start["headers"].pop(0) == (b"a", b"b")
    return {name.decode(): value.decode() for name, value in start["headers"]}


def test_who_has_no_limits_has_no_entry() -> None:
    assert Gate(None).entry(Client("ck-1", "ann", 0, limits=ClientLimits())) is None


async def test_a_user_and_a_tag_have_limits_of_their_own() -> None:
    gate = Gate(None)
    assert gate.entry(None) is None
    gate.configure(limited({"user": "ann", "rpm": 2}, {"tag": "x", "tpm": 90}))
    client = Client("ck-1", "ann", 0, limits=ClientLimits(rpm=5))
    for by, tokens in ((None, "60"), (client, "30")):
        entry = gate.entry(by)
        assert entry is not None
        await entry.admit(Attribution(user_id="ann", tags=("y", "x")), 1, 20, Asked(max_tokens=10))
        head = await told(entry)
        left = [head[f"x-ratelimit-remaining-{kind}"] for kind in ("requests", "tokens")]
        assert left == [str(int(tokens) // 60), tokens]  # of the tightest
    late = gate.entry(client)
    assert late is not None
    with pytest.raises(GatewayError, match="for the user 'ann': requests per minute"):
        await late.admit(Attribution(user_id="ann"), 1, 1, Asked(max_tokens=1))
    late.end(meter(sent=False))  # what the client's own limit counted comes back
    assert gate._quotas.of(("client", "ck-1"), client.limits).windows["rpm"].used == 1
    other = gate.entry(None)
    assert other is not None
    await other.admit(Attribution(user_id="bo"), 1, 1, Asked())
    assert await told(other) == {}
    gate.configure(limited({"tag": "x", "max_output_tokens": 5}))
    with pytest.raises(GatewayError, match="The tag 'x' may ask for 5 output tokens at most"):
        await other.admit(Attribution(tags=("x",)), 1, 1, Asked(max_tokens=6))


def test_the_smaller_limit_of_a_body_holds() -> None:
    gate = Gate(None)
    assert enter(gate, max_body=10).body(99) == 10
    assert enter(gate, max_body=100).body(99) == 99
    assert enter(gate, rpm=1).body(99) == 99


@pytest.mark.parametrize(
    ("answers", "most", "goes"),
    [(1, None, True), (1, 100, True), (0, 101, True), (1, 101, False), (3, 50, False)],
)
async def test_no_more_output_may_be_asked_for(answers: int, most: int | None, goes: bool) -> None:
    entry = enter(Gate(None), max_output_tokens=100, rpm=5)
    if goes:
        await entry.admit(WHO, answers, 1, Asked(max_tokens=most))
        return
    with pytest.raises(GatewayError, match="100 output tokens at most") as refused:
        await entry.admit(WHO, answers, 1, Asked(max_tokens=most))
    assert (refused.value.status, refused.value.param) == (400, "max_tokens")
    assert (await told(entry))["x-ratelimit-remaining-requests"] == "5"


async def test_over_a_limit_the_answer_says_which_and_when_there_is_room() -> None:
    gate = Gate(None)
    await enter(gate, tpm=100).admit(WHO, 1, 80, Asked(max_tokens=5))
    late = enter(gate, tpm=100)
    with pytest.raises(GatewayError) as found:
        await late.admit(WHO, 1, 20, Asked(max_tokens=10))
    error = found.value
    assert (error.status, error.reason, error.code) == (
        *(429, ErrorReason.RATE_LIMIT),
        "rate_limit_exceeded",
    )
    assert "tokens per minute (tpm): limit 100, used 85, this call needs about 30" in error.message
    assert error.retry_after is not None
    assert MINUTE <= error.retry_after <= MINUTE + 1
    headers = await told(late)
    assert headers.pop("x-ratelimit-limit-tokens") == "100"
    assert headers.pop("x-ratelimit-remaining-tokens") == "15"
    reset = duration(headers.pop("x-ratelimit-reset-tokens"))
    assert reset is not None
    assert reset == pytest.approx(MINUTE, abs=2)
    assert not headers


@pytest.mark.parametrize(
    ("ended", "requests", "tokens"),
    [
        (meter(tokens=30), 1, 30),
        (meter(), 1, 60),
        (meter(fault=Fault(ErrorReason.TIMEOUT, "", executed=True)), 1, 60),
        (meter(fault=Fault(ErrorReason.RATE_LIMIT, "")), 1, 0),
        (meter(sent=False), 0, 0),
    ],
)
async def test_what_a_call_leaves_behind(ended: Any, requests: int, tokens: int) -> None:
    """Also with whom the state is shared."""
    state = State()
    gate = Gate(state)  # type: ignore[arg-type]
    limits = {"rpm": 9, "tpm": 100, "parallel": 1}
    entry = enter(gate, **limits)
    await entry.admit(WHO, 1, 50, Asked(max_tokens=10))
    (claims,) = state.claims
    assert [(each.limit, each.seconds, each.cost) for each in claims] == [(9, 60, 1), (100, 60, 60)]
    entry.end(ended)
    entry.end(ended)
    quota = gate._quotas.of(("client", "ck-1"), ClientLimits(**limits))
    assert (quota.windows["rpm"].used, quota.windows["tpm"].used) == (requests, tokens)
    assert quota.slots.used == 0
    assert state.settled == [("requests:60", requests - 1, 7), ("tokens:60", tokens - 60, 7)]


async def test_what_others_have_used_up_is_refused_and_not_asked_for_again() -> None:
    state = State()
    gate = Gate(state)  # type: ignore[arg-type]
    state.denials.append(Denial("client:ck-1:requests:60", 30.0, None))
    for asks in (1, 1):
        entry = enter(gate, rpm=9, parallel=1)
        with pytest.raises(GatewayError, match="limit 9, used 9") as found:
            await entry.admit(WHO, 1, 1, Asked())
        assert found.value.retry_after == 30
        assert len(state.claims) == asks
        entry.end(meter(sent=False))
    assert not state.settled
    assert (await told(entry))["x-ratelimit-remaining-requests"] == "0"


async def test_what_is_refused_here_is_claimed_of_nobody() -> None:
    state = State()
    gate = Gate(state)  # type: ignore[arg-type]
    gate.configure(limited({"user": "ann", "rpm": 1}))
    by_ann = Attribution(user_id="ann")
    await enter(gate, rpd=10).admit(by_ann, 1, 1, Asked())
    assert [[each.name for each in claim] for claim in state.claims] == [
        ["client:ck-1:requests:86400"],
        ["user:ann:requests:60"],
    ]
    with pytest.raises(GatewayError, match="the user 'ann'"):
        await enter(gate, rpd=10).admit(by_ann, 1, 1, Asked())
    assert len(state.claims) == 2


async def test_where_others_used_the_tokens_a_smaller_call_may_still_go() -> None:
    state = State()
    gate = Gate(state)  # type: ignore[arg-type]
    state.denials.append(Denial("client:ck-1:tokens:60", 30.0, None))
    with pytest.raises(GatewayError, match=r"limit 100, used 41, this call needs about 60") as late:
        await enter(gate, tpm=100).admit(WHO, 1, 50, Asked(max_tokens=10))
    assert late.value.retry_after == 30
    await enter(gate, tpm=100).admit(WHO, 1, 5, Asked(max_tokens=5))


async def test_what_is_left_is_told_of_what_all_use_together() -> None:
    state = State()
    state.others = 4
    gate = Gate(state)  # type: ignore[arg-type]
    entry = enter(gate, rpm=9)
    await entry.admit(WHO, 1, 1, Asked())
    assert (await told(entry))["x-ratelimit-remaining-requests"] == "4"
    gate.away(1)
    assert (await told(entry))["x-ratelimit-remaining-requests"] == "8"


async def test_where_the_state_is_away_each_has_its_part() -> None:
    state = State()
    gate = Gate(state)  # type: ignore[arg-type]
    state.available = False
    gate.away(2)
    await enter(gate, rpm=2).admit(WHO, 1, 1, Asked())
    with pytest.raises(GatewayError):
        await enter(gate, rpm=2).admit(WHO, 1, 1, Asked())
    gate.back()
    await enter(gate, rpm=2).admit(WHO, 1, 1, Asked())
    assert not state.claims


async def test_who_leaves_while_it_is_claimed_holds_nothing() -> None:
    gate = Gate(State())  # type: ignore[arg-type]
    entry = enter(gate, rpm=9, parallel=1)
    task = asyncio.ensure_future(entry.admit(WHO, 1, 1, Asked()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    entry.end(meter(sent=False))
    await enter(gate, rpm=9, parallel=1).admit(WHO, 1, 1, Asked())


async def test_what_is_counted_is_told_to_a_state_that_begins() -> None:
    gate = Gate(None)
    await enter(gate, rpm=9, tpm=100).admit(WHO, 1, 50, Asked(max_tokens=10))
    gate._quotas.of(("client", "ck-1"), ClientLimits(rpm=9, tpm=100)).replay(
        *(MINUTE, monotonic() - 30), *(2, 20), monotonic()
    )
    known = {(use.name, use.seconds): 0 for use in gate.known()}
    for use in gate.known():
        known[use.name, use.seconds] += use.difference
    assert known == {("client:ck-1:requests:60", 60): 3, ("client:ck-1:tokens:60", 60): 80}


async def test_calls_at_a_time_are_those_of_all_who_share_the_state() -> None:
    state = State()
    gate = Gate(state)  # type: ignore[arg-type]
    entry = enter(gate, parallel=1)
    state.free_slots = 0
    with pytest.raises(GatewayError, match=r"\(parallel\): limit 1, used 1"):
        await entry.admit(WHO, 1, 1, Asked())
    entry.end(meter(sent=False))
    state.free_slots = 1
    entry = enter(gate, parallel=1)
    await entry.admit(WHO, 1, 1, Asked())
    assert len(state.slots) == 1
    entry.end(meter())
    entry.end(meter())
    assert not state.slots


async def test_what_is_refused_by_a_window_holds_no_slot() -> None:
    state = State()
    gate = Gate(state)  # type: ignore[arg-type]
    state.denials.append(Denial("client:ck-1:requests:60", 30.0, None))
    entry = enter(gate, rpm=9, parallel=1)
    with pytest.raises(GatewayError):
        await entry.admit(WHO, 1, 1, Asked())
    entry.end(meter(sent=False))
    assert not state.slots


async def test_embeddings_have_no_answer_to_be_counted() -> None:
    state = State()
    entry = enter(Gate(state), tpm=1000)  # type: ignore[arg-type]
    await entry.admit(WHO, 0, 50, Asked())
    assert [claim.cost for claim in state.claims[0]] == [50]
