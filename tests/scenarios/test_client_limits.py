"""Clients with limits: what they may use, what they are told, and what the rows say."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from openai import AsyncOpenAI, RateLimitError

from proxy import clientele
from proxy.keys import new_client
from proxy.schema import Settings
from proxy.sharing.shared import Shared
from proxy.when import span
from tests.gateway import Gateway, lab, running
from tests.redis_server import own_keys, some_server
from tests.scenarios.test_workers import workers
from tests.scenarios.views import until
from tests.upstream import (
    Exchange,
    Upstream,
    completion,
    error,
    hang,
    stream,
    upstream_server,
    words,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

MASTER = "tk-master-of-this-house"
ASK: list[Any] = [{"role": "user", "content": "hi"}]
Whole = tuple[Gateway, Upstream]


def config(upstream: Upstream) -> dict[str, Any]:
    """Who leaves has left: nothing is read on for it."""
    return {
        "auth": {"master_key": MASTER},
        "providers": {"lab": lab(upstream.url)},
        "server": {"on_disconnect": "cancel"},
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with upstream_server() as upstream:
        folder = tmp_path_factory.mktemp("limits")
        async with running(folder, config(upstream)) as gateway:
            yield gateway, upstream


@pytest.fixture
def gateway(whole: Whole) -> Gateway:
    whole[1].reset()
    whole[1].script = completion("Hi", prompt=20, output=10)
    return whole[0]


@pytest.fixture
def upstream(whole: Whole) -> Upstream:
    return whole[1]


async def let_in(gateway: Gateway, **limits: int) -> dict[str, Any]:
    answer = await gateway.client.post("/admin/keys", json={"name": "ann", "limits": limits})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    assert made["limits"] == limits
    return made


async def ask(gateway: Gateway, made: dict[str, Any], **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {made['key']}"}
    return await gateway.chat("lab/json", headers=headers, **more)


def told(answer: httpx.Response) -> dict[str, str]:
    start = "x-ratelimit-"
    fields = answer.headers.items()
    return {name.removeprefix(start): value for name, value in fields if name.startswith(start)}


async def test_over_a_limit_no_provider_is_asked_and_the_row_says_why(
    gateway: Gateway, upstream: Upstream
) -> None:
    made = await let_in(gateway, rpm=2)
    heads = [told(await ask(gateway, made)) for _ in range(2)]
    assert [head["remaining-requests"] for head in heads] == ["1", "0"]
    refused = await ask(gateway, made)
    found = refused.json()["error"]
    assert (refused.status_code, found["code"], found["type"]) == (
        *(429, "rate_limit_exceeded"),
        "rate_limit_error",
    )
    assert "requests per minute (rpm): limit 2, used 2" in found["message"]
    assert 55 <= int(refused.headers["retry-after"]) <= 61
    assert told(refused)["limit-requests"] == "2"
    assert len(upstream.calls) == 2
    row = await gateway.attempt(refused.headers["x-request-id"])
    assert (row["status"], row["error_reason"], row["client_status"], row["client_id"]) == (
        *("rejected", "rate_limit", 429),
        made["id"],
    )
    assert not {"limit-requests", "limit-tokens"} & told(await gateway.chat("lab/json")).keys()


async def test_the_openai_client_sees_the_limit_as_it_sees_openais(gateway: Gateway) -> None:
    made = await let_in(gateway, rpm=1, tpm=5000)
    options: dict[str, Any] = {"base_url": f"{gateway.url}/v1", "max_retries": 0}
    async with AsyncOpenAI(api_key=made["key"], **options) as client:
        raw = await client.chat.completions.with_raw_response.create(model="lab/json", messages=ASK)
        assert raw.headers["x-ratelimit-remaining-tokens"] == "4970"
        with pytest.raises(RateLimitError) as refused:
            await client.chat.completions.create(model="lab/json", messages=ASK)
    assert refused.value.code == "rate_limit_exceeded"
    head = refused.value.response.headers
    assert (head["x-ratelimit-limit-requests"], head["x-ratelimit-remaining-requests"]) == (
        *("1", "0"),
    )
    assert 50 <= span(head["x-ratelimit-reset-requests"]) // 1000 <= 61


async def test_tokens_are_counted_as_they_were_used(gateway: Gateway) -> None:
    made = await let_in(gateway, tpm=100)
    for left in ("70", "40"):
        assert told(await ask(gateway, made))["remaining-tokens"] == left
    refused = await ask(gateway, made, max_tokens=90)
    assert (refused.status_code, told(refused)["remaining-tokens"]) == (429, "40")
    assert (await ask(gateway, made, max_tokens=20)).status_code == 200


async def test_what_no_provider_could_be_asked_for_is_given_back(gateway: Gateway) -> None:
    made = await let_in(gateway, rpm=5, max_output_tokens=50, max_body=200)
    long = await ask(gateway, made, max_tokens=51)
    assert (long.status_code, long.json()["error"]["param"]) == (400, "max_tokens")
    large = await ask(gateway, made, text="x" * 200)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
    reasons = []
    for answer in (long, large):
        row = await gateway.attempt(answer.headers["x-request-id"])
        reasons.append((row["status"], row["error_reason"]))
        assert told(answer)["remaining-requests"] == "5"
    assert reasons == [("rejected", "invalid_request"), ("rejected", "too_large")]
    assert told(await ask(gateway, made))["remaining-requests"] == "4"


async def test_what_a_provider_refused_is_a_request_and_uses_no_tokens(
    gateway: Gateway, upstream: Upstream
) -> None:
    made = await let_in(gateway, rpm=5, tpm=1000)
    upstream.script = error(400, "no")
    refused = await ask(gateway, made)
    assert refused.status_code == 400
    assert (told(refused)["remaining-requests"], told(refused)["remaining-tokens"]) == ("4", "1000")


async def test_no_more_calls_are_under_way_than_may_and_who_leaves_makes_room(
    gateway: Gateway, upstream: Upstream
) -> None:
    made = await let_in(gateway, parallel=2)
    upstream.script = hang
    body = {"model": "lab/json", "messages": ASK}
    field = f"authorization: Bearer {made['key']}"
    lines = [await gateway.dial(body, field) for _ in range(2)]
    while len(upstream.calls) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    refused = await ask(gateway, made)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert "calls at a time (parallel): limit 2, used 2" in refused.json()["error"]["message"]
    upstream.script = completion("Hi")
    for line in lines:
        await line.hang_up()
    async with asyncio.timeout(20):
        while (await ask(gateway, made)).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    both = await asyncio.gather(*[ask(gateway, made) for _ in range(2)])
    assert [answer.status_code for answer in both] == [200, 200]


async def test_a_stream_makes_room_before_its_last_byte(
    gateway: Gateway, upstream: Upstream
) -> None:
    made = await let_in(gateway, parallel=1)
    upstream.script = stream(words("a b c"))
    for _ in range(5):
        answer = await ask(gateway, made, stream=True)
        assert (answer.status_code, "[DONE]" in answer.text) == (200, True)


async def test_of_many_at_once_as_many_go_as_may(gateway: Gateway, upstream: Upstream) -> None:
    made = await let_in(gateway, rpm=7)
    answers = await asyncio.gather(*[ask(gateway, made) for _ in range(30)])
    assert Counter(answer.status_code for answer in answers) == {200: 7, 429: 23}
    assert len(upstream.calls) == 7


async def test_limits_that_are_changed_hold_from_the_next_call_on(gateway: Gateway) -> None:
    made = await let_in(gateway, rpm=1)
    path = f"/admin/keys/{made['id']}"
    assert [(await ask(gateway, made)).status_code for _ in range(2)] == [200, 429]
    changed = await gateway.client.patch(path, json={"limits": {"rpm": 2}, "tags": ["a"]})
    assert (changed.json()["limits"], changed.json()["tags"]) == ({"rpm": 2}, ["a"])
    assert [(await ask(gateway, made)).status_code for _ in range(2)] == [200, 429]
    await gateway.client.patch(path, json={"limits": {}})
    free = await ask(gateway, made)
    assert (free.status_code, told(free)) == (200, {})
    own = await gateway.client.get("/v1/key", headers={"authorization": f"Bearer {made['key']}"})
    assert own.json()["data"]["limits"] == {}


async def test_after_a_restart_it_goes_on_from_the_rows(tmp_path: Path) -> None:
    async with upstream_server() as upstream:
        upstream.script = completion("Hi", prompt=20, output=10)
        async with running(tmp_path, config(upstream)) as gateway:
            made = await let_in(gateway, rpm=3, tph=1000)
            answers = [await ask(gateway, made) for _ in range(2)]
            for answer in answers:
                await gateway.attempt(answer.headers["x-request-id"])
        async with running(tmp_path, config(upstream)) as gateway:
            third = await ask(gateway, made)
            assert (told(third)["remaining-requests"], told(third)["remaining-tokens"]) == (
                *("0", "910"),
            )
            assert (await ask(gateway, made)).status_code == 429


async def test_a_user_and_a_tag_have_limits_of_their_own_also_after_a_restart(
    tmp_path: Path,
) -> None:
    limits = [
        {"scope": "user", "value": "ann", "rpm": 3},
        {"scope": "tag", "value": "nightly", "rph": 2},
    ]
    by_ann, by_job = {"x-user-id": "ann"}, {"x-tags": "team-a, nightly"}
    async with upstream_server() as upstream:
        upstream.script = completion("Hi", prompt=20, output=10)
        whole = config(upstream) | {"limits": limits}
        async with running(tmp_path, whole) as gateway:
            first = await gateway.chat("lab/json", headers=by_ann)
            second = await gateway.chat("lab/json", user="ann")  # as the body says
            third = await gateway.chat("lab/json", headers=by_job)
            assert [told(each)["remaining-requests"] for each in (first, second, third)] == [
                *("2", "1", "1"),
            ]
            assert told(await gateway.chat("lab/json")) == {}
            for each in (first, second, third):
                await gateway.attempt(each.headers["x-request-id"])
        async with running(tmp_path, whole) as gateway:
            answers = [await gateway.chat("lab/json", headers=by_ann) for _ in range(2)]
            answers += [await gateway.chat("lab/json", headers=by_job) for _ in range(2)]
            assert [each.status_code for each in answers] == [200, 429, 200, 429]
            assert "for the tag 'nightly'" in answers[3].json()["error"]["message"]
            row = await gateway.attempt(answers[1].headers["x-request-id"])
            assert (row["status"], row["error_reason"], row["user_id"]) == (
                *("rejected", "rate_limit", "ann"),
            )
            both = await gateway.chat("lab/json", headers=by_job, user="bo")
            assert both.status_code == 429


async def test_limits_of_users_follow_a_reload(tmp_path: Path) -> None:
    async with upstream_server() as upstream:
        upstream.script = completion()
        async with running(tmp_path, config(upstream)) as gateway:
            file = gateway.database.parent / "tollkeeper.yaml"
            whole = yaml.safe_load(file.read_text())

            async def ask_with(*limits: dict[str, Any]) -> tuple[int, str | None]:
                file.write_text(yaml.safe_dump({**whole, "limits": list(limits)}))
                assert (await gateway.client.post("/admin/reload")).status_code == 200
                answer = await gateway.chat("lab/json", user="ann")
                return answer.status_code, told(answer).get("remaining-requests")

            ann = {"scope": "user", "value": "ann"}
            assert await ask_with() == (200, None)
            assert await ask_with({**ann, "rpm": 2}) == (200, "1")
            assert await ask_with({**ann, "rpm": 1}) == (429, "0")
            assert await ask_with({**ann, "rpm": 4}) == (200, "2")
            assert await ask_with() == (200, None)


async def shared_by_all(
    clients: list[httpx.AsyncClient], upstream: Upstream, rate: str, parallel: str
) -> None:
    """Whoever is asked: of one key six in a minute, of the other one at a time."""

    async def answer(client: httpx.AsyncClient, key: str) -> httpx.Response:
        body = {"model": "lab/json", "messages": ASK}
        headers = {"authorization": f"Bearer {key}"}
        return await client.post("/v1/chat/completions", json=body, headers=headers)

    async def status(client: httpx.AsyncClient, key: str) -> int:
        return (await answer(client, key)).status_code

    heads = [told(await answer(client, rate)) for client in clients]
    assert [head["remaining-requests"] for head in heads] == ["5", "4"]
    made = await asyncio.gather(*[status(client, rate) for client in clients * 4])
    assert Counter(made) == {200: 4, 429: 4}
    assert told(await answer(clients[0], rate))["remaining-requests"] == "0"
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await asyncio.wait_for(go.wait(), 20)
        await completion()(exchange)

    upstream.reset()
    upstream.script = script
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(status(client, parallel)) for client in clients]
        await until(lambda: sum(call.done() for call in calls) == len(calls) - 1)
        await until(lambda: upstream.calls)
        assert len(upstream.calls) == 1
        go.set()
    assert Counter(call.result() for call in calls) == {200: 1, 429: len(calls) - 1}
    upstream.script = completion()
    for client in clients * 2:
        async with asyncio.timeout(20):
            while await status(client, parallel) != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_limits_hold_for_all_workers_together(tmp_path: Path) -> None:
    async with upstream_server() as upstream:
        upstream.script = completion()
        auth = {"master_key": MASTER, "secret": "s" * 32}
        address = f"sqlite+aiosqlite:///{tmp_path}/calls.db"
        rate, parallel = await keys_of(Settings(auth=auth, telemetry={"database_url": address}))
        async with workers(tmp_path, 2, {"lab": lab(upstream.url)}, auth=auth) as gateway:
            await shared_by_all([*(await gateway.each()).values()], upstream, rate, parallel)


async def test_limits_hold_for_all_gateways_with_one_redis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both gateways are in this process: on a busy machine each waits for the other, and would go
    # on without Redis.
    monkeypatch.setitem(Shared.__init__.__kwdefaults__, "timeout", 5.0)
    auth = {"master_key": MASTER, "secret": "s" * 32}
    with some_server() as url:
        async with (
            own_keys(url) as prefix,
            upstream_server() as upstream,
            AsyncExitStack() as stack,
        ):
            upstream.script = completion()
            folders = [tmp_path / name for name in ("one", "two")]
            for folder in folders:
                folder.mkdir()
            address = f"sqlite+aiosqlite:///{folders[0]}/calls.db"
            rate, parallel = await keys_of(Settings(auth=auth, telemetry={"database_url": address}))
            shutil.copy(folders[0] / "calls.db", folders[1])
            state = {"state": {"url": url, "prefix": prefix}, "auth": auth}
            gateways = [
                await stack.enter_async_context(
                    running(folder, config(upstream) | state, kind="sqlite")
                )
                for folder in folders
            ]
            await shared_by_all([each.client for each in gateways], upstream, rate, parallel)


async def keys_of(settings: Settings) -> tuple[str, str]:
    """Keys of two clients: one may make six requests a minute, the other one at a time."""
    limits: list[dict[str, int]] = [{"rpm": 6}, {"parallel": 1}]
    said = [await clientele.create(settings, new_client("ann", limits=each)) for each in limits]
    rate, parallel = (text.splitlines()[1] for text in said)
    return rate, parallel
