"""Members in one loop, and a hub that turns in a thread beside it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from proxy.sharing import member as member_module
from proxy.sharing.hub import Hub
from proxy.sharing.member import Member
from proxy.sharing.types import Rest, Settlement, WindowClaim
from tests.sharing.conftest import until

FAR = 10**15
REST = Rest("p", FAR, "rate_limit", "cooling", 1)
TWO = WindowClaim("w", 2, 60, 1)


class Worker:
    """What a member was told stands in lists."""

    def __init__(self, hub: Hub, number: int) -> None:
        self.rests: list[list[Rest]] = []
        self.away: list[int] = []
        self.back = 0
        self.reloads = 0
        self.lost = asyncio.Event()
        self.member = Member(hub.join(number), 2, self.lost.set)
        self.member.meet(changed=self.rests.append, away=self.away.append, back=self._back)
        self.member.serve(self._reload, {"echo": bytes.upper, "broken": self._broken})

    def _back(self) -> None:
        self.back += 1

    def _reload(self) -> None:
        self.reloads += 1

    def _broken(self, argument: bytes) -> bytes:
        raise ValueError("no")


class Turning:
    """The hub of a supervisor; ``pause`` holds it."""

    def __init__(self) -> None:
        self.hub = Hub(ready=lambda *_: None, reload=lambda: None)
        self.go = threading.Event()
        self.go.set()
        self.ends = False
        self.thread = threading.Thread(target=self._turn)

    def _turn(self) -> None:
        while not self.ends:
            self.hub.turn(0.01)
            self.go.wait()
        self.hub.close()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_module, "PATIENCE_SECONDS", 20.0)


@asynccontextmanager
async def company() -> AsyncIterator[tuple[Turning, Worker, Worker]]:
    turning = Turning()
    one, other = Worker(turning.hub, 1), Worker(turning.hub, 2)
    turning.thread.start()
    try:
        for worker in (one, other):
            await worker.member.open()
            worker.member.ready([], None)
        await until(lambda: all(peer.serves for peer in turning.hub._peers.values()))
        yield turning, one, other
    finally:
        for worker in (one, other):
            worker.member.close()
        turning.ends = True
        turning.go.set()
        await asyncio.to_thread(turning.thread.join)


async def test_a_limit_holds_for_both_and_what_was_used_is_settled() -> None:
    async with company() as (_, one, other):
        counted: list[int] = []
        held: list[list[int]] = []

        def granted(at: int, used: Sequence[int]) -> None:
            counted.append(at)
            held.append(list(used))

        assert await one.member.claim([], [TWO], counted=granted) is None
        assert await other.member.claim([], [TWO]) is None
        denial = await other.member.claim([], [TWO], counted=granted)
        assert denial is not None
        assert (denial.name, len(counted), held) == ("w", 1, [[1]])
        one.member.settle("w", 60, None, 0, counted[0])
        one.member.settle("w", 60, None, -1, counted[0])
        assert (await one.member.snapshot())[1] == {"w": 1}
        assert await other.member.claim([], [TWO]) is None


async def test_who_leaves_as_it_claims_leaves_nothing_behind() -> None:
    async with company() as (turning, one, other):
        for ask in (
            lambda: one.member.claim([], [TWO]),
            lambda: one.member.hold("s", 1, "t"),
        ):
            turning.go.clear()
            await asyncio.sleep(0.1)  # for the turn that it is in
            task = asyncio.create_task(ask())
            await asyncio.sleep(0.01)
            task.cancel()
            turning.go.set()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
        async with asyncio.timeout(20):
            while (await one.member.snapshot())[1] != {"w": 0}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while not await other.member.hold("s", 1, "u"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not one.member._waiting


async def test_what_one_says_of_rests_the_other_hears() -> None:
    async with company() as (_, one, other):
        one.member.rest(REST)
        await until(lambda: other.rests[-1] == [REST])
        assert (await other.member.snapshot())[0] == [REST]
        assert await other.member.claim(["p"], [TWO]) is not None
        other.member.lift(["p"])
        await until(lambda: one.rests[-1] == [])


async def test_nobody_hears_an_echo_of_what_it_has_lifted_since() -> None:
    async with company() as (_, one, _other):
        one.rests.clear()
        for _ in range(50):
            one.member.rest(REST)
            one.member.lift(["p"])
            await asyncio.sleep(0)
        await until(lambda: bool(one.rests))
        assert one.rests[-1] == []
        assert REST not in [rest for rests in one.rests for rest in rests]


async def test_what_counts_nothing_is_not_asked() -> None:
    async with company() as (turning, one, _):
        turning.go.clear()
        assert await asyncio.wait_for(one.member.claim(["p"], []), 20) is None
        assert one.member.available
        turning.go.set()


async def test_what_was_before_is_told_once() -> None:
    async with company() as (_, one, other):
        uses = [Settlement("w", 60, None, 1, 10**13)]
        one.member.begin([REST], uses)
        await until(lambda: other.rests[-1] == [REST])
        other.member.begin([], uses)
        assert (await other.member.snapshot())[1] == {"w": 1}


async def test_one_asks_the_other() -> None:
    async with company() as (_, one, other):
        assert await one.member.ask("echo", b"word") == [b"WORD"]
        assert await other.member.ask("echo", b"x" * 3_000_000) == [b"X" * 3_000_000]


async def test_an_answer_that_fails_costs_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    async with company() as (_, one, other):
        assert await one.member.ask("broken", b"") == []
        assert await one.member.ask("echo", b"a") == [b"A"]
        assert not other.lost.is_set()
    assert "Ask from the other workers was lost" in caplog.text


async def test_a_reload_reaches_the_other() -> None:
    async with company() as (_, one, other):
        one.member.reloaded()
        await until(lambda: other.reloads == 1)
        assert not one.reloads


async def test_a_supervisor_that_does_not_answer_is_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(member_module, "PATIENCE_SECONDS", 0.05)
    async with company() as (turning, one, _):
        turning.go.clear()
        await asyncio.sleep(0.03)
        assert await one.member.claim([], [TWO]) is None
        assert (one.member.available, one.away) == (False, [2])
        turning.go.set()
        await until(lambda: one.member.available)
        assert one.back == 1


async def test_who_ends_is_not_waited_for_and_who_is_left_is_told() -> None:
    turning = Turning()
    worker = Worker(turning.hub, 1)
    turning.thread.start()
    await worker.member.open()
    turning.ends = True
    await asyncio.wait_for(worker.lost.wait(), 20)
    assert not worker.member.available
    assert await worker.member.claim([], [TWO]) is None
    assert await worker.member.ask("echo", b"") == []
    worker.member.rest(REST)
    await asyncio.to_thread(turning.thread.join)


async def test_taking_leave_is_no_loss() -> None:
    async with company() as (_, one, other):
        other.member.close()
        await asyncio.sleep(0.05)
        assert not other.lost.is_set()
        assert await one.member.ask("echo", b"") == []


async def test_slots_are_those_of_both_and_are_given_back() -> None:
    async with company() as (turning, one, other):
        mine, theirs = one.member.token(), other.member.token()
        assert await one.member.hold("s", 1, mine)
        assert not await other.member.hold("s", 1, theirs)
        one.member.free("s", mine)
        await one.member.snapshot()
        assert await other.member.hold("s", 1, theirs)
        turning.go.clear()
        asking = asyncio.ensure_future(one.member.hold("s", 1, mine))
        await asyncio.sleep(0)
        asking.cancel()
        one.member.free("s", mine)
        turning.go.set()
        assert not await one.member.hold("s", 1, one.member.token())
