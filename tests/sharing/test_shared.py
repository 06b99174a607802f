"""Several nodes and one server: what they share, and what is left when the server is away."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from proxy.sharing import calls, outbox
from proxy.sharing import shared as module
from proxy.sharing.calls import Call
from proxy.sharing.types import Rest, WindowClaim
from tests.redis_server import Server, keys_of, private_server
from tests.sharing.conftest import Join, Node, until


def rest(place: str, node: Node, seconds: float = 30.0, count: int = 1) -> Rest:
    now = time.time_ns() // 1_000_000 + node.shared.offset_ms
    return Rest(place, now + int(seconds * 1000), "rate_limit", "cooling", count)


def window(limit: int, cost: int = 1, name: str = "requests", seconds: int = 60) -> WindowClaim:
    return WindowClaim(name, limit, seconds, cost)


class Grants:
    """What is told of claims that were granted."""

    def __init__(self) -> None:
        self.at: list[int] = []
        self.used: list[list[int]] = []

    def __call__(self, at: int, used: Sequence[int]) -> None:
        self.at.append(at)
        self.used.append(list(used))


def soon() -> asyncio.Timeout:
    """What is inside does not wait once for each of its 300 claims, which is a minute."""
    return asyncio.timeout(20)


async def test_two_nodes_together_never_admit_more_than_the_limit(
    url: str, prefix: str, join: Join
) -> None:
    nodes = [await join(url, prefix=prefix, timeout=5.0) for _ in range(2)]
    claims = [node.shared.claim([], [window(50)]) for node in nodes for _ in range(150)]
    denials = await asyncio.gather(*claims)
    assert sum(denial is None for denial in denials) == 50
    assert {denial.name for denial in denials if denial} == {"requests"}
    assert all(0 < denial.wait <= 61 for denial in denials if denial)


async def test_a_claim_that_is_denied_by_one_window_counts_in_none(
    url: str, prefix: str, join: Join
) -> None:
    node = await join(url, prefix=prefix, timeout=5.0)
    both = [window(10), window(4, 3, name="tokens")]
    assert await node.shared.claim([], both) is None
    denial = await node.shared.claim([], both, probe="p")
    assert denial is not None
    assert denial.name == "tokens"
    assert await node.shared.snapshot() == ([], {"requests": 1, "tokens": 3})
    assert await node.shared.claim([], [], probe="p") is None


async def test_a_claim_is_one_round_trip_and_those_that_wait_share_the_next(
    url: str, prefix: str
) -> None:
    node = Node(url, prefix=prefix, timeout=5.0)
    await node.shared.open()
    link = node.shared._link
    assert link is not None
    sent: list[int] = []
    send = link.send

    async def counted(calls: Sequence[Call]) -> list[Any]:
        sent.append(len(calls))
        return await send(calls)

    link.send = counted  # type: ignore[method-assign]
    await node.shared.claim(["a", "b"], [window(9), window(9, name="more")], probe="a")
    assert sent == [1]
    await asyncio.gather(*[node.shared.claim([], [window(9)]) for _ in range(50)])
    assert sent == [1, 50]
    await node.shared.close()


async def test_a_rest_and_its_end_reach_the_other_node_at_once(
    url: str, prefix: str, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFRESH_SECONDS", 30.0)  # so that only the news can tell
    one, other = [await join(url, prefix=prefix, timeout=5.0) for _ in range(2)]
    one.shared.rest(rest("place", one))
    await until(lambda: other.places == ["place"] == one.places)
    denial = await other.shared.claim(["free", "place"], [])
    assert denial is not None
    assert denial.name == "place"
    assert 10 < denial.wait <= 30
    assert denial.rest == other.rests[0]
    other.shared.lift(["place"])
    await until(lambda: not one.places and not other.places)
    assert await one.shared.claim(["free", "place"], []) is None


async def test_without_the_news_the_refresh_tells(url: str, prefix: str, join: Join) -> None:
    node, deaf = await join(url, prefix=prefix, timeout=5.0), Node(url, prefix=prefix, timeout=5.0)
    await deaf.shared.open()
    loop = asyncio.create_task(deaf.shared.run())
    node.shared.rest(rest("place", node))
    await until(lambda: deaf.places == ["place"])
    loop.cancel()
    await deaf.shared.close()


async def test_a_rest_that_is_queued_shows_in_what_is_read_before_it_is_sent(
    url: str, prefix: str, join: Join
) -> None:
    one, other = [await join(url, prefix=prefix, timeout=5.0) for _ in range(2)]
    one.shared.rest(rest("old", one))
    await until(lambda: other.places == ["old"])
    other.shared._outbox.rest(rest("new", other), 0)  # the loop is not awake: it is not sent
    other.shared._outbox.lift(["old"])
    other.shared._learn(0, 1, [])
    assert other.places == ["new"]


async def test_a_longer_rest_is_not_shortened(url: str, prefix: str, join: Join) -> None:
    one, other = [await join(url, prefix=prefix, timeout=5.0) for _ in range(2)]
    long, short = rest("place", one, 60, count=1), rest("place", other, 5, count=4)
    one.shared.rest(long)
    await until(lambda: other.rests == [long])
    other.shared.rest(short)
    await until(lambda: one.rests[0].count == 4)
    assert one.rests[0].until == long.until


async def test_a_rest_that_is_over_is_over_everywhere(url: str, prefix: str, join: Join) -> None:
    node = await join(url, prefix=prefix, timeout=5.0)
    node.shared.rest(rest("place", node, 3))
    await until(lambda: node.places == ["place"])
    await until(lambda: not node.places)
    assert await node.shared.claim(["place"], []) is None


async def test_one_probes_and_the_others_wait(url: str, prefix: str, join: Join) -> None:
    one, other = [await join(url, prefix=prefix, timeout=5.0) for _ in range(2)]
    asked = [node.shared.claim([], [], probe="p") for node in (one, other) for _ in range(10)]
    denials = [denial for denial in await asyncio.gather(*asked) if denial]
    assert len(denials) == 19
    assert all(denial.name == "p" and 140 < denial.wait <= 150 for denial in denials)
    one.shared.lift(["p"])
    await until(lambda: not one.shared._outbox)
    await one.shared.snapshot()
    assert await other.shared.claim([], [], probe="p", probe_ms=3000) is None
    assert await one.shared.claim([], [], probe="p") is not None
    async with soon():
        while await one.shared.claim([], [], probe="p") is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_a_settlement_corrects_the_claim_and_never_goes_below_zero(
    url: str, prefix: str, join: Join
) -> None:
    node = await join(url, prefix=prefix, timeout=5.0)
    grants = Grants()
    day = time.time_ns() // 1_000_000 - 1000
    claims = [window(1000, 100), WindowClaim("day", 1000, 86_400, 100, day)]
    assert await node.shared.claim([], claims, counted=grants) is None
    assert grants.used == [[100, 100]]
    for difference, left in ((-70, 30), (15, 45), (-99, 0)):
        node.shared.settle("requests", 60, None, difference, grants.at[0])
        node.shared.settle("day", 86_400, day, difference, grants.at[0])
        assert (await node.shared.snapshot())[1] == {"requests": left, "day": left}


async def test_who_was_not_counted_by_the_server_is_not_told_a_moment(
    url: str, prefix: str, join: Join, server: Server
) -> None:
    grants = Grants()
    node = await join(url, prefix=prefix, timeout=5.0)
    assert await node.shared.claim([], [window(1)], counted=grants) is None
    assert len(grants.at) == 1
    assert await node.shared.claim([], [window(1)], counted=grants) is not None
    server.kill()
    node = await join(server.url, prefix=prefix)
    assert await node.shared.claim([], [window(1)], counted=grants) is None
    assert len(grants.at) == 1


async def test_nodes_are_counted_and_one_that_closes_is_gone(
    url: str, prefix: str, join: Join
) -> None:
    one, other = await join(url, prefix=prefix, timeout=5.0), Node(url, prefix=prefix, timeout=5.0)
    assert one.shared.nodes == 1
    await other.shared.open()
    assert other.shared.nodes == 2
    await until(lambda: one.shared.nodes == 2)
    await other.shared.close()
    await one.shared.snapshot()
    assert one.shared.nodes == 1
    assert abs(one.shared.offset_ms) < 1000


async def test_a_server_that_stops_answering_costs_one_wait_and_comes_back_by_itself(
    server: Server, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tollkeeper")
    one, other = [await join(server.url, timeout=0.2) for _ in range(2)]
    await until(lambda: one.shared.nodes == 2)
    server.freeze()
    async with soon():
        claims = [one.shared.claim([], [window(1)]) for _ in range(300)]
        assert set(await asyncio.gather(*claims)) == {None}
    assert one.away == [2]
    assert not one.shared.available
    async with soon():
        for _ in range(300):
            assert await one.shared.claim([], [window(1)]) is None
    one.shared.rest(rest("place", one))
    await until(lambda: other.away)
    server.thaw()
    await until(lambda: one.back and other.places == ["place"])
    assert one.shared.available
    assert one.away == [2]
    said = [(r.levelname, r.getMessage()) for r in caplog.records]
    assert len([1 for level, _ in said if level == "WARNING"]) == 2
    assert len([1 for level, text in said if level == "INFO" and "is back" in text]) >= 1


async def test_a_server_that_is_killed_and_started_again_is_told_what_rests(
    server: Server, join: Join
) -> None:
    node = await join(server.url)
    kept = rest("place", node)
    node.shared.rest(kept)
    await until(lambda: node.places == ["place"])
    server.kill()
    async with soon():
        assert await node.shared.claim(["place"], [window(1)]) is None
    assert node.away == [1]
    node.shared.rest(rest("new", node))
    server.start()
    await until(lambda: node.back)
    await until(lambda: node.places == ["new", "place"])
    denial = await node.shared.claim(["place"], [])
    assert denial is not None
    assert denial.rest == kept


async def test_a_server_that_forgets_everything_goes_on(server: Server, join: Join) -> None:
    one, other = [await join(server.url, timeout=5.0) for _ in range(2)]
    one.shared.rest(rest("place", one))
    await until(lambda: other.places == ["place"])
    async with Redis.from_url(server.url) as redis:
        await redis.flushall()
        await redis.script_flush()
    assert await one.shared.claim(["place"], [window(1)]) is None
    assert await other.shared.claim(["place"], [window(1)]) is not None
    await until(lambda: not one.places and not other.places)
    await until(lambda: one.shared.nodes == 2)
    assert not one.away


async def test_where_no_server_is_it_begins_away_and_is_back_when_one_comes(
    server: Server, join: Join
) -> None:
    server.kill()
    async with soon():
        node = await join(server.url)
    assert node.away == [1]
    assert await node.shared.claim(["place"], [window(1)]) is None
    assert await node.shared.snapshot() == ([], {})
    server.start()
    await until(lambda: node.back)
    assert node.shared.available


async def test_a_frozen_server_hangs_neither_open_nor_close(server: Server) -> None:
    early = Node(server.url)
    await early.shared.open()
    server.freeze()
    late = Node(server.url)
    async with soon():
        await late.shared.open()
        await late.shared.close()
        await early.shared.close()
    assert late.away == [1]
    assert early.away == []


async def test_no_connection_is_left_behind(server: Server) -> None:
    node = Node(server.url)
    await node.shared.open()
    server.freeze()
    assert await node.shared.claim(["place"], []) is None
    await node.shared.close()
    server.thaw()
    async with Redis.from_url(server.url) as redis:
        async with asyncio.timeout(10):
            while len(await redis.client_list()) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_wrong_password_is_a_server_that_is_away_and_is_never_shown(
    join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    with private_server("--requirepass", "right-one") as server:
        wrong = server.url.replace("//", "//:wrong-one@")
        node = await join(wrong)
        assert node.away == [1]
        assert "AuthenticationError" in caplog.text
        assert "wrong-one" not in caplog.text + repr(node.shared)
        right = await join(server.url.replace("//", "//:right-one@"))
        assert right.shared.available


@pytest.mark.parametrize(
    "url",
    ["http://:secret@127.0.0.1", "redis://:secret:secret@127.0.0.1:x", "redis://h?secret=1", ""],
)
def test_what_is_no_address_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError, match="not the address of a Redis server") as caught:
        Node(url)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


async def test_a_client_that_leaves_takes_nobody_with_it(url: str, prefix: str, join: Join) -> None:
    node = await join(url, prefix=prefix, timeout=5.0)
    tasks = [asyncio.create_task(node.shared.claim([], [window(90)])) for _ in range(60)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [answer for answer in answers[1::2] if answer is not None] == []
    assert not node.shared._turns._waiting
    await until_counted(node, 30)  # what was on its way was counted, and is given back


async def until_counted(node: Node, number: int) -> None:
    async with asyncio.timeout(20):
        while (await node.shared.snapshot())[1].get("requests", 0) != number:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", range(10))
async def test_of_many_that_ask_and_leave_no_more_are_let_in_than_there_is_room_for(
    url: str, prefix: str, join: Join, seed: int
) -> None:
    node, choose = await join(url, prefix=prefix, timeout=5.0), random.Random(seed)
    let_in: list[int] = []

    async def call(number: int) -> None:
        if await node.shared.claim([], [window(5, seconds=86_400)]) is None:
            let_in.append(number)

    tasks = [asyncio.create_task(call(number)) for number in range(200)]
    await asyncio.sleep(choose.random() * 0.003)
    for number in choose.sample(range(200), 100):
        tasks[number].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(let_in) <= 5
    await until_counted(node, len(let_in))


async def test_who_leaves_as_it_takes_a_slot_gives_it_back(
    url: str, prefix: str, join: Join
) -> None:
    node = await join(url, prefix=prefix, timeout=5.0)
    for number in range(20):
        task = asyncio.create_task(node.shared.hold("s", 1, f"t{number}"))
        await asyncio.sleep(0 if number % 2 else 0.0005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled():
            node.shared.free("s", f"t{number}")
    async with asyncio.timeout(20):
        while not await node.shared.hold("s", 1, "last"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_every_key_ends_by_itself(url: str, prefix: str, join: Join, redis: Redis) -> None:
    node = await join(url, prefix=prefix, timeout=5.0)
    claims = [window(9), WindowClaim("day", 9, 86_400, 1, time.time_ns() // 1_000_000)]
    await node.shared.claim(["place"], claims, probe="p")
    node.shared.settle("other", 60, None, 5, time.time_ns() // 1_000_000)
    node.shared.rest(rest("place", node))
    await until(lambda: node.places)
    keys = await keys_of(redis, prefix)
    assert len(keys) == 7
    assert [key for key in keys if await redis.pttl(key) < 0] == []


async def test_while_the_server_is_away_the_queues_stay_bounded(server: Server) -> None:
    server.kill()
    node = Node(server.url)
    await node.shared.open()
    for number in range(outbox.SETTLEMENTS + 9):
        node.shared.rest(rest(f"place-{number}", node, 60))
        node.shared.lift([f"lifted-{number}"])
        node.shared.settle("w", 60, None, 1, 1)
    box = node.shared._outbox
    assert len(box._own) == len(box._unsent) == len(box._lifts) == outbox.PLACES
    assert len(box._offs) == outbox.SETTLEMENTS
    server.start()
    loop = asyncio.create_task(node.shared.run())
    await until(lambda: node.back and not box, 30)
    assert len(node.places) == outbox.PLACES
    loop.cancel()
    await node.shared.close()


async def test_all_nodes_show_the_newest_rows_of_all(url: str, prefix: str, join: Join) -> None:
    one, other = [await join(url, prefix=prefix, timeout=5.0) for _ in range(2)]
    one.shared.row(b"first")
    assert await one.shared.newest() == [b"first"]
    for number in range(calls.NEWEST + 10):
        other.shared.row(b"%d" % number)
        if number % 500 == 0:
            await other.shared.newest()
    await until(lambda: not other.shared._outbox)
    rows = await one.shared.newest()
    assert rows is not None
    assert (rows[0], rows[-1], len(rows)) == (b"1009", b"10", calls.NEWEST)
    assert rows == await other.shared.newest()


async def test_without_a_server_nobody_knows_the_newest_rows(server: Server, join: Join) -> None:
    node = await join(server.url)
    node.shared.row(b"told")
    assert await node.shared.newest() == [b"told"]
    server.kill()
    assert await node.shared.newest() is None
    node.shared.row(b"lost")
    assert await node.shared.newest() is None


async def test_two_nodes_together_hold_no_more_than_there_are_slots(
    url: str, prefix: str, join: Join
) -> None:
    nodes = [await join(url, prefix=prefix, timeout=5.0) for _ in range(2)]
    tokens = [(node.shared, node.shared.token()) for node in nodes for _ in range(20)]
    held = await asyncio.gather(*[shared.hold("s", 7, token) for shared, token in tokens])
    assert sum(held) == 7
    free, token = next(each for each, granted in zip(tokens, held, strict=True) if granted)
    other = next(node.shared for node in nodes if node.shared is not free)
    free.free("s", token)
    assert await free.hold("s", 7, free.token())  # at once, where it was freed
    assert not await other.hold("s", 7, other.token())


async def test_where_no_server_is_nobody_asks_for_a_slot(server: Server, join: Join) -> None:
    node = await join(server.url, timeout=5.0)
    token = node.shared.token()
    assert await node.shared.hold("s", 1, token)
    server.kill()
    assert await node.shared.hold("s", 1, node.shared.token())
    assert not node.shared.available
    node.shared.free("s", token)
    assert await node.shared.hold("s", 1, node.shared.token())
