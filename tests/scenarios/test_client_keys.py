"""Clients with keys of their own: who comes in, what it may ask for, and what it sees."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from proxy import clientele
from proxy.config import load
from proxy.errors import ConfigError
from proxy.keys import new_client
from tests.gateway import Gateway, lab, running
from tests.upstream import Upstream, completion, upstream_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

MASTER = "tk-master-of-this-house"
Whole = tuple[Gateway, Upstream]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with upstream_server() as upstream:
        config = {
            "auth": {"master_key": MASTER},
            "providers": {"lab": lab(upstream.url), "other": lab(upstream.url)},
            "models": {"fast": {"targets": ["lab/json", "other/json"]}},
            "prices": {"lab/json": {"input": 1.0, "output": 2.0}},
        }
        async with running(tmp_path_factory.mktemp("clients"), config) as gateway:
            yield gateway, upstream


@pytest.fixture
def gateway(whole: Whole) -> Gateway:
    whole[1].reset()
    whole[1].script = completion("Hi")
    return whole[0]


async def let_in(gateway: Gateway, name: str = "ann", **more: Any) -> dict[str, Any]:
    answer = await gateway.client.post("/admin/keys", json={"name": name, **more})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def by(
    gateway: Gateway, key: str | None, method: str, path: str, **more: Any
) -> httpx.Response:
    """A request with another key than the gateway's master."""
    headers = {"authorization": f"Bearer {key}" if key else "none"}
    return await gateway.client.request(method, path, headers=headers, **more)


async def ask(gateway: Gateway, key: str | None, model: str = "lab/json") -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    return await by(gateway, key, "POST", "/v1/chat/completions", json=body)


async def test_a_clients_calls_stand_under_its_id_and_its_key_nowhere(gateway: Gateway) -> None:
    made = await let_in(gateway)
    assert re.fullmatch(r"tk-[A-Za-z0-9_-]{43}", made["key"])
    answer = await ask(gateway, made["key"])
    assert answer.status_code == 200
    row = await gateway.attempt(answer.headers["x-request-id"])
    assert row["client_id"] == made["id"]
    listed = (await gateway.client.get("/admin/keys")).text
    assert made["id"] in listed
    folder = gateway.database.parent
    for path in (each for each in folder.rglob("*") if each.is_file()):
        assert made["key"].encode() not in path.read_bytes(), path
    assert made["key"] not in listed


async def test_a_client_sees_what_it_spent_and_its_own_calls_alone(gateway: Gateway) -> None:
    ann, bob = await let_in(gateway), await let_in(gateway, "bob")
    answer = await ask(gateway, ann["key"])
    await gateway.attempt(answer.headers["x-request-id"])
    name = answer.headers["x-request-id"]
    seen = (await by(gateway, ann["key"], "GET", "/v1/key")).json()["data"]
    path = f"/v1/generation?id={name}"
    own = await by(gateway, ann["key"], "GET", path)
    (row,) = gateway.select("SELECT * FROM api_calls WHERE request_id = ?", name)
    assert (seen["label"], seen["id"]) == ("ann", ann["id"])
    assert seen["usage"] == seen["usage_daily"] == row["cost_estimate_usd"] > 0
    assert own.json()["data"]["total_cost"] == row["cost_estimate_usd"]
    assert own.json()["data"]["tokens_prompt"] == row["input_tokens"]
    assert (await by(gateway, bob["key"], "GET", path)).status_code == 404
    assert (await by(gateway, bob["key"], "GET", "/v1/key")).json()["data"]["usage"] == 0
    assert (await gateway.client.get(path)).status_code == 200
    stats = await gateway.client.get("/stats", params={"client": ann["id"]})
    assert stats.json()["totals"]["requests"] == 1


async def test_a_client_gets_the_models_that_it_may_have(gateway: Gateway, whole: Whole) -> None:
    made = await let_in(gateway, models=["fast"], providers=["other"])
    answer = await ask(gateway, made["key"], "fast")
    assert (answer.status_code, answer.headers["x-tollkeeper-provider"]) == (200, "other")
    before = len(whole[1].requests)
    refused = await ask(gateway, made["key"], "lab/json")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
    assert len(whole[1].requests) == before
    row = await gateway.attempt(refused.headers["x-request-id"])
    assert (row["status"], row["client_id"]) == ("rejected", made["id"])
    listed = (await by(gateway, made["key"], "GET", "/v1/models")).json()["data"]
    assert [each["id"] for each in listed] == ["fast"]
    assert (await by(gateway, made["key"], "GET", "/v1/models/fast")).status_code == 200


async def test_a_key_that_is_replaced_opens_until_its_grace_is_over(gateway: Gateway) -> None:
    made = await let_in(gateway)
    path = f"/admin/keys/{made['id']}/rotate"
    second = (await gateway.client.post(path, json={})).json()["key"]
    assert [(await ask(gateway, key)).status_code for key in (made["key"], second)] == [200, 200]
    third = (await gateway.client.post(path, json={"grace": "0s"})).json()["key"]
    states = [(await ask(gateway, key)).status_code for key in (made["key"], second, third)]
    assert states == [401, 401, 200]


async def test_a_key_opens_nothing_once_it_is_revoked_or_its_time_is_over(gateway: Gateway) -> None:
    made = await let_in(gateway)
    gone = (await gateway.client.delete(f"/admin/keys/{made['id']}")).json()
    assert gone["revoked_at"] is not None
    answer = await ask(gateway, made["key"])
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        401,
        "This API key was revoked.",
    )
    late = await let_in(gateway, expires_at="2026-01-01T00:00:00Z")
    assert (await ask(gateway, late["key"])).json()["error"]["message"].endswith("expired.")


async def test_a_client_that_was_revoked_gets_no_other_key(gateway: Gateway) -> None:
    made = await let_in(gateway)
    await gateway.client.delete(f"/admin/keys/{made['id']}")
    answer = await gateway.client.post(f"/admin/keys/{made['id']}/rotate", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "key_revoked")
    settings = load(gateway.database.parent / "tollkeeper.yaml", {}, {})
    with pytest.raises(ConfigError, match="was revoked"):
        await clientele.rotate(settings, made["id"], 0)


async def test_an_open_gateway_asks_for_no_key_and_knows_those_that_it_gave(
    tmp_path: Path,
) -> None:
    async with upstream_server() as upstream:
        upstream.script = completion()
        config = {"providers": {"lab": lab(upstream.url)}}
        async with running(tmp_path, config) as gateway:
            made = await let_in(gateway, limits={"rpm": 1}, models=["lab/json"])
            first, second = [await ask(gateway, made["key"], "lab/json") for _ in range(2)]
            assert (first.status_code, second.status_code) == (200, 429)
            row = await gateway.attempt(first.headers["x-request-id"])
            assert row["client_id"] == made["id"]
            assert (await by(gateway, made["key"], "GET", "/stats")).status_code == 200
            for other in (None, "sk-anything", "tk-" + "x" * 43):
                answer = await ask(gateway, other, "lab/json")
                assert answer.status_code == 200
                row = await gateway.attempt(answer.headers["x-request-id"])
                assert row["client_id"] is None
            two = {"authorization": f"Bearer {made['key']}", "x-api-key": "whatever"}
            assert (await gateway.chat("lab/json", headers=two)).status_code == 200
            late = await let_in(gateway, expires_at="2026-01-01T00:00:00Z")
            await gateway.client.delete(f"/admin/keys/{made['id']}")
            for key in (late["key"], made["key"]):
                assert (await ask(gateway, key, "lab/json")).status_code == 401
                assert (await by(gateway, key, "GET", "/stats")).status_code == 200
            settings = load(gateway.database.parent / "tollkeeper.yaml", {}, {})
            said = await clientele.create(settings, new_client("by hand", limits={"rpm": 1}))
            await _until(gateway, said.splitlines()[1], 429)


async def test_what_the_command_line_does_holds_for_a_gateway_that_runs(gateway: Gateway) -> None:
    settings = load(gateway.database.parent / "tollkeeper.yaml", {}, {})
    said = await clientele.create(settings, new_client("by hand"))
    name, key = said.split()[0], said.splitlines()[1]
    answer = await _until(gateway, key, 200)
    assert (await gateway.attempt(answer.headers["x-request-id"]))["client_id"] == name
    assert name in await clientele.listed(settings)
    assert await clientele.revoke(settings, name) == f"{name}: revoked"
    await _until(gateway, key, 401)


async def _until(gateway: Gateway, key: str, status: int) -> httpx.Response:
    for _ in range(50):
        answer = await ask(gateway, key)
        if answer.status_code == status:
            return answer
        await asyncio.sleep(0.05)
    raise AssertionError(f"{answer.status_code} for long instead of {status}")


OPEN = {"/healthz", "/readyz"}


def served(router: Any) -> Iterator[tuple[str, set[str]]]:
    """The path and the methods of every route, also of the routers that are part of it."""
    for route in router.routes:
        if hasattr(route, "original_router"):
            yield from served(route.original_router)
        elif getattr(route, "methods", None):
            yield route.path, route.methods


async def test_every_route_asks_for_the_key_that_it_should(gateway: Gateway) -> None:
    """Every route there is, with every kind of key."""
    ann, gone, late = [
        await let_in(gateway, "a", **more)
        for more in ({}, {}, {"expires_at": "2026-01-01T00:00:00Z"})
    ]
    await gateway.client.delete(f"/admin/keys/{gone['id']}")
    closed = [None, "tk-" + "x" * 43, gone["key"], late["key"], MASTER + "x", MASTER[:-1]]
    routes = [
        (method, re.sub(r"{[^}]*}", "none", path))
        for path, methods in served(gateway.app._app._app.router)
        for method in sorted(methods)
    ]
    routes += [("POST", "/v1/chat/completions"), ("POST", "/v1/embeddings")]
    routes += [("POST", "/v1/completions"), ("GET", "/nothing"), ("GET", "/v1/nothing")]
    assert len(routes) > 30
    for method, path in routes:
        if path == "/admin/reload":
            continue  # would be done
        for key in closed:
            status = (await by(gateway, key, method, path)).status_code
            assert status == (200 if path in OPEN else 401), (method, path, key)
        status = (await by(gateway, ann["key"], method, path)).status_code
        if path in OPEN or path.startswith("/v1/"):
            assert status not in (401, 403), (method, path)
        else:
            assert status == 403, (method, path)
        status = (await gateway.client.request(method, path)).status_code
        assert status not in (401, 403), (method, path)


async def test_a_flood_of_wrong_keys_asks_no_database(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = gateway.app.state.reload.__self__._keys
    asked: list[str] = []
    monkeypatch.setattr(keys._table, "load", lambda: asked.append("load"))
    for number in range(200):
        assert (await by(gateway, f"tk-{number}", "GET", "/v1/models")).status_code == 401
    assert asked == []
    assert not gateway.select("SELECT id FROM api_calls WHERE endpoint = '/v1/models'")


async def test_the_secret_of_the_hashes_is_its_owners_alone(gateway: Gateway) -> None:
    secret = Path(f"{gateway.database}.state") / "secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.read_bytes().strip() not in gateway.database.read_bytes()


async def test_a_clients_tags_are_those_of_its_key_and_what_it_says_beside_them(
    gateway: Gateway,
) -> None:
    made = await let_in(gateway, tags=["team-a", "eu"])
    body = {"model": "lab/json", "messages": [], "metadata": {"tags": "batch,eu"}}
    answer = await by(gateway, made["key"], "POST", "/v1/chat/completions", json=body)
    row = await gateway.attempt(answer.headers["x-request-id"])
    assert (row["client_id"], row["tags"]) == (made["id"], '["team-a","eu","batch"]')
