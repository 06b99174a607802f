from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.relay import drains as module
from proxy.relay.drains import Drains


class Leaving:
    """A meter whose client leaves; ``at_work`` is whether an upstream works for it."""

    def __init__(self, *, at_work: bool = True) -> None:
        self.at_work = at_work
        self.asked = 0

    def leave(self) -> bool:
        self.asked += 1
        return self.at_work


def lingering(drains: Drains, meter: Any) -> asyncio.Task[None]:
    return asyncio.ensure_future(drains.linger(meter))


async def test_a_drain_takes_its_time_and_no_longer() -> None:
    drains = Drains(0.02)
    drain = lingering(drains, Leaving())
    await asyncio.sleep(0)
    assert (drains.under_way, drain.done()) == (1, False)
    await drain
    assert drains.under_way == 0


async def test_a_drain_that_is_over_before_makes_room() -> None:
    drains = Drains(600)
    drain = lingering(drains, Leaving())
    await asyncio.sleep(0)
    drain.cancel()
    await asyncio.wait([drain])
    assert drains.under_way == 0


async def test_without_time_the_call_does_not_even_change() -> None:
    meter: Any = Leaving()
    await Drains(0).linger(meter)
    assert meter.asked == 0


async def test_where_no_upstream_is_at_work_nothing_is_waited_for() -> None:
    meter: Any = Leaving(at_work=False)
    await Drains(600).linger(meter)
    assert meter.asked == 1


async def test_beyond_so_many_at_a_time_nothing_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 2)
    drains = Drains(600)
    running = [lingering(drains, Leaving()) for _ in range(2)]
    await asyncio.sleep(0)
    meter: Any = Leaving()
    await drains.linger(meter)
    assert (drains.under_way, meter.asked) == (2, 0)
    for task in running:
        task.cancel()
    await asyncio.wait(running)
