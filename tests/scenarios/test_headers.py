"""Headers pass by list, in both directions: what is not on it stays behind."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.gateway import Gateway, lab, running
from tests.upstream import Exchange, Upstream, completion, error, stream, upstream_server, words

pytestmark = pytest.mark.asyncio(loop_scope="module")

MASTER = "tk-master-canary-7f3a"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Gateway, Upstream]]:
    async with upstream_server() as upstream:
        keys = [{"name": "org-a", "value": "sk-router-canary"}]
        config = {
            "auth": {"master_key": MASTER},
            "providers": {
                "lab": lab(upstream.url, "sk-lab-canary-1"),
                "open": {"type": "openai", "base_url": upstream.url},
                "openrouter": {"base_url": upstream.url, "keys": keys},
            },
        }
        async with running(tmp_path_factory.mktemp("headers"), config) as gateway:
            yield gateway, upstream


@pytest.fixture
def gateway(place: tuple[Gateway, Upstream]) -> Gateway:
    return place[0]


@pytest.fixture
def upstream(place: tuple[Gateway, Upstream]) -> Upstream:
    place[1].reset()
    return place[1]


NOSY = {
    "cookie": "session=abc",
    "x-stainless-lang": "python",
    "x-stainless-retry-count": "0",
    "accept-encoding": "gzip, br",
    "user-agent": "OpenAI/Python 3.0",
    "x-request-id": "mine-1",
    "x-agent-name": "planner",
    "x-tool-name": "editor",
    "x-session-id": "s-1",
    "x-forwarded-for": "10.1.2.3",
    "forwarded": "for=10.1.2.3",
    "via": "1.1 somewhere",
    "origin": "http://localhost",
    "referer": "http://localhost/page",
    "x-api-key": MASTER,
    "anthropic-beta": "x",
    "expect": "",
    "te": "trailers",
    "connection": "keep-alive, x-hop",
    "x-hop": "1",
}


async def test_only_listed_headers_reach_the_upstream(gateway: Gateway, upstream: Upstream) -> None:
    await gateway.chat("lab/m", headers=NOSY)
    sent = upstream.calls[0].headers
    assert set(sent) == {
        "host",
        "content-type",
        "content-length",
        "accept",
        "accept-encoding",
        "authorization",
        "user-agent",
    }
    assert sent["authorization"] == "Bearer sk-lab-canary-1"
    assert sent["accept-encoding"] == "identity"
    assert sent["user-agent"] == "tollkeeper"
    assert sent["host"] == upstream.url.split("/")[2]


async def test_the_clients_key_reaches_no_upstream(gateway: Gateway, upstream: Upstream) -> None:
    for model in ("lab/m", "openrouter/m", "open/m"):
        await gateway.chat(model, headers=NOSY)
    for request in upstream.requests:
        assert MASTER not in repr(request)
    assert "authorization" not in upstream.calls[2].headers


async def test_headers_for_the_upstream_pass(gateway: Gateway, upstream: Upstream) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    wanted = {
        "traceparent": trace,
        "tracestate": "a=b",
        "idempotency-key": "once",
        "openai-organization": "org",
        "openai-project": "proj",
    }
    await gateway.chat("lab/m", headers=wanted)
    assert wanted.items() <= upstream.calls[0].headers.items()


async def test_openrouter_is_told_who_asks_unless_the_client_says(
    gateway: Gateway, upstream: Upstream
) -> None:
    await gateway.chat("openrouter/m")
    await gateway.chat("openrouter/m", headers={"x-title": "Mine", "http-referer": "https://me"})
    await gateway.chat("lab/m", headers={"x-title": "Mine", "http-referer": "https://me"})
    ours, theirs, other = (call.headers for call in upstream.calls)
    assert ours["x-openrouter-title"] == "Tollkeeper"
    assert (theirs["x-title"], theirs["http-referer"]) == ("Mine", "https://me")
    assert "x-openrouter-title" not in theirs
    assert "x-title" not in other
    assert "http-referer" not in other


CHATTY = {
    "set-cookie": "__cf_bm=secret",
    "x-ratelimit-limit-requests": "1000",
    "x-ratelimit-remaining-requests": "999",
    "retry-after": "3",
    "server": "cloudflare",
    "alt-svc": "h3",
    "strict-transport-security": "max-age=1",
    "openai-organization": "org-of-the-key",
    "access-control-allow-origin": "*",
    "x-should-retry": "true",
    "x-request-id": "req_upstream",
    "openai-processing-ms": "12",
    "cache-control": "no-cache",
    "x-generation-id": "gen-1",
}


async def test_only_listed_headers_reach_the_client(gateway: Gateway, upstream: Upstream) -> None:
    plain = await gateway.chat("lab/m")
    upstream.script = _chatty
    got = await gateway.chat("lab/m")
    assert set(got.headers) - set(plain.headers) == {
        "cache-control",
        "openai-processing-ms",
        "x-generation-id",
        "x-tollkeeper-upstream-request-id",
    }
    assert got.headers["x-tollkeeper-upstream-request-id"] == "req_upstream"
    assert set(plain.headers) == {
        "content-type",
        "content-length",
        "date",
        "server-timing",
        "x-request-id",
        "x-tollkeeper-provider",
        "x-tollkeeper-model",
        "x-tollkeeper-key",
        "x-tollkeeper-attempts",
    }


async def _chatty(exchange: Exchange) -> None:
    body = b'{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}'
    await exchange.head(200, **CHATTY, content_type="application/json", content_length="75")
    await exchange.send(body.ljust(75))


async def test_an_answer_tells_where_it_comes_from(gateway: Gateway, upstream: Upstream) -> None:
    for script, more in ((completion(), {}), (stream(words("a")), {"stream": True})):
        upstream.script = script
        got = await gateway.chat("openrouter/vendor/model:free", **more)
        assert got.headers["x-tollkeeper-provider"] == "openrouter"
        assert got.headers["x-tollkeeper-model"] == "vendor/model:free"
        assert got.headers["x-tollkeeper-key"] == "org-a"
        assert got.headers["x-tollkeeper-attempts"] == "1"
        timing = r"gateway;dur=\d+\.\d+, upstream;dur=\d+\.\d+"
        assert re.fullmatch(timing, got.headers["server-timing"])
    assert got.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in got.headers


async def test_an_upstreams_refusal_tells_where_it_comes_from(
    gateway: Gateway, upstream: Upstream
) -> None:
    upstream.script = error(400, "bad temperature", "bad_value", **{"cf-ray": "8c1-FRA"})
    got = await gateway.chat("lab/m")
    assert got.status_code == 400
    assert got.headers["x-tollkeeper-provider"] == "lab"
    assert got.headers["x-tollkeeper-model"] == "m"
    assert got.headers["x-tollkeeper-key"] == "k1"
    assert got.headers["x-tollkeeper-attempts"] == "1"
    assert got.headers["x-tollkeeper-upstream-request-id"] == "8c1-FRA"
    assert "server-timing" in got.headers


async def test_a_provider_without_keys_names_none(gateway: Gateway, upstream: Upstream) -> None:
    got = await gateway.chat("open/m")
    assert got.headers["x-tollkeeper-provider"] == "open"
    assert "x-tollkeeper-key" not in got.headers
    assert (await gateway.attempt(got.headers["x-request-id"]))["key_id"] is None


async def test_every_answer_carries_an_id_of_the_gateways_own(
    gateway: Gateway, upstream: Upstream
) -> None:
    mine = {"x-request-id": "mine"}
    answers = [
        await gateway.chat("lab/m", headers=mine),
        await gateway.chat("nobody/m", headers=mine),
        await gateway.client.get("/v1/models", headers=mine),
        await gateway.client.get("/healthz", headers=mine),
        await gateway.client.get("/stats", headers=mine),
        await gateway.client.get("/nowhere", headers=mine),
        await gateway.client.get("/v1/models", headers={"authorization": "Bearer wrong"}),
    ]
    ids = [got.headers.get_list("x-request-id") for got in answers]
    assert all(len(each) == 1 for each in ids)
    flat = [each[0] for each in ids]
    assert all(re.fullmatch("[0-9A-Z]{18}", each) for each in flat)
    assert flat == sorted(set(flat))


async def test_a_strange_model_name_breaks_no_header(gateway: Gateway, upstream: Upstream) -> None:
    for name in ("caf\u00e9 \N{TOKYO TOWER}", "a\r\nset-cookie: x=1", "nul\x00", "tab\there"):
        got = await gateway.chat(f"lab/{name}")
        assert got.status_code == 200
        assert "set-cookie" not in got.headers
        assert got.headers["x-tollkeeper-model"].isprintable()
        assert upstream.calls[-1].json["model"] == name
        await gateway.attempt(got.headers["x-request-id"])
