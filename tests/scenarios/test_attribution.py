"""Who spends what: each call's row says whom it was for, and the statistics add up by that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from tests.gateway import Gateway, lab
from tests.store.databases import REACHABLE
from tests.upstream import Upstream, completion, error

DEAR, CHEAP, BOTH = 0.013, 0.0012, 0.0142
"""Dollars of a call of each model (1,000 tokens in, 100 out), and of two."""


@pytest.fixture(params=REACHABLE)
async def gateway(
    request: pytest.FixtureRequest,
    upstream: Upstream,
    start: Callable[..., Awaitable[Gateway]],
) -> Gateway:
    upstream.script = completion("Hi", 1000, 100)
    upstream.by_model["down"] = error(500, "out of order")
    config = {
        "auth": {"master_key": "tk-master-of-who-spends-what"},
        "providers": {"lab": lab(upstream.url)},
        "prices": {
            "lab/dear": {"input": 10.0, "output": 30.0},
            "lab/json": {"input": 1.0, "output": 2.0},
        },
    }
    return await start(config, None, request.param)


async def let_in(gateway: Gateway, name: str, *tags: str) -> tuple[str, str]:
    """The id and the key of a new client."""
    answer = await gateway.client.post("/admin/keys", json={"name": name, "tags": tags})
    made = answer.json()
    return made["id"], made["key"]


async def ask(gateway: Gateway, key: str, model: str, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", **more.pop("headers", {})}
    return await gateway.chat(f"lab/{model}", headers=headers, **more)


async def groups(gateway: Gateway, *by: str, **more: Any) -> list[dict[str, Any]]:
    answer = await gateway.client.get("/stats/groups", params={"group_by": by, **more})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def spent(groups: list[dict[str, Any]], *by: str) -> dict[Any, tuple[int, Any]]:
    return {
        "other" if group["other"] else tuple(group[name] for name in by): (
            group["requests"],
            group["cost_usd"],
        )
        for group in groups
    }


async def test_each_row_says_whom_it_was_for_and_the_groups_add_up_to_all_rows(
    gateway: Gateway,
) -> None:
    ann, anns = await let_in(gateway, "ann", "team-a")
    bo, bos = await let_in(gateway, "bo")
    chat = {"X-OpenWebUI-User-Id": "web-1", "X-Session-Id": "s-1", "X-Agent-Name": "planner"}
    await ask(gateway, anns, "dear", headers=chat, user="ignored", metadata={"tags": ["batch"]})
    await ask(gateway, anns, "json", user="u-7")
    await ask(gateway, bos, "json", headers={"X-User-Id": "u-7", "X-Tags": "batch, batch"})
    await ask(gateway, bos, "down", safety_identifier="u-8")
    await gateway.rows(4)
    who = "client_id, user_id, tags, session_id, agent_name"
    assert [
        tuple(row.values())
        for row in gateway.select(f"SELECT {who} FROM api_calls ORDER BY timestamp, id")
    ] == [
        (ann, "web-1", '["team-a","batch"]', "s-1", "planner"),
        (ann, "u-7", '["team-a"]', None, None),
        (bo, "u-7", '["batch"]', None, None),
        (bo, "u-8", None, None, None),
    ]
    assert spent(await groups(gateway, "client"), "client") == {
        (ann,): (2, BOTH),
        (bo,): (2, CHEAP),
    }
    assert spent(await groups(gateway, "user", top=1), "user") == {
        ("web-1",): (1, DEAR),
        "other": (3, 2 * CHEAP),
    }
    assert spent(await groups(gateway, "tag", "client"), "tag", "client") == {
        ("team-a", ann): (2, BOTH),
        ("batch", ann): (1, DEAR),
        ("batch", bo): (1, CHEAP),
        (None, bo): (1, 0.0),
    }
    found = await groups(gateway, "model", user="u-7", tag=["batch", "team-a"])
    assert spent(found, "model") == {("json",): (2, 2 * CHEAP)}
    calls = (await gateway.client.get("/stats/calls", params={"session": "s-1"})).json()["data"]
    assert [(call["user_id"], call["tags"]) for call in calls] == [("web-1", ["team-a", "batch"])]


async def test_a_client_sees_nothing_of_whom_others_call_for(gateway: Gateway) -> None:
    _, key = await let_in(gateway, "ann")
    own = {"authorization": f"Bearer {key}"}
    for path in ("/stats/groups", "/stats?user=u-7", "/stats/calls?tag=batch"):
        assert (await gateway.client.get(path, headers=own)).status_code == 403


async def test_a_call_that_is_refused_has_its_user_too(gateway: Gateway) -> None:
    answer = await gateway.client.post(
        "/v1/chat/completions", content=b"{", headers={"X-User-Id": "ann", "X-Tags": "batch"}
    )
    assert answer.status_code == 400
    row = await gateway.row()
    assert (row["status"], row["user_id"], row["tags"]) == ("rejected", "ann", '["batch"]')
