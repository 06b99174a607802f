"""What fails goes on to the next key or the next target, and every try leaves its row."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests import transcripts
from tests.gateway import Gateway, lab, running
from tests.upstream import (
    Exchange,
    Script,
    Upstream,
    answer,
    completion,
    drop,
    error,
    event,
    hang,
    json_answer,
    stream,
    upstream_server,
    words,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

DUOS = 60
Place = tuple[Gateway, Upstream, Iterator[int]]


class Duo:
    """An alias of two targets that nobody has used before: ``one`` has two keys, ``two`` has one.

    A silent ``one`` is given up after 0.15 s; ``two`` may take 5.
    """

    def __init__(self, gateway: Gateway, upstream: Upstream, number: int) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.number = number
        self.one, self.two, self.alias = f"one-{number}", f"two-{number}", f"best-{number}"

    @staticmethod
    def config(url: str, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        keys = (f"sk-one-{number}-1", f"sk-one-{number}-2")
        providers = {
            f"one-{number}": lab(url, *keys, timeouts={"first_byte": 0.15}),
            f"two-{number}": lab(url, f"sk-two-{number}-1"),
        }
        return providers, {"targets": [f"one-{number}/m", f"two-{number}/m"]}

    def answers(
        self, first: Script, second: Script | None = None, two: Script | None = None
    ) -> None:
        """What the keys of ``one`` and the key of ``two`` get; a plain success if not said."""
        for key, script in (
            (f"sk-one-{self.number}-1", first),
            (f"sk-one-{self.number}-2", second or completion("second")),
            (f"sk-two-{self.number}-1", two or completion("two")),
        ):
            self.upstream.by_key[key] = script

    async def chat(self, model: str | None = None, **more: Any) -> httpx.Response:
        return await self.gateway.chat(model or self.alias, **more)

    async def story(self, got: httpx.Response) -> list[tuple[str, str, str | None]]:
        """Provider without its number, key and reason of each row, which must hang together."""
        rows = await self.gateway.attempts(got.headers["x-request-id"])
        assert [row["attempt"] for row in rows] == list(range(1, len(rows) + 1))
        assert [row["is_final"] for row in rows] == [0] * (len(rows) - 1) + [1]
        assert got.headers["x-tollkeeper-attempts"] == str(len(rows))
        assert rows[-1]["client_status"] == got.status_code
        assert all(row["client_status"] is None for row in rows[:-1])
        assert all(row["requested_model"] == rows[0]["requested_model"] for row in rows)
        assert {row["success"] for row in rows[:-1]} <= {0}
        told = self.gateway.select(
            "SELECT attempt, error_type FROM errors WHERE request_id = ? ORDER BY attempt",
            rows[0]["request_id"],
        )
        assert [(each["attempt"], each["error_type"]) for each in told] == [
            (row["attempt"], row["error_reason"]) for row in rows if not row["success"]
        ]
        return [(row["provider"].split("-")[0], row["key_id"], row["error_reason"]) for row in rows]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    async with upstream_server() as upstream:
        providers: dict[str, Any] = {}
        models: dict[str, Any] = {}
        for number in range(DUOS):
            pair, models[f"best-{number}"] = Duo.config(upstream.url, number)
            providers |= pair
        closed = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = closed.sockets[0].getsockname()[1]
        closed.close()
        providers["dead"] = lab(f"http://127.0.0.1:{port}/v1", "sk-dead-1", "sk-dead-2")
        providers["third"] = lab(upstream.url, "sk-third-1")
        providers["groq"] = {
            "base_url": upstream.url,
            "keys": [{"name": "g", "value": "sk-groq-1111"}],
        }
        providers["slow"] = lab(
            upstream.url, *(f"sk-slow-{n}" for n in range(6)), timeouts={"first_byte": 2}
        )
        models["around-dead"] = {"targets": ["dead/m", "third/m"]}
        models["around-groq"] = {"targets": ["groq/m", "third/m"]}
        async with running(
            tmp_path_factory.mktemp("failover"), {"providers": providers, "models": models}
        ) as gateway:
            yield gateway, upstream, itertools.count()


@pytest.fixture
def gateway(place: Place) -> Gateway:
    return place[0]


@pytest.fixture
def upstream(place: Place) -> Upstream:
    place[1].reset()
    return place[1]


@pytest.fixture
def duo(gateway: Gateway, upstream: Upstream, place: Place) -> Duo:
    return Duo(gateway, upstream, next(place[2]))


async def test_a_server_error_goes_to_the_next_key(duo: Duo) -> None:
    duo.answers(error(500, "boom"))
    got = await duo.chat()
    assert got.json()["choices"][0]["message"]["content"] == "second"
    assert got.headers["x-tollkeeper-key"] == "k2"
    assert await duo.story(got) == [("one", "k1", "server_error"), ("one", "k2", None)]


async def test_when_all_keys_of_a_target_fail_the_next_target_serves(duo: Duo) -> None:
    duo.answers(error(503, "full"), error(502, "boom"))
    got = await duo.chat(stream=True)
    assert got.headers["x-tollkeeper-provider"] == duo.two
    assert await duo.story(got) == [
        ("one", "k1", "overloaded"),
        ("one", "k2", "server_error"),
        ("two", "k1", None),
    ]


async def test_a_failed_attempt_keeps_what_was_learnt_of_it(duo: Duo) -> None:
    duo.answers(error(500, "the disk is full", "disk"))
    got = await duo.chat()
    failed, served = await duo.gateway.attempts(got.headers["x-request-id"])
    assert (failed["http_status"], failed["status"]) == (500, "error")
    assert failed["error_message"] == "the disk is full"
    assert (failed["usage_source"], failed["cost_estimate_usd"]) == ("none", None)
    assert failed["response_time_ms"] > 0
    assert failed["total_duration_ms"] is None
    assert served["total_duration_ms"] > 0
    assert (served["http_status"], served["error_reason"]) == (200, None)
    assert served["timestamp"] >= failed["timestamp"]


async def test_a_refused_connection_goes_to_the_next_target(duo: Duo) -> None:
    got = await duo.chat("around-dead")
    assert got.headers["x-tollkeeper-provider"] == "third"
    refused, served = await duo.story(got)
    assert (refused[0], refused[2], served[0]) == ("dead", "connect", "third")


async def test_a_refused_connection_alone_is_a_bad_gateway(duo: Duo) -> None:
    got = await duo.chat("dead/m")
    assert got.status_code == 502
    assert got.json()["error"]["code"] == "upstream_connect"
    assert "dead/m" in got.json()["error"]["message"]
    [(provider, _, reason)] = await duo.story(got)
    assert (provider, reason) == ("dead", "connect")


async def test_a_silent_target_is_left_for_the_next_and_its_other_key_spared(duo: Duo) -> None:
    duo.answers(hang)
    got = await duo.chat()
    assert got.status_code == 200
    assert await duo.story(got) == [("one", "k1", "timeout"), ("two", "k1", None)]
    rows = await duo.gateway.attempts(got.headers["x-request-id"])
    assert rows[0]["status"] == "timeout"
    assert not [call for call in duo.upstream.calls if call.key.endswith("-2")]


async def test_a_reset_is_left_for_the_next_and_its_other_key_spared(duo: Duo) -> None:
    duo.answers(drop)
    got = await duo.chat()
    assert got.status_code == 200
    assert await duo.story(got) == [("one", "k1", "stream_error"), ("two", "k1", None)]


async def test_what_may_have_been_executed_goes_on_only_once(duo: Duo) -> None:
    """Three targets; the second one fails in the same way, and the third is never asked."""
    duo.answers(drop, two=answer(200, b"<html>down</html>"))
    duo.upstream.by_key["sk-third-1"] = completion("third")
    got = await duo.chat()
    assert got.status_code == 502
    assert await duo.story(got) == [("one", "k1", "stream_error"), ("two", "k1", "bad_response")]


async def test_a_timeout_alone_is_a_gateway_timeout(duo: Duo) -> None:
    duo.answers(hang)
    got = await duo.chat(f"{duo.one}/m")
    assert got.status_code == 504
    assert got.json()["error"]["code"] == "upstream_timeout"
    assert got.headers["x-should-retry"] == "false"
    assert await duo.story(got) == [("one", "k1", "timeout")]


@pytest.mark.parametrize(
    ("status", "reason"),
    [(400, "invalid_request"), (403, "forbidden"), (413, "too_large"), (422, "invalid_request")],
)
async def test_the_clients_own_mistake_comes_back_as_it_was_said(
    duo: Duo, status: int, reason: str
) -> None:
    said = {"message": "temperature: too hot", "type": "odd", "param": "temperature", "code": "hot"}
    duo.answers(json_answer({"error": said}, status))
    got = await duo.chat(stream=True)
    assert (got.status_code, got.json()) == (status, {"error": said})
    assert await duo.story(got) == [("one", "k1", reason)]
    [row] = await duo.gateway.attempts(got.headers["x-request-id"])
    assert (row["http_status"], row["status"]) == (status, "error")


async def test_a_model_that_one_target_lacks_is_served_by_the_next(duo: Duo) -> None:
    duo.answers(error(404, "The model `m` does not exist"))
    got = await duo.chat()
    assert await duo.story(got) == [("one", "k1", "not_found"), ("two", "k1", None)]


async def test_a_model_that_no_target_has_is_not_found(duo: Duo) -> None:
    duo.answers(error(404, "no"), two=error(404, "no such model", "model_not_found"))
    got = await duo.chat()
    assert got.status_code == 404
    assert got.json()["error"]["message"] == "no such model"
    assert len(await duo.story(got)) == 2


async def test_a_prompt_over_groqs_minute_goes_to_a_target_with_more_room(duo: Duo) -> None:
    duo.upstream.by_key["sk-groq-1111"] = answer(413, transcripts.body("T4"))
    got = await duo.chat("around-groq")
    assert await duo.story(got) == [("groq", "g", "too_large"), ("third", "k1", None)]
    alone = await duo.chat("groq/m")
    assert alone.status_code == 413
    assert "please reduce your message size" in alone.json()["error"]["message"]


async def test_an_error_as_a_streams_first_event_is_a_failed_attempt(duo: Duo) -> None:
    said = b'data: {"error":{"code":500,"message":"slot lost","type":"server_error"}}\n\n'
    duo.answers(stream([said]), stream(words("x")))
    got = await duo.chat(stream=True)
    assert b"error" not in got.content
    assert got.content.endswith(b"data: [DONE]\n\n")
    assert await duo.story(got) == [("one", "k1", "server_error"), ("one", "k2", None)]


async def test_the_clients_own_mistake_in_a_streams_first_event_gets_its_status(duo: Duo) -> None:
    duo.answers(stream([transcripts.stream("T20.error")]))
    got = await duo.chat(stream=True)
    assert got.status_code == 400
    assert got.headers["content-type"] == "application/json"
    assert got.json()["error"]["code"] == "context_length_exceeded"
    assert await duo.story(got) == [("one", "k1", "context_length")]


async def test_an_error_behind_comments_and_a_role_is_a_failed_attempt(duo: Duo) -> None:
    said = b'data: {"error":{"message":"capacity","code":503}}\n\n'
    duo.answers(stream([b": hi\n\n", event({"role": "assistant", "content": ""}), 0.02, said]))
    got = await duo.chat()
    assert got.json()["choices"][0]["message"]["content"] == "second"
    assert await duo.story(got) == [("one", "k1", "overloaded"), ("one", "k2", None)]


@pytest.mark.parametrize(
    "body",
    [
        transcripts.body("T13.inside"),
        b'{"error":{"message":"Provider returned error","code":502}}',
        b'{"id":"x","choices":[],"error":{"message":"upstream died","type":"server_error"}}',
    ],
)
async def test_an_error_inside_a_200_is_a_failed_attempt(duo: Duo, body: bytes) -> None:
    duo.answers(answer(200, body))
    got = await duo.chat()
    assert got.json()["choices"][0]["message"]["content"] == "second"
    assert await duo.story(got) == [("one", "k1", "server_error"), ("one", "k2", None)]
    failed, _ = await duo.gateway.attempts(got.headers["x-request-id"])
    assert failed["http_status"] == 200


async def test_a_body_that_failed_late_is_counted_all_the_same(duo: Duo) -> None:
    """The provider may have billed the tokens that it reports beside its error."""
    duo.answers(answer(200, transcripts.body("T13.inside")))
    got = await duo.chat()
    failed, _ = await duo.gateway.attempts(got.headers["x-request-id"])
    assert (failed["input_tokens"], failed["output_tokens"]) == (12, 3)
    assert failed["usage_source"] == "provider"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (stream([]), "empty_response"),
        (stream([b": only a comment\n\n"]), "truncated"),
        (stream([event({"role": "assistant", "content": ""})]), "truncated"),
        (answer(200, b""), "empty_response"),
        (answer(200, b"<html>502 Bad Gateway</html>"), "bad_response"),
        (answer(200, b"[]"), "bad_response"),
        (answer(307, b"", location="https://elsewhere/"), "bad_response"),
    ],
)
async def test_an_answer_without_substance_goes_to_the_next_target(
    duo: Duo, script: Script, reason: str
) -> None:
    duo.answers(script)
    got = await duo.chat()
    assert got.json()["choices"][0]["message"]["content"] == "two"
    assert await duo.story(got) == [("one", "k1", reason), ("two", "k1", None)]


async def test_an_answer_that_is_no_http_goes_to_the_next_target(duo: Duo) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(b"SSH-2.0-OpenSSH_9.2\r\n")
        await exchange.close()

    duo.answers(script)
    got = await duo.chat()
    assert await duo.story(got) == [("one", "k1", "bad_response"), ("two", "k1", None)]


async def test_when_nothing_is_left_the_last_cause_is_named(duo: Duo) -> None:
    duo.answers(error(500, "a"), error(500, "b"), two=error(529, "the last straw"))
    got = await duo.chat()
    said = got.json()["error"]
    assert got.status_code == 503
    assert said["code"] == "upstream_overloaded"
    assert f"{duo.two}/m" in said["message"]
    assert "the last straw" in said["message"]
    assert len(await duo.story(got)) == 3


async def test_the_cause_is_named_after_the_target_that_failed(duo: Duo) -> None:
    """The second target's only key is resting, so nothing was asked of it."""
    duo.answers(
        error(500, "boom"), error(500, "boom"), two=error(429, "slow down", retry_after="60")
    )
    await duo.chat(f"{duo.two}/m")
    got = await duo.chat()
    assert got.status_code == 502
    assert f"{duo.one}/m" in got.json()["error"]["message"]
    assert duo.two not in got.json()["error"]["message"]


async def test_nothing_is_tried_after_the_first_byte(duo: Duo) -> None:
    duo.answers(stream([event({"content": "a"}), 0.05, event({"content": "b"})], ends="cut"))
    line = await duo.gateway.dial({"model": duo.alias, "stream": True}, "x-request-id: first-byte")
    assert b"stream_truncated" in await line.rest()
    [row] = await duo.gateway.attempts("first-byte")
    assert (row["provider"], row["error_reason"]) == (duo.one, "truncated")
    assert len(duo.upstream.calls) == 1


async def test_one_deadline_holds_for_all_tries(duo: Duo) -> None:
    """Six keys, each refused after 0.8 s, and two seconds in all."""

    async def refuse(exchange: Exchange) -> None:
        await asyncio.sleep(0.8)
        await error(500, "no")(exchange)

    duo.upstream.script = refuse
    got = await duo.chat("slow/m")
    assert got.status_code in (502, 504)
    assert 1 < len(await duo.story(got)) <= 3
