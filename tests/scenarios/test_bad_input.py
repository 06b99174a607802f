"""What is wrong with a request is said in OpenAI's envelope, kept in one row, and harms nobody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.gateway import Gateway, lab, running
from tests.upstream import Upstream, upstream_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

MASTER = "tk-master-5e1f"
LIMIT = 300_000
Place = tuple[Gateway, Gateway, Upstream]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    """An open gateway, one with a key, and their upstream."""
    async with upstream_server() as upstream:
        upstream.models = [{"id": "llama-3.1-8b-instant"}, {"id": "vendor/model"}]
        config = {
            "providers": {"lab": lab(upstream.url)},
            "models": {"fast": {"targets": ["lab/llama-3.1-8b-instant"]}},
            "server": {"max_body": LIMIT, "body_timeout": 0.3},
        }
        locked = {**config, "auth": {"master_key": MASTER}}
        async with (
            running(tmp_path_factory.mktemp("open"), config) as gateway,
            running(tmp_path_factory.mktemp("locked"), locked) as guarded,
        ):
            yield gateway, guarded, upstream


@pytest.fixture
def gateway(place: Place) -> Gateway:
    return place[0]


@pytest.fixture
def guarded(place: Place) -> Gateway:
    return place[1]


@pytest.fixture
def upstream(place: Place) -> Upstream:
    place[2].reset()
    return place[2]


def envelope(got: httpx.Response, status: int) -> dict[str, Any]:
    """The error, which must be all there is and tell nothing of the program's inside."""
    assert got.status_code == status, got.text
    assert got.headers["content-type"].startswith("application/json")
    assert set(got.json()) == {"error"}
    error: dict[str, Any] = got.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    for word in ("Traceback", 'File "', "msgspec", "pydantic", "proxy/"):
        assert word not in got.text
    assert len(got.headers["x-request-id"]) == 18
    return error


async def rejected(gateway: Gateway, got: httpx.Response, reason: str) -> dict[str, Any]:
    row = await gateway.attempt(got.headers["x-request-id"])
    assert (row["status"], row["error_reason"]) == ("rejected", reason)
    assert (row["attempt"], row["is_final"], row["key_id"]) == (1, 1, None)
    assert (row["client_status"], row["http_status"]) == (got.status_code, None)
    assert row["cost_estimate_usd"] is None
    return row


async def still_serves(gateway: Gateway, upstream: Upstream) -> None:
    before = len(upstream.calls)
    assert (await gateway.chat("lab/m")).status_code == 200
    assert len(upstream.calls) == before + 1


MODEL = b'"model":"lab/m"'
MALFORMED = {
    "nothing": b"",
    "spaces": b"  \r\n ",
    "half": b'{"model":"lab/m","messages":[',
    "words": b"please say hello",
    "trailing": b"{" + MODEL + b"} and more",
    "single quotes": b"{'model':'lab/m'}",
    "array": b"[1,2]",
    "string": b'"lab/m"',
    "number": b"7",
    "null": b"null",
    "bad utf-8": b'{"model":"lab/m","messages":[{"role":"user","content":"\xff\xfe"}]}',
    "bad utf-8 name": b'{"model":"lab/\xc3\x28"}',
    "bad utf-8 member": b"{" + MODEL + b',"t\xff":1}',
    "bad utf-8 unread": b"{" + MODEL + b',"metadata":{"a":"\xff"}}',
    "utf-16": '{"model":"lab/m"}'.encode("utf-16"),
    "bom": b"\xef\xbb\xbf" + b"{" + MODEL + b"}",
    "nan": b"{" + MODEL + b',"temperature":NaN}',
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "nul": b"{" + MODEL + b"}\x00",
}


async def test_what_is_no_json_object_is_refused(gateway: Gateway, upstream: Upstream) -> None:
    answers = {
        name: await gateway.client.post("/v1/chat/completions", content=body)
        for name, body in MALFORMED.items()
    }
    assert {name: got.status_code for name, got in answers.items()} == dict.fromkeys(answers, 400)
    for got in answers.values():
        assert envelope(got, 400)["type"] == "invalid_request_error"
        row = await rejected(gateway, got, "invalid_request")
        assert row["requested_model"] is None
    assert not upstream.calls
    await still_serves(gateway, upstream)


async def test_a_request_must_name_a_model(gateway: Gateway, upstream: Upstream) -> None:
    names: list[Any] = [None, "", " ", 7, ["a"], {"a": 1}, True]
    bodies: list[Any] = [{}, *({"model": name} for name in names)]
    answers = [await gateway.client.post("/v1/embeddings", json=body) for body in bodies]
    for got in answers:
        assert envelope(got, 400)["param"] == "model"
        assert (await rejected(gateway, got, "invalid_request"))["endpoint"] == "/v1/embeddings"
    assert not upstream.calls


async def test_an_unknown_model_is_answered_with_the_nearest_names(
    gateway: Gateway, upstream: Upstream
) -> None:
    got = await gateway.chat("llama-3.1-8b-instnt")
    error = envelope(got, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'llama-3.1-8b-instant'" in error["message"]
    row = await rejected(gateway, got, "not_found")
    assert (row["requested_model"], row["message_count"]) == ("llama-3.1-8b-instnt", 1)
    assert "'fast'" in envelope(await gateway.chat("fsat"), 404)["message"]
    assert not upstream.calls


async def test_odd_model_names_are_only_unknown(gateway: Gateway, upstream: Upstream) -> None:
    names = ["nobody/m", "lab/", "/", "x" * 5000, "\N{TOKYO TOWER}", "a\nb", "a\x00b"]
    for got in [await gateway.chat(name) for name in names]:
        assert envelope(got, 404)["code"] == "model_not_found"
        assert len(got.json()["error"]["message"]) < 1000
        await rejected(gateway, got, "not_found")
    assert not upstream.calls


def body_of(size: int) -> bytes:
    start, end = b'{"model":"lab/m","messages":[{"role":"user","content":"', b'"}]}'
    return start + b"x" * (size - len(start) - len(end)) + end


async def test_a_body_of_just_the_limit_is_served(gateway: Gateway, upstream: Upstream) -> None:
    got = await gateway.client.post("/v1/chat/completions", content=body_of(LIMIT))
    assert got.status_code == 200
    assert len(upstream.calls[0].body) > LIMIT - 100


async def test_a_body_over_the_limit_is_refused(gateway: Gateway, upstream: Upstream) -> None:
    got = await gateway.client.post("/v1/chat/completions", content=body_of(LIMIT + 1))
    assert envelope(got, 413)["code"] == "request_too_large"
    await rejected(gateway, got, "too_large")
    assert not upstream.calls
    await still_serves(gateway, upstream)


async def test_a_body_over_the_limit_without_a_length_is_refused(
    gateway: Gateway, upstream: Upstream
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        whole = body_of(LIMIT * 2)
        for start in range(0, len(whole), 50_000):
            yield whole[start : start + 50_000]

    got = await gateway.client.post("/v1/chat/completions", content=pieces())
    envelope(got, 413)
    await rejected(gateway, got, "too_large")
    assert not upstream.calls
    await still_serves(gateway, upstream)


async def test_a_lengthless_body_within_the_limit_is_served(
    gateway: Gateway, upstream: Upstream
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, 1000, 100):
            yield body_of(1000)[start : start + 100]

    got = await gateway.client.post("/v1/chat/completions", content=pieces())
    assert got.status_code == 200
    assert upstream.calls[0].headers["content-length"] == str(len(upstream.calls[0].body))


@pytest.mark.parametrize("sent", [b"", b'{"model":'])
async def test_a_body_that_never_arrives_times_out(
    gateway: Gateway, upstream: Upstream, sent: bytes
) -> None:
    name = f"never-{len(sent)}"
    line = await gateway.dial(sent, "content-length: 1000", f"x-request-id: {name}")
    raw = await line.until(b'"code":"request_timeout"')
    assert raw.startswith(b"HTTP/1.1 408")
    await line.hang_up()
    row = await gateway.attempt(name)
    assert (row["status"], row["error_reason"]) == ("rejected", "timeout")
    assert (row["client_status"], row["key_id"]) == (408, None)
    assert not upstream.calls


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
async def test_a_wrong_method_is_told(gateway: Gateway, path: str, method: str) -> None:
    got = await gateway.client.request(method, path)
    assert method in envelope(got, 405)["message"]
    assert got.headers["allow"] == "POST"


async def test_a_wrong_method_on_a_list_is_told(gateway: Gateway) -> None:
    got = await gateway.client.post("/v1/models", json={})
    envelope(got, 405)
    assert got.headers["allow"] == "GET"


@pytest.mark.parametrize(
    "path", ["/", "/v2/chat/completions", "/v1", "/v1/responses", "/v1/chat/completions/", "/a%00b"]
)
async def test_an_unknown_route_is_told(gateway: Gateway, path: str) -> None:
    for method in ("GET", "POST"):
        got = await gateway.client.request(method, path)
        assert "Unknown route" in envelope(got, 404)["message"]


async def test_without_the_key_nothing_happens(guarded: Gateway, upstream: Upstream) -> None:
    before = (await guarded.client.get("/stats")).json()["recorder"]["turned_away"]
    body = {"model": "lab/m", "messages": []}
    async with httpx.AsyncClient(base_url=guarded.url) as stranger:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": f"Bearer {MASTER}x"},
            {"authorization": f"Basic {MASTER}"},
            {"authorization": "Bearer"},
            {"authorization": "Bearer caf\u00e9".encode()},
            {"x-api-key": "wrong"},
        ):
            for path in ("/v1/chat/completions", "/stats", "/v1/models", "/nowhere"):
                got = await stranger.post(path, json=body, headers=headers)
                error = envelope(got, 401)
                assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
                assert got.headers["www-authenticate"] == "Bearer"
                assert "wrong" not in got.text
        assert (await stranger.get("/healthz")).status_code == 200
        assert (await stranger.get("/readyz")).status_code == 200
    assert not upstream.calls
    after = (await guarded.client.get("/stats")).json()
    assert after["recorder"]["turned_away"] - before == 28
    assert not guarded.select("SELECT id FROM api_calls WHERE client_status = 401")


async def test_two_different_keys_are_refused(guarded: Gateway, upstream: Upstream) -> None:
    """Whose call it is must not depend on which of two headers is read first."""
    got = await guarded.chat("lab/m", headers={"x-api-key": "other"})
    assert "Two different" in envelope(got, 400)["message"]
    assert not upstream.calls
    same = await guarded.chat("lab/m", headers={"x-api-key": MASTER, "api-key": MASTER})
    assert same.status_code == 200
    assert (await guarded.attempt(same.headers["x-request-id"]))["client_id"] == "master"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example:8000"},
        {"host": "localhost@evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost.evil.example"},
    ],
)
async def test_an_open_gateway_turns_browsers_of_other_sites_away(
    gateway: Gateway, upstream: Upstream, headers: dict[str, str]
) -> None:
    before = len(gateway.select("SELECT id FROM api_calls"))
    for path in ("/v1/chat/completions", "/stats", "/v1/models"):
        got = await gateway.client.post(path, json={"model": "lab/m"}, headers=headers)
        assert envelope(got, 403)["type"] == "permission_error"
        assert "access-control-allow-origin" not in got.headers
    assert not upstream.calls
    assert len(gateway.select("SELECT id FROM api_calls")) == before


@pytest.mark.parametrize(
    "headers",
    [{"host": "localhost:8000"}, {"host": "[::1]:1"}, {"origin": "http://127.0.0.1:3000"}],
)
async def test_an_open_gateway_serves_its_own_machine(
    gateway: Gateway, upstream: Upstream, headers: dict[str, str]
) -> None:
    assert (await gateway.chat("lab/m", headers=headers)).status_code == 200


async def test_a_gateway_with_a_key_serves_any_host_and_origin(
    guarded: Gateway, upstream: Upstream
) -> None:
    headers = {"host": "gateway.example", "origin": "https://app.example"}
    assert (await guarded.chat("lab/m", headers=headers)).status_code == 200


DEEP = 100_000


NESTED = [
    b"[" * DEEP,
    b"{" + MODEL + b',"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    b"{" + MODEL + b',"messages":' + b"[" * DEEP + b"]" * DEEP + b"}",
    b"{" + MODEL + b',"tools":[' + b'{"a":' * 40_000 + b"1" + b"}" * 40_000 + b"]}",
    b"{" + MODEL + b',"stream":true,"stream_options":' + b"[" * DEEP + b"]" * DEEP + b"}",
]


async def test_a_deeply_nested_body_hurts_nobody(gateway: Gateway, upstream: Upstream) -> None:
    for got in [await gateway.client.post("/v1/chat/completions", content=b) for b in NESTED]:
        envelope(got, 400)
        await rejected(gateway, got, "invalid_request")
    assert not gateway.select("SELECT id FROM errors WHERE severity = 'critical'")
    await still_serves(gateway, upstream)


ODD = {
    "huge integer": b'"seed":' + b"9" * 400 + b',"max_tokens":123456789012345678901234567890',
    "beyond 64 bits": b'"seed":9223372036854775808,"n":18446744073709551616',
    "infinite": b'"temperature":1e400',
    "negative": b'"max_tokens":-1,"temperature":-5,"top_p":1e308',
    "wrong types": b'"messages":{"a":1},"tools":"x","stream":"yes","stop":{},"temperature":"hot"',
    "wrong inside": b'"messages":[1,null,{"content":5},{"content":[{"text":7},"x"]}]',
    "nulls": b'"messages":null,"stream":null,"temperature":null,"stream_options":null',
    "lone surrogate": b'"user":"\\ud800"',
    "lone surrogate inside": b'"messages":[{"role":"user","content":"\\udc00 x"}]',
    "nul": b'"user":"a\\u0000b","messages":[{"role":"user","content":"\\u0000"}]',
    "options": b'"stream":true,"stream_options":"all"',
    "effort": b'"reasoning_effort":{"a":1},"reasoning":{"effort":7}',
}


async def test_odd_members_are_the_upstreams_to_judge_or_refused(
    gateway: Gateway, upstream: Upstream
) -> None:
    """Passed on as they are, or a 400; never a fault of the gateway's, and always one row."""
    answers = {}
    for name, members in ODD.items():
        sent = b"{" + MODEL + b"," + members + b"}"
        got = answers[name] = await gateway.client.post("/v1/chat/completions", content=sent)
        assert (name, got.status_code) in ((name, 200), (name, 400))
        if got.status_code == 200:
            edited = {"model": "", "stream_options": ""}
            assert upstream.calls[-1].json | edited == json.loads(sent) | edited
    for got in answers.values():
        if got.status_code == 200:
            row = await gateway.attempt(got.headers["x-request-id"])
            assert row["status"] == "success"
        else:
            envelope(got, 400)
            await rejected(gateway, got, "invalid_request")
    # What only looks odd is none of the gateway's business.
    assert answers["wrong types"].status_code == 200
    assert answers["wrong inside"].status_code == 200
    assert answers["negative"].status_code == 200
    assert not gateway.select("SELECT id FROM errors WHERE severity = 'critical'")
    await still_serves(gateway, upstream)


async def test_of_a_member_that_stands_twice_the_last_counts(
    gateway: Gateway, upstream: Upstream
) -> None:
    sent = b'{"model":"lab/a","stream":true,"model":"lab/b","stream":false}'
    got = await gateway.client.post("/v1/chat/completions", content=sent)
    assert got.headers["x-tollkeeper-model"] == "b"
    assert upstream.calls[0].json == {"model": "b", "stream": False}
    row = await gateway.attempt(got.headers["x-request-id"])
    assert (row["model"], row["is_stream"]) == ("b", 0)


async def test_what_is_no_http_is_answered_and_forgotten(
    gateway: Gateway, upstream: Upstream
) -> None:
    for raw in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"POST /v1/x HTTP/9.9\r\n\r\n"):
        host, port = "127.0.0.1", int(gateway.url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(raw)
        assert b"Traceback" not in await asyncio.wait_for(reader.read(), 20)
        writer.close()
        await writer.wait_closed()
    await still_serves(gateway, upstream)


async def test_a_slash_too_many_is_an_unknown_route_and_no_redirect(gateway: Gateway) -> None:
    for path in ("/stats/", "/healthz/"):
        envelope(await gateway.client.get(path), 404)
