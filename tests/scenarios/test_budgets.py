"""Budgets: what is used up refuses or tells, and the ledger agrees with the rows."""

from __future__ import annotations

import asyncio
import collections
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from proxy import ledger, spending
from proxy.budget import Budget
from proxy.clock import now_ms
from proxy.ledger import LEASE_SECONDS
from proxy.store.engine import Store
from proxy.store.leases import LeaseTable
from tests.gateway import Gateway, lab, running
from tests.process import CHAT, Process, process
from tests.scenarios.views import until
from tests.store.databases import REACHABLE, address, create, drop, migrated
from tests.upstream import Upstream, answer, completion

Start = Callable[..., Awaitable[Gateway]]
MASTER = "tk-master-of-this-house"
CALL_USD = 0.0001
"""What each call costs, and is estimated to: 100 tokens at a dollar a million."""


@pytest.fixture(autouse=True)
def _answers(upstream: Upstream) -> None:
    upstream.script = completion("Hi", prompt=9, output=100)


def configuration(upstream: Upstream, *budgets: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "providers": {"lab": lab(upstream.url), "other": lab(upstream.url)},
        "models": {"fast": {"targets": ["lab/json", "other/json"]}},
        "prices": {
            "lab/json": {"input": 0, "output": 1.0},
            "other/json": {"input": 0, "output": 1.0},
            "lab/free": {"input": 0, "output": 0},
        },
        "budgets": list(budgets),
        **more,
    }


def budget(calls: float, **more: Any) -> dict[str, Any]:
    """A budget for so many calls."""
    return {"name": "team", "limit_usd": calls * CALL_USD, "period": "day", **more}


async def ask(gateway: Gateway, model: str = "lab/json", **more: Any) -> httpx.Response:
    return await gateway.chat(model, **{"max_tokens": 100, **more})


async def status(gateway: Gateway) -> int:
    """What a call on a connection of its own is answered with: httpx is slow with hundreds."""
    body = {"model": "lab/json", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
    line = await gateway.dial(body, "connection: close")
    return int((await line.rest()).split(b" ", 2)[1])


async def audit(gateway: Gateway, name: str = "team") -> dict[str, Any]:
    """The audit, once every row is there."""
    answer = await gateway.client.get(f"/stats/budgets/{name}/audit")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert found["difference_usd"] == 0
    return found


async def settled(gateway: Gateway, calls: int) -> None:
    await gateway.rows(calls, "SELECT id FROM api_calls WHERE status = 'success'")


async def test_a_thousand_calls_at_once_on_a_budget_for_ten_are_ten(
    upstream: Upstream, start: Start
) -> None:
    gateway = await start(configuration(upstream, budget(10)))
    answers = await asyncio.gather(*[status(gateway) for _ in range(1000)])
    assert collections.Counter(answers) == {200: 10, 429: 990}
    assert len([each for each in upstream.requests if each.method == "POST"]) == 10
    await settled(gateway, 10)
    assert (await audit(gateway))["spent_usd"] == pytest.approx(10 * CALL_USD)


async def test_a_hard_budget_that_is_used_up_refuses_and_asks_nobody(
    upstream: Upstream, start: Start
) -> None:
    gateway = await start(configuration(upstream, budget(2)))
    assert [(await ask(gateway)).status_code for _ in range(2)] == [200, 200]
    asked = len(upstream.requests)
    answer = await ask(gateway)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (429, "insufficient_quota")
    assert error["code"] == "insufficient_quota"
    assert answer.headers["x-should-retry"] == "false"
    assert "'team'" in error["message"]
    assert "$0.00 is left" in error["message"]
    row = await gateway.attempt(answer.headers["x-request-id"])
    assert (row["status"], row["error_reason"]) == ("rejected", "quota_exceeded")
    assert (await ask(gateway, "lab/free")).status_code == 200  # what costs nothing goes on
    assert len(upstream.requests) == asked + 1
    shown = (await gateway.client.get("/stats/budgets")).json()["data"]
    assert [(each["id"], each["remaining_usd"]) for each in shown] == [("team", 0)]
    (event,) = await gateway.rows(1, "SELECT * FROM custom_events")
    assert (event["name"], event["value"]) == ("budget_used_up", 2 * CALL_USD)


@pytest.mark.parametrize(
    "asked", [{"max_completion_tokens": 0}, {"max_tokens": 0}, {"max_tokens": 0, "prompt": ""}]
)
async def test_no_way_of_asking_makes_a_call_look_free(
    asked: dict[str, Any], upstream: Upstream, start: Start
) -> None:
    gateway = await start(configuration(upstream, budget(2)))
    body = {"model": "lab/json", "prompt": "hi", "max_tokens": 100, **asked}
    statuses = []
    for _ in range(30):
        answer = await gateway.client.post("/v1/completions", json=body)
        statuses.append(answer.status_code)
        await settled(gateway, statuses.count(200))
    assert statuses[-1] == 429, statuses


async def test_a_key_that_is_paid_for_is_paid_of_the_budget(
    upstream: Upstream, start: Start
) -> None:
    config = configuration(upstream, budget(2))
    keys = [{"name": "paid", "value": "sk-paid", "free_tier": False}]
    config["providers"]["lab"] |= {"free_tier": True, "keys": keys}
    gateway = await start(config)
    assert [(await ask(gateway)).status_code for _ in range(3)] == [200, 200, 429]


async def test_what_a_burst_did_not_need_is_there_for_another_gateway_at_once(
    upstream: Upstream, start: Start, tmp_path: Path
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/calls.db"
    config = configuration(upstream, budget(1000), telemetry={"database_url": url})
    one, two = await start(config), await start(config)
    assert (await ask(one, max_tokens=100_000)).status_code == 200  # reserves all
    begin, statuses = time.monotonic(), [429]
    while statuses[-1] == 429 and time.monotonic() < begin + 10:
        statuses.append((await ask(two)).status_code)
        await ask(one, max_tokens=100)  # it stays busy
    assert statuses[-1] == 200, statuses


async def test_a_soft_budget_that_is_used_up_tells_and_goes_on(
    upstream: Upstream, start: Start
) -> None:
    gateway = await start(configuration(upstream, budget(2, mode="soft")))
    answers = [await ask(gateway) for _ in range(4)]
    assert {answer.status_code for answer in answers} == {200}
    told = [answer.headers.get("x-tollkeeper-budget") for answer in answers]
    assert told[:2] == [None, None]
    assert all(each.startswith("team; used=0.000") for each in told[2:])
    await settled(gateway, 4)
    assert (await audit(gateway))["spent_usd"] == pytest.approx(4 * CALL_USD)
    assert (await gateway.client.get("/stats/budgets/team")).json()["state"] == "used_up"
    assert len(gateway.select("SELECT * FROM custom_events")) == 1


@pytest.mark.parametrize("kind", REACHABLE)
async def test_two_gateways_on_one_database_spend_one_budget(
    kind: str, upstream: Upstream, tmp_path: Path
) -> None:
    name = await create(migrated(kind)) if kind == "postgresql" else ""
    url = address(name) if name else f"sqlite+aiosqlite:///{tmp_path}/calls.db"
    config = configuration(upstream, budget(25), telemetry={"database_url": url})
    async with AsyncExitStack() as stack:
        if name:
            stack.push_async_callback(drop, name)
        gateways = []
        for each in ("one", "two"):
            folder = tmp_path / each
            folder.mkdir()
            gateway = await stack.enter_async_context(running(folder, config))
            gateway.database = name or tmp_path / "calls.db"
            gateways.append(gateway)
        answers = await asyncio.gather(*[status(each) for each in gateways for _ in range(50)])
        assert collections.Counter(answers) == {200: 25, 429: 75}
        await settled(gateways[0], 25)
        assert (await audit(gateways[1]))["spent_usd"] == pytest.approx(25 * CALL_USD)


async def test_a_provider_whose_budget_is_used_up_is_passed_over(
    upstream: Upstream, start: Start
) -> None:
    own = budget(1, scope="provider", value="lab")
    gateway = await start(configuration(upstream, own))
    answers = [await ask(gateway, "fast") for _ in range(3)]
    served = [answer.headers["x-tollkeeper-provider"] for answer in answers]
    assert served == ["lab", "other", "other"]
    assert (await ask(gateway)).status_code == 429
    await settled(gateway, 3)
    assert (await audit(gateway))["calls"] == 1


async def test_a_client_spends_its_own_budget_and_no_others(
    upstream: Upstream, start: Start
) -> None:
    gateway = await start(configuration(upstream, auth={"master_key": MASTER}))

    async def let_in(name: str, **more: Any) -> tuple[str, dict[str, str]]:
        answer = await gateway.client.post("/admin/keys", json={"name": name, **more})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"], {"authorization": f"Bearer {answer.json()['key']}"}

    own = {"limit_usd": 2 * CALL_USD, "period": "24h"}
    ann, by_ann = await let_in("ann", budgets=[own])
    _, by_bo = await let_in("bo")
    assert [(await ask(gateway, headers=by_ann)).status_code for _ in range(3)] == [200, 200, 429]
    assert (await ask(gateway, headers=by_bo)).status_code == 200
    await settled(gateway, 3)
    found = await audit(gateway, f"{ann}-1")
    assert (found["calls"], found["spent_usd"]) == (2, pytest.approx(2 * CALL_USD))
    own_view = (await gateway.client.get("/v1/key", headers=by_ann)).json()["data"]
    assert (own_view["limit"], own_view["limit_remaining"]) == (2 * CALL_USD, 0)
    assert own_view["limit_reset"].endswith(":00:00.000Z")
    others = (await gateway.client.get("/v1/key", headers=by_bo)).json()["data"]
    assert (others["limit"], others["limit_remaining"], others["limit_reset"]) == (None,) * 3
    (shown,) = (await gateway.client.get(f"/admin/keys/{ann}")).json()["budgets"]
    assert (shown["limit_usd"], shown["period"], shown["mode"]) == (2 * CALL_USD, "24h", "hard")
    bad = {"name": "cy", "budgets": [{"limit_usd": -1, "period": "day"}]}
    assert (await gateway.client.post("/admin/keys", json=bad)).status_code == 422
    denied = await gateway.client.get("/stats/budgets", headers=by_ann)
    assert denied.status_code == 403


async def test_a_call_over_a_limit_does_not_come_to_the_budget(
    upstream: Upstream, start: Start
) -> None:
    gateway = await start(configuration(upstream, auth={"master_key": MASTER}))
    terms = {"limits": {"rpm": 1}, "budgets": [{"limit_usd": CALL_USD, "period": "day"}]}
    made = (await gateway.client.post("/admin/keys", json={"name": "ann", **terms})).json()
    by_ann = {"authorization": f"Bearer {made['key']}"}
    answers = [await ask(gateway, headers=by_ann) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].json()["error"]["code"] == "rate_limit_exceeded"
    await gateway.client.patch(f"/admin/keys/{made['id']}", json={"limits": {}})
    late = await ask(gateway, headers=by_ann)
    assert (late.status_code, late.json()["error"]["code"]) == (429, "insufficient_quota")


async def test_a_user_and_a_tag_spend_their_own_budgets_and_no_others(
    upstream: Upstream, start: Start
) -> None:
    of_ann = budget(2, name="ann", scope="user", value="ann")
    nightly = budget(3, name="jobs", scope="tag", value="nightly", period="24h")
    gateway = await start(configuration(upstream, of_ann, nightly))
    by_ann, by_job = {"x-user-id": "ann"}, {"x-tags": "team-a, nightly"}
    answers = [await ask(gateway, headers=by_ann), await ask(gateway, user="ann")]
    answers += [await ask(gateway, headers=by_ann), await ask(gateway, user="bo")]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 200]
    assert "'ann'" in answers[2].json()["error"]["message"]
    answers = [await ask(gateway, headers=by_job) for _ in range(3)]
    answers += [await ask(gateway, headers=by_job), await ask(gateway, metadata={"tags": "x"})]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 200]
    await settled(gateway, 7)
    assert (await audit(gateway, "ann"))["calls"] == 2
    assert (await audit(gateway, "jobs"))["calls"] == 3
    listed = (await gateway.client.get("/stats/budgets")).json()["data"]
    assert [(each["scope"], each["value"], each["state"]) for each in listed] == [
        ("user", "ann", "used_up"),
        ("tag", "nightly", "used_up"),
    ]


async def test_a_model_without_a_price_is_refused_unless_that_is_allowed(
    upstream: Upstream, start: Start
) -> None:
    strict = await start(configuration(upstream, budget(5)))
    answer = await ask(strict, "lab/unheard-of")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_unpriced")
    lenient = await start(configuration(upstream, budget(5, unpriced="allow")))
    assert (await ask(lenient, "lab/unheard-of")).status_code == 200
    await settled(lenient, 1)
    found = await audit(lenient)
    assert (found["spent_usd"], found["unpriced_calls"]) == (0, 1)


async def test_what_was_spent_before_there_was_a_budget_counts(
    upstream: Upstream, tmp_path: Path
) -> None:
    async with running(tmp_path, configuration(upstream)) as gateway:
        assert [(await ask(gateway)).status_code for _ in range(3)] == [200] * 3
        await settled(gateway, 3)
    async with running(tmp_path, configuration(upstream, budget(4))) as gateway:
        assert [(await ask(gateway)).status_code for _ in range(2)] == [200, 429]
        await settled(gateway, 4)
        assert (await audit(gateway))["spent_usd"] == pytest.approx(4 * CALL_USD)


@pytest.mark.parametrize("forgotten", [False, True])
async def test_a_budget_that_was_away_knows_what_was_spent_meanwhile(
    forgotten: bool, upstream: Upstream, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forgotten:
        monkeypatch.setattr(spending, "FORGET_SECONDS", 0.05)
        monkeypatch.setattr(ledger, "LEASE_SECONDS", 0.5)
        monkeypatch.setattr(ledger, "_EARLY", 0.3)
    gateway = await start(configuration(upstream, budget(5)))
    file = gateway.database.parent / "tollkeeper.yaml"
    whole = file.read_text()
    assert (await ask(gateway)).status_code == 200
    await settled(gateway, 1)
    settings = yaml.safe_load(whole)
    file.write_text(yaml.safe_dump({**settings, "budgets": []}))
    assert (await gateway.client.post("/admin/reload")).status_code == 200
    assert (await ask(gateway)).status_code == 200
    await settled(gateway, 2)
    if forgotten:
        await until(lambda: not gateway.select("SELECT * FROM budget_windows"))
    file.write_text(whole)
    assert (await gateway.client.post("/admin/reload")).status_code == 200
    assert (await ask(gateway)).status_code == 200
    await settled(gateway, 3)
    found = await audit(gateway)
    assert (found["calls"], found["spent_usd"]) == (3, pytest.approx(3 * CALL_USD))


async def test_what_a_gateway_spends_that_does_not_know_the_budget_counts(
    upstream: Upstream, start: Start, tmp_path: Path
) -> None:
    """As one does not in the half second before it hears of a client's, or before its reload."""
    url = f"sqlite+aiosqlite:///{tmp_path}/calls.db"
    telemetry = {"telemetry": {"database_url": url}}
    one = await start(configuration(upstream, budget(5), **telemetry))
    other = await start(configuration(upstream, **telemetry))
    assert (await ask(one)).status_code == 200
    assert [(await ask(other)).status_code for _ in range(4)] == [200] * 4
    while (found := await audit(one))["calls"] < 5:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    assert found["spent_usd"] == pytest.approx(5 * CALL_USD)
    assert (await ask(one)).status_code == 429


async def test_what_a_provider_does_not_tell_the_cost_of_is_held_for_nobody(
    upstream: Upstream, start: Start
) -> None:
    gateway = await start(configuration(upstream, budget(3)))
    upstream.script = answer(200, b'{"choices": [], "usage": {"total_tokens": 21}}')
    for _ in range(4):
        assert (await ask(gateway)).status_code == 200
    await settled(gateway, 4)
    upstream.script = completion("Hi", prompt=9, output=100)
    assert [(await ask(gateway)).status_code for _ in range(4)] == [200, 200, 200, 429]
    await settled(gateway, 7)
    found = await audit(gateway)
    assert (found["unpriced_calls"], found["spent_usd"]) == (4, pytest.approx(3 * CALL_USD))


async def test_what_nobody_uses_is_given_back(
    upstream: Upstream, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "RENEW_SECONDS", 0.02)
    gateway = await start(configuration(upstream, budget(1000)))
    assert (await ask(gateway)).status_code == 200
    free = "SELECT 1 FROM budget_leases WHERE amount_nano > 0 AND amount_nano = spent_nano"
    await gateway.rows(1, free)
    (shown,) = (await gateway.client.get("/stats/budgets")).json()["data"]
    assert (shown["reserved_usd"], shown["spent_usd"]) == (0, pytest.approx(CALL_USD))


async def test_a_call_that_is_tracked_counts_too(upstream: Upstream, start: Start) -> None:
    gateway = await start(configuration(upstream, budget(2)))
    told = {"provider": "lab", "model": "json", "status": "success", "cost_usd": 2 * CALL_USD}
    assert (await ask(gateway)).status_code == 200
    assert (await gateway.client.post("/track/inference", json=told)).status_code == 201
    await gateway.rows(2, "SELECT id FROM api_calls")
    assert (await audit(gateway))["spent_usd"] == pytest.approx(3 * CALL_USD)
    assert (await ask(gateway)).status_code == 429


@pytest.mark.sqlite
async def test_without_its_database_a_hard_budget_uses_up_what_is_leased_and_then_refuses(
    upstream: Upstream, start: Start
) -> None:
    gateway = await start(configuration(upstream, budget(300)))
    assert (await ask(gateway)).status_code == 200  # and a hundredth is leased beyond: 3 calls
    await settled(gateway, 1)
    connection = sqlite3.connect(gateway.database, isolation_level=None, check_same_thread=False)
    with closing(connection) as other:
        await asyncio.to_thread(other.execute, "BEGIN IMMEDIATE")  # it may have to wait
        assert [(await ask(gateway)).status_code for _ in range(4)] == [200, 200, 200, 503]
        other.execute("ROLLBACK")
    for _ in range(200):
        if (answer := await ask(gateway)).status_code == 200:
            break
        assert answer.json()["error"]["code"] == "budget_unavailable"
        await asyncio.sleep(0.02)
    await settled(gateway, 5)
    assert (await audit(gateway))["spent_usd"] == pytest.approx(5 * CALL_USD)


@pytest.mark.sqlite
@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.soak)])
async def test_a_gateway_that_is_killed_leaves_nothing_reserved(
    rounds: int, upstream: Upstream, tmp_path: Path
) -> None:
    more = {
        "budgets": [budget(10**6)],
        "prices": {"lab/json": {"input": 0, "output": 1.0}},
    }
    team = Budget("team", "team", round(10**6 * CALL_USD * 10**9), "day")
    store = Store(f"sqlite+aiosqlite:///{tmp_path}/calls.db")
    table = LeaseTable(store)

    async def load(gateway: Process, busy: asyncio.Event) -> None:
        with suppress(OSError, AssertionError):  # it is gone
            while True:
                line = await gateway.dial({"model": "lab/json", "max_tokens": 100, **CHAT})
                try:
                    await line.until(b"usage")
                    busy.set()
                finally:
                    await line.hang_up()

    for _ in range(rounds):
        async with process(tmp_path, upstream, **more) as gateway:
            busy = asyncio.Event()
            clients = [asyncio.create_task(load(gateway, busy)) for _ in range(8)]
            await asyncio.wait_for(busy.wait(), 20)
            await asyncio.sleep(random.uniform(0.05, 0.3))
            await gateway.killed()
            await asyncio.gather(*clients)
        await store.open()
        now = now_ms()
        assert (await table.standing(team, now)).leased > 0
        assert (await table.standing(team, now + round(LEASE_SECONDS * 1000))).leased == 0
    made = len([each for each in upstream.requests if each.method == "POST"])
    async with running(tmp_path, configuration(upstream)) as gateway:  # takes in what is left
        await gateway.rows(made, "SELECT id FROM api_calls WHERE is_final")
        found = await table.audit(team, now_ms())
        assert found.spent == found.recomputed > 0
    await store.close()


@pytest.mark.sqlite
@pytest.mark.soak
async def test_four_workers_spend_one_budget(upstream: Upstream, tmp_path: Path) -> None:
    more = {"budgets": [budget(25)], "prices": {"lab/json": {"input": 0, "output": 1.0}}}

    async def one(gateway: Process) -> int:
        line = await gateway.dial({"model": "lab/json", "max_tokens": 100, **CHAT})
        status = int((await line.until(b"\r\n")).split(b" ", 2)[1])
        await line.hang_up()
        return status

    async with process(tmp_path, upstream, workers=4, **more) as gateway:
        answers = await asyncio.gather(*[one(gateway) for _ in range(300)])
    assert collections.Counter(answers) == {200: 25, 429: 275}
