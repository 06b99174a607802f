"""Who asks at the same time asks together; with a link that answers when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from proxy.sharing.link import TURNS
from proxy.sharing.turns import CLAIMS, Turns


class Line:
    """Answers each call with its name, a batch for each release of ``go``."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.go = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def send(self, calls: Sequence[Any]) -> list[Any]:
        self.batches.append(len(calls))
        await self.go.acquire()
        if self.error is not None:
            raise self.error
        return list(calls)


def nobody(_: Any) -> None:
    raise AssertionError("nobody is late")


async def test_those_that_wait_share_the_next_turn() -> None:
    line, turns = Line(), Turns(lambda *_: None)
    asked = [asyncio.create_task(ask(turns, line, str(n))) for n in range(TURNS + CLAIMS + 1)]
    await asyncio.sleep(0.01)
    assert line.batches == [CLAIMS, TURNS + 1]
    late = [asyncio.create_task(ask(turns, line, str(n))) for n in range(2)]
    await asyncio.sleep(0.01)
    for _ in range(3):
        line.go.release()
    assert await asyncio.gather(*asked) == [str(n) for n in range(TURNS + CLAIMS + 1)]
    assert await asyncio.gather(*late) == ["0", "1"]
    assert line.batches == [CLAIMS, TURNS + 1, 2]


async def ask(turns: Turns, line: Line, call: str, late: Any = nobody) -> Any:
    return await turns.ask(line, call, late)  # type: ignore[arg-type]


@pytest.mark.parametrize("carries", [0, 1])
async def test_who_leaves_takes_nobody_with_it_and_is_told_late(carries: int) -> None:
    """Also where it is the one whose turn the others share."""
    line, turns, heard = Line(), Turns(lambda *_: None), []
    turns._free = asyncio.Semaphore(1)
    first = asyncio.create_task(ask(turns, line, "first"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    two = [asyncio.create_task(ask(turns, line, name, heard.append)) for name in ("a", "b")]
    await asyncio.sleep(0.01)
    line.go.release()
    await first
    await asyncio.sleep(0.01)
    two[carries].cancel()
    await asyncio.gather(two[carries], return_exceptions=True)
    line.go.release()
    assert await two[1 - carries] == "ab"[1 - carries]
    await asyncio.sleep(0.01)
    assert heard == ["ab"[carries]]
    assert line.batches == [1, 2]


async def test_who_leaves_before_its_turn_is_not_asked_for() -> None:
    line, turns = Line(), Turns(lambda *_: None)
    turns._free = asyncio.Semaphore(1)
    first = asyncio.create_task(ask(turns, line, "first"))
    await asyncio.sleep(0.01)
    gone = asyncio.create_task(ask(turns, line, "gone"))
    await asyncio.sleep(0.01)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    line.go.release()
    await first
    await asyncio.sleep(0.01)
    assert line.batches == [1]
    assert not turns._waiting


async def test_without_an_answer_the_local_state_decides() -> None:
    failures: list[BaseException] = []
    line, turns = Line(), Turns(lambda error, _: failures.append(error))
    line.error = ConnectionError("gone")
    line.go.release()
    assert await ask(turns, line, "a") is None
    assert failures == [line.error]


async def test_nobody_waits_for_a_server_that_is_away() -> None:
    line, turns = Line(), Turns(lambda *_: None)
    turns._free = asyncio.Semaphore(0)
    asked = asyncio.create_task(ask(turns, line, "a"))
    await asyncio.sleep(0.01)
    turns.release()
    turns._free.release()
    assert await asked is None
    assert line.batches == []
