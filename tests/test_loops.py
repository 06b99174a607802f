from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from proxy import loops
from proxy.changes import CountRecord
from proxy.learnt import counted
from proxy.routing.counters import Allowance, Allowances, Counters
from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool
from proxy.routing.limits import MINUTE, Limit
from proxy.schema import TelemetrySettings
from proxy.store.address import StoreError


async def for_a_moment(loop: Coroutine[Any, Any, None], seconds: float = 0.08) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(loop, seconds)


def pool(limit: int = 10) -> KeyPool:
    counters = Counters(None, lambda: 0.0)
    allowance = Allowance((Limit("requests", limit, MINUTE),))
    counters.configure(Allowances(groups={"org": allowance}))
    return KeyPool("lab", [Key("k1", "sk-1", "org")], counters, chance=lambda: 1.0)


async def test_what_cannot_be_done_yet_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "AGAIN_SECONDS", 0.001)
    answers = [False, False, True, False]

    async def done() -> bool:
        return answers.pop(0)

    await asyncio.wait_for(loops.until(done), 20)
    assert answers == [False]


async def test_old_rows_go_again_and_again_though_a_database_may_be_locked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[Any, ...]] = []

    async def run(*words: Any) -> int:
        calls.append(words)
        raise StoreError("locked")

    monkeypatch.setattr(loops.retention, "run", run)
    monkeypatch.setattr(loops, "RETENTION_SECONDS", 0.01)
    telemetry = TelemetrySettings(retention_days=7, archive=tmp_path, content_days=2)
    await for_a_moment(loops.retain("the store", telemetry))  # type: ignore[arg-type]
    assert len(calls) > 1
    assert calls[0][:2] == ("the store", 7)
    assert calls[0][2] is not None
    assert calls[0][3] == 2


async def test_a_count_is_handed_on_when_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "COUNTS_SECONDS", 0.01)
    keys, kept = pool(), []
    lease = keys.lease("m", 100.0)
    assert lease is not None

    async def figures() -> list[CountRecord]:
        return counted([keys])

    await for_a_moment(loops.publish_counts(figures, kept.append))
    [record] = kept
    assert isinstance(record, CountRecord)
    assert (record.account, record.limit_type, record.limit) == ("org", "requests_minute", 10)


class Lists:
    def __init__(self, answers: bool) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def reached(self, provider: str) -> bool:
        self.asked.append(provider)
        return self.answers


@pytest.mark.parametrize(("answers", "left"), [(True, False), (False, True)])
async def test_a_provider_that_answers_its_list_may_be_tried_at_once(
    monkeypatch: pytest.MonkeyPatch, answers: bool, left: bool
) -> None:
    monkeypatch.setattr(loops, "monotonic", lambda: 100.0)
    keys, well, lists = pool(), pool(), Lists(answers)
    breaker = keys.health.breaker("m")
    breaker.restore("open", 200.0, 1)
    pools = {"lab": keys, "well": well}
    await for_a_moment(loops.probe(lambda: pools, lists, lambda: 0.02))  # type: ignore[arg-type]
    assert set(lists.asked) == {"lab"}
    assert (breaker.wait(100.0) > 0) == left


async def test_nobody_is_asked_unless_that_is_wanted_which_may_come_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loops, "_IDLE_SECONDS", 0.01)
    keys, lists, wanted = pool(), Lists(False), [0.0, 0.0, 0.01]
    keys.health.breaker("m").restore("open", 1e9, 1)

    def every() -> float:
        return wanted.pop(0) if len(wanted) > 1 else wanted[0]

    await for_a_moment(loops.probe(lambda: {"lab": keys}, lists, every))  # type: ignore[arg-type]
    assert lists.asked
    silent = Lists(False)
    await for_a_moment(loops.probe(lambda: {"lab": keys}, silent, lambda: 0.0))  # type: ignore[arg-type]
    assert not silent.asked


async def test_what_one_of_several_does_is_done_from_its_turn_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loops, "AGAIN_SECONDS", 0.001)
    answers, done = [False, False, True], []

    async def loop() -> None:
        done.append(len(answers))

    await asyncio.wait_for(loops.elected(lambda: answers.pop(0), loop), 20)
    assert done == [0]
