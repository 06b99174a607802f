from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from proxy.clock import monotonic
from proxy.relay.line import Line

LATER = 30.0
"""Seconds of patience that no test uses up."""


class Desk:
    """Capacity that is taken and released, and the order in which the waiting ones were served."""

    def __init__(self, line: Line, free: int = 0) -> None:
        self.line = line
        self.free = free
        self.looks: list[str] = []
        self.served: list[str] = []

    def ready(self, who: str) -> Callable[[float], float]:
        def look(now: float) -> float:
            self.looks.append(who)
            return 0.0 if self.free else math.inf

        return look

    async def serve(self, who: str, name: str = "m", patience: float = LATER) -> bool:
        went = await self.line.wait(name, self.ready(who), monotonic() + patience)
        if went:
            assert self.free, f"{who} was overtaken"
            self.free -= 1
            self.served.append(who)
        return went

    def release(self, many: int = 1) -> None:
        self.free += many
        self.line.nudge()


async def settle() -> None:
    """Let everybody who can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def started(call: Awaitable[bool]) -> asyncio.Future[bool]:
    future = asyncio.ensure_future(call)
    await asyncio.sleep(0)
    return future


async def cancelled(*waiting: asyncio.Future[bool]) -> None:
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


def assert_empty(line: Line) -> None:
    assert (line._lines, len(line), line.full) == ({}, 0, False)


async def test_who_comes_first_and_may_go_does_not_wait() -> None:
    line = Line()
    waiting = line.wait("m", lambda now: 0.0, monotonic() + LATER)
    with pytest.raises(StopIteration) as stopped:
        waiting.__await__().__next__()
    assert stopped.value.value is True
    assert_empty(line)


async def test_the_order_is_kept_among_many() -> None:
    line = Line()
    desk = Desk(line)
    waiting = [await started(desk.serve(f"{n:03}")) for n in range(200)]
    assert len(line) == 200
    assert desk.looks == ["000"]
    for many in (1, 10, 89, 100):
        desk.release(many)
        await settle()
    assert all(await asyncio.gather(*waiting))
    assert desk.served == [f"{n:03}" for n in range(200)]
    assert_empty(line)


async def test_who_comes_next_does_not_overtake_who_was_woken() -> None:
    line = Line()
    desk = Desk(line)
    first = await started(desk.serve("first"))
    desk.release()
    second = asyncio.ensure_future(desk.serve("second"))
    assert line.busy("m")
    assert await first
    assert desk.served == ["first"]
    desk.release()
    assert await second
    assert not line.busy("m")


async def test_a_nudge_wakes_the_heads_alone() -> None:
    line = Line()
    desk = Desk(line)
    waiting = [await started(desk.serve(f"{name}{n}", name)) for name in "ab" for n in range(5)]
    desk.looks.clear()
    line.nudge()
    line.nudge()
    woken = [bool(t._woken and t._woken.done()) for each in line._lines.values() for t in each]
    assert woken == [True, False, False, False, False] * 2
    await settle()
    assert desk.looks == ["a0", "b0"]
    await cancelled(*waiting)
    assert_empty(line)


async def test_a_nudge_of_nobody_does_nothing() -> None:
    line = Line()
    line.nudge()
    assert_empty(line)


@pytest.mark.parametrize("leaver", [0, 1, 2])
async def test_who_is_cancelled_leaves_no_ticket_and_the_others_keep_their_order(
    leaver: int,
) -> None:
    line = Line()
    desk = Desk(line)
    waiting = [await started(desk.serve(f"{n}")) for n in range(3)]
    await cancelled(waiting.pop(leaver))
    assert len(line) == 2
    await settle()
    assert desk.looks == (["0", "1"] if leaver == 0 else ["0"])  # only a new head looks
    desk.release(2)
    assert await asyncio.gather(*waiting) == [True, True]
    assert desk.served == [f"{n}" for n in range(3) if n != leaver]
    assert_empty(line)


async def test_a_head_that_is_cancelled_when_just_woken_hands_over() -> None:
    line = Line()
    desk = Desk(line)
    first = await started(desk.serve("first"))
    second = await started(desk.serve("second"))
    desk.release()
    await cancelled(first)
    assert await asyncio.wait_for(second, 20)
    assert_empty(line)


async def test_two_names_do_not_hold_each_other_up() -> None:
    line = Line()
    closed, open_ = Desk(line), Desk(line, 1)
    waiting = await started(closed.serve("a", "big"))
    assert line.busy("big")
    assert not line.busy("small")
    assert await asyncio.wait_for(open_.serve("b", "small"), 20)
    await cancelled(waiting)
    assert_empty(line)


async def test_a_head_looks_again_when_it_was_told_to() -> None:
    line = Line()
    began, looks = monotonic(), []

    def ready(now: float) -> float:
        looks.append(now)
        return max(0.0, began + 0.03 - now)

    assert await line.wait("m", ready, began + LATER)
    assert monotonic() >= began + 0.03
    assert len(looks) < 10


@pytest.mark.parametrize("place", ["head", "second"])
async def test_who_has_waited_long_enough_gives_up(place: str) -> None:
    line = Line()
    desk = Desk(line)
    head = await started(desk.serve("head")) if place == "second" else None
    began = monotonic()
    assert not await desk.serve("me", patience=0.03)
    assert monotonic() >= began + 0.03
    if head is not None:
        assert len(line) == 1
        await cancelled(head)
    assert_empty(line)


async def test_when_the_head_gives_up_the_next_one_looks_at_once() -> None:
    line = Line()
    desk = Desk(line)
    first = await started(desk.serve("first", patience=0.01))
    second = await started(desk.serve("second"))
    assert not await first
    await settle()
    assert desk.looks == ["first", "first", "second"]  # a head looks before it gives up
    await cancelled(second)
    assert_empty(line)


async def test_without_patience_it_is_one_look() -> None:
    line = Line()
    desk = Desk(line)
    assert not await desk.serve("a", patience=0)
    desk.free = 1
    assert await desk.serve("b", patience=0)
    assert desk.looks == ["a", "b"]


async def test_timers_are_of_a_sane_length_and_none_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loop may take no endless timer, and one that is too short would spin."""
    line = Line()
    loop = asyncio.get_running_loop()
    call_later, timers, delays = loop.call_later, [], []

    def recorded(delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        delays.append(delay)
        timers.append(call_later(delay, callback))
        return timers[-1]

    monkeypatch.setattr(loop, "call_later", recorded)
    answers = iter([math.inf, 1e-9, 0.0])
    waiting = await started(line.wait("m", lambda now: next(answers), math.inf))
    line.nudge()
    await settle()
    line.nudge()
    assert await waiting
    assert delays == [3600, 0.001]
    assert all(timer.cancelled() for timer in timers)


async def test_a_full_line_takes_nobody() -> None:
    line = Line(2)
    desk = Desk(line)
    waiting = [await started(desk.serve(name, name)) for name in "ab"]
    assert line.full
    assert not await asyncio.wait_for(desk.serve("c", "c"), 20)
    assert not line.busy("c")
    await cancelled(*waiting)
    assert_empty(line)


async def test_what_a_look_raises_is_raised_and_the_next_one_looks() -> None:
    line = Line()
    desk = Desk(line)
    broken = False

    def ready(now: float) -> float:
        if broken:
            raise LookupError("gone")
        return math.inf

    first = await started(line.wait("m", ready, monotonic() + LATER))
    second = await started(desk.serve("second"))
    broken, desk.free = True, 1
    line.nudge()
    with pytest.raises(LookupError):
        await first
    assert await asyncio.wait_for(second, 20)
    assert_empty(line)


@pytest.mark.parametrize("seed", range(60))
async def test_nothing_is_lost_or_left_behind_whatever_happens(seed: int) -> None:
    """Arrivals, releases, cancellations and impatience in any order, and between any two steps."""
    random = Random(seed)
    line = Line(8)
    desks = {name: Desk(line) for name in "ab"}
    waiting: list[asyncio.Future[bool]] = []
    for number in range(120):
        name = random.choice("ab")
        desk, what = desks[name], random.random()
        if what < 0.45:
            patience = random.choice([0, 0.001, LATER, LATER, LATER])
            waiting.append(asyncio.ensure_future(desk.serve(f"{number:03}", name, patience)))
        elif what < 0.65:
            desk.release(random.choice([1, 1, 2]))
        elif what < 0.8 and waiting:
            waiting.pop(random.randrange(len(waiting))).cancel()
        elif what < 0.9:
            await settle()
        else:
            await asyncio.sleep(random.choice([0, 0, 0.002]))
    await asyncio.sleep(0.005)
    for _ in range(20):
        await asyncio.sleep(0)
    for name, desk in desks.items():
        assert not (desk.free and line.busy(name)), "one waits for what is free"
        desk.release(1000)
    await asyncio.wait_for(asyncio.gather(*waiting), 20)
    for desk in desks.values():
        assert desk.served == sorted(desk.served)
    assert_empty(line)
