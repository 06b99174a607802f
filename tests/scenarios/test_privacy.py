"""What was said in confidence: where it is kept, and where not a piece of it may be found."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from proxy.providers.transport import Transport
from tests.gateway import Gateway, lab, running
from tests.upstream import Script, Upstream, answer, completion, error, event, json_answer, stream

Start = Callable[..., Awaitable[Gateway]]

SYSTEM, PROMPT, FILE = "canary-system-5e21c7", "canary-prompt-8a40f9", "canary-file-3d77b1.pdf"
CALLED, SCHEMA, IMAGE = "canary-called-6c1e02", "canary-schema-94d5aa", "canary/image/0f" * 60
SAID, THOUGHT, ASKED_TOOL = "canary-said-b7230e", "canary-thought-41c9d6", "canary-tool-e58f13"
REFUSED, OTHER, SHORT = "canary-refused-27b6d0", "canary-other-c05e8f", "canary-0f31d"

BODY = {
    "messages": [
        {"role": "system", "content": SYSTEM},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": f"Please read this: {PROMPT}"},
                {"type": "file", "file": {"filename": FILE, "file_data": IMAGE}},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}},
            ],
        },
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": f'"{CALLED}"'}}],
        },
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": SCHEMA}}],
    "stop": [OTHER, SHORT],
    "prompt_cache_key": OTHER,
    "user": "u-7",
    "metadata": {"note": OTHER, "tags": ["batch"]},
    "reasoning_effort": f"as {OTHER} says",
}
QUOTED = json.dumps(BODY)
"""A provider's way to say what it does not like."""

MESSAGE = {
    "role": "assistant",
    "content": SAID,
    "reasoning": THOUGHT,
    "refusal": REFUSED,
    "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": f'"{ASKED_TOOL}"'}}],
}
WHOLE = {"choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}]}
NAMES = {
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": f"said {SAID}"}],
    **dict.fromkeys(("model", "system_fingerprint", "service_tier"), f"said {SAID}"),
    "provider": f"it said {SAID} at last",
    "timings": {"prompt_ms": 1.0, "said": SAID, f"of {SAID}": 1},
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "queue_time": SAID},
}
"""Where an upstream's names are asked for, and it says something else."""
CHUNKS = [
    event({"reasoning": THOUGHT}),
    event({"content": SAID[:9]}),
    event({"content": SAID[9:]}),
    event({"refusal": REFUSED}),
    event({"tool_calls": [{"index": 0, **MESSAGE["tool_calls"][0]}]}),  # type: ignore[index]
]
DONE = [event(finish="stop"), b"data: [DONE]\n\n"]


def fault(message: str) -> bytes:
    return b"data: " + json.dumps({"error": {"message": message}}).encode() + b"\n\n"


ECHOES: dict[str, Script] = {
    "invalid": error(400, f"cannot read {PROMPT!r} of {FILE}"),
    "filtered": error(400, f"The prompt '{SYSTEM} {PROMPT}' was filtered", "content_filter"),
    "body": error(422, QUOTED),
    "text": answer(500, QUOTED.encode(), content_type="text/plain"),
    "detail": json_answer({"detail": [{"msg": "bad", "input": BODY}]}, 422),
    "limited": error(429, f"slow down with {PROMPT}"),
    "upper": error(400, f"INVALID PROMPT: {PROMPT.upper()}"),
    "address": error(400, f"GET /?q={quote(PROMPT, safe='').replace('-', '%2D')}"),
    "page": answer(502, f"<p>{PROMPT.replace('-', '&#45;')}</p>".encode()),
    "short": error(400, f"cannot read {SHORT}"),
    "typed": error(400, "no", f"said {SHORT}"),
    "answered": error(500, f"Failed to parse input at pos 0: {SAID}"),
    "names": json_answer(NAMES, x_request_id=f"said {SAID}"),
    "first": stream([fault(QUOTED)]),
    "late": stream([*CHUNKS, 0.01, fault(QUOTED)], ends="cut"),
    "peeked": stream([b"".join([*CHUNKS, fault(f"cannot go on after {SAID}")])], ends="cut"),
    "told": stream([*CHUNKS, 0.01, fault(f"cannot go on after {SAID.upper()}")], ends="cut"),
    "cut": stream(CHUNKS, ends="cut"),
}


class Faulty(Transport):
    """The real one, with a fault of our own that quotes what it was given."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if b'"faulty"' in (body := await request.aread()):
            raise ValueError("cannot send " + body.decode())
        request.stream = httpx.ByteStream(body)
        return await super().handle_async_request(request)


async def live(gateway: Gateway, upstream: Upstream) -> int:
    """Every way in which words come in and go out; how many calls that were."""
    upstream.by_model |= ECHOES
    upstream.by_model |= {"whole": json_answer(WHOLE), "streamed": stream([*CHUNKS, *DONE])}
    names = [*ECHOES, "whole", "streamed", "faulty"]
    for name in names:
        body = {"model": f"lab/{name}", "stream": name not in ("whole", "names"), **BODY}
        with suppress(httpx.RemoteProtocolError):
            await gateway.client.post("/v1/chat/completions", json=body)
    upstream.script = json_answer({"choices": [{"index": 0, "text": SAID}]})
    for path, member in (("completions", "prompt"), ("embeddings", "input")):
        await gateway.client.post(f"/v1/{path}", json={"model": "lab/json", member: PROMPT})
    bad = f'{{"model": "lab/json", "messages": "{PROMPT}'.encode()
    await gateway.client.post("/v1/chat/completions", content=bad)
    told = {"provider": "lab", "model": "m", "prompt": PROMPT, "response": SAID}
    assert (await gateway.client.post("/track/inference", json=told)).status_code == 201
    body = {"model": "lab/streamed", "stream": True, **BODY}
    async with gateway.client.stream("POST", "/v1/chat/completions", json=body) as left:
        async for _ in left.aiter_bytes():
            break
    return len(names) + 5


def providers(upstream: Upstream) -> dict[str, Any]:
    return {"lab": lab(upstream.url, "sk-1", "sk-2", "sk-3")}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


async def found(gateway: Gateway, folder: Path) -> dict[str, str]:
    """All that is on the disk and all that the statistics say, by where it stands."""
    places = {
        name: (folder / name).read_bytes().decode("latin-1")
        for name in files(folder)
        if not name.endswith("tollkeeper.yaml")
    }
    for path in ("summary", "calls", "recent", "errors", "errors/fingerprints", "keys", "events"):
        got = await gateway.client.get(f"/stats/{path}")
        assert got.status_code == 200
        places[path] = got.text
    return places


async def test_at_metadata_no_word_of_a_call_is_found_anywhere(
    upstream: Upstream,
    start: Start,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """S1-12."""
    caplog.set_level(logging.DEBUG)
    config = {"providers": providers(upstream), "server": {"log_level": "debug"}}
    gateway = await start(config, Faulty())
    count = await live(gateway, upstream)
    await gateway.rows(count, "SELECT * FROM api_calls WHERE is_final")
    await gateway.rows(1, "SELECT * FROM errors WHERE stack_trace IS NOT NULL")
    places = await found(gateway, tmp_path)
    out, err = capfd.readouterr()
    ours = [record for record in caplog.records if not record.name.startswith("http")]
    places["the log"] = "\n".join([out, err, *map(logging.Formatter().format, ours)])
    places["its records"] = repr([vars(record) for record in ours])
    assert {"gateway-1/calls.db", "gateway-1/calls.db-wal"} <= places.keys()
    marks = ("canary", "%2d", "&#45;")
    assert not [place for place, text in places.items() for mark in marks if mark in text.lower()]
    rows = {row["model"]: row for row in gateway.select("SELECT * FROM api_calls")}
    # Whom a call is for is no word of it.
    assert (rows["whole"]["user_id"], rows["whole"]["tags"]) == ("u-7", '["batch"]')
    assert rows["invalid"]["error_message"] == "cannot read '[…]' of[…]"
    assert rows["filtered"]["error_message"] == "The prompt '[…]' was […]"
    assert [rows[name]["status"] for name in ("whole", "names", "late", "told", "json")] == [
        *("success", "success", "error", "error", "success")
    ]
    assert json.loads(rows["names"]["metadata"]) == {"timings": {"prompt_ms": 1.0}}
    levels = gateway.select("SELECT DISTINCT privacy_level AS level FROM api_calls")
    assert [row["level"] for row in levels] == ["metadata"]
    assert gateway.select("SELECT * FROM call_contents") == []


@pytest.mark.parametrize("off", [{"privacy_level": "none"}, {"enabled": False}])
async def test_where_nothing_is_kept_no_file_is_made(
    upstream: Upstream, start: Start, tmp_path: Path, off: dict[str, Any]
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/data/none.db"
    telemetry = {"database_url": url, "archive": str(tmp_path / "archive"), **off}
    gateway = await start({"providers": providers(upstream), "telemetry": telemetry}, Faulty())
    upstream.by_model |= {"whole": json_answer(WHOLE), "late": ECHOES["late"]}
    for name in ("whole", "late", "faulty"):
        with suppress(httpx.RemoteProtocolError):
            await gateway.chat(f"lab/{name}", PROMPT)
    summary = (await gateway.client.get("/stats")).json()
    assert (summary["totals"]["requests"], summary["recorder"]["queued"]) == (0, 0)
    assert files(tmp_path) == {"gateway-1/tollkeeper.yaml"}  # the test's own


# Where it is kept, because somebody said so.

FULL = {"telemetry": {"privacy_level": "full"}}


async def content(gateway: Gateway, got: httpx.Response) -> dict[str, Any]:
    """What is kept of a call, once it is."""
    request_id = got.headers["x-request-id"]
    await gateway.rows(1, "SELECT 1 FROM call_contents WHERE request_id = ?", request_id)
    kept = await gateway.client.get(f"/stats/calls/{request_id}/content")
    assert kept.status_code == 200
    told: dict[str, Any] = kept.json()
    return told


async def test_at_full_a_call_is_kept_with_what_was_asked_and_answered(
    upstream: Upstream, start: Start
) -> None:
    """S1-13."""
    gateway = await start({"providers": providers(upstream), **FULL})
    upstream.by_model |= {"whole": json_answer(WHOLE), "streamed": stream([*CHUNKS, *DONE])}
    for name in ("whole", "streamed"):
        body = {"model": f"lab/{name}", "stream": name == "streamed", **BODY}
        got = await gateway.client.post("/v1/chat/completions", json=body)
        kept = await content(gateway, got)
        assert kept["request"]["tools"] == BODY["tools"]
        assert kept["request"]["messages"][0]["content"] == SYSTEM
        file, image = kept["request"]["messages"][1]["content"][1:]
        note = f"[base64, {len(IMAGE)} characters]"
        assert file["file"] == {"filename": FILE, "file_data": note}
        assert image["image_url"]["url"] == f"data:image/png;base64,{note}"
        assert kept["request_length"] == int(got.request.headers["content-length"])
        (choice,) = kept["answer"]["choices"]
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == f'"{ASKED_TOOL}"'
        assert {**choice["message"], "tool_calls": []} == {**MESSAGE, "tool_calls": []}
        assert choice["finish_reason"] == "stop"
        assert (kept["attempt"], kept["request_cut"], kept["answer_cut"]) == (1, False, False)
    rows = await gateway.rows(2)
    assert {row["privacy_level"] for row in rows} == {"full"}
    texts = (await found(gateway, gateway.database.parent)).values()
    assert not [text for text in texts if SAID in text or PROMPT in text]  # compressed, in no list


async def test_of_a_call_that_failed_over_the_final_attempt_has_the_content(
    upstream: Upstream, start: Start
) -> None:
    gateway = await start({"providers": providers(upstream), **FULL})
    upstream.by_key |= {"sk-1": error(429, PROMPT), "sk-2": error(429, PROMPT)}
    upstream.script = completion(SAID)
    kept = await content(gateway, await gateway.chat("lab/m", PROMPT))
    assert (kept["attempt"], kept["request"]["messages"][0]["content"]) == (3, PROMPT)
    assert kept["answer"]["choices"][0]["message"]["content"] == SAID
    rows = await gateway.rows(3)
    assert [row["error_message"] for row in rows] == [PROMPT, PROMPT, None]
    assert len(gateway.select("SELECT * FROM call_contents")) == 1


async def test_a_call_that_failed_is_kept_with_as_much_as_came(
    upstream: Upstream, start: Start
) -> None:
    gateway = await start({"providers": providers(upstream), **FULL})
    upstream.by_model |= {"refused": error(400, "no"), "late": ECHOES["late"]}
    kept = await content(gateway, await gateway.chat("lab/refused", PROMPT))
    assert (kept["request"]["model"], kept["answer"]) == ("lab/refused", None)
    bad = await gateway.client.post("/v1/chat/completions", content=b'{"model": ')
    assert (await content(gateway, bad))["request"] == '{"model": '
    with suppress(httpx.RemoteProtocolError):
        await gateway.chat("lab/late", PROMPT, stream=True)
    (row,) = await gateway.rows(1, "SELECT * FROM call_contents WHERE answer IS NOT NULL")
    late = (await gateway.client.get(f"/stats/calls/{row['request_id']}/content")).json()
    assert late["answer"]["choices"][0]["message"]["content"] == SAID


async def test_a_client_lowers_the_level_of_its_call_and_never_raises_it(
    upstream: Upstream, start: Start
) -> None:
    full = await start({"providers": providers(upstream), **FULL})
    plain = await start({"providers": providers(upstream)})
    upstream.by_model["invalid"] = ECHOES["invalid"]
    for gateway, value, level in (
        (full, "metadata", "metadata"),
        (full, "NONE", "metadata"),
        (full, "Full", "full"),
        (plain, "full", "metadata"),
    ):
        header = {"x-tollkeeper-privacy": value}
        got = await gateway.chat("lab/invalid", PROMPT, headers=header)
        row = await gateway.attempt(got.headers["x-request-id"])
        assert row["privacy_level"] == level
        assert (PROMPT in row["error_message"]) == (level == "full")
    assert "x-tollkeeper-privacy" not in upstream.calls[-1].headers
    await full.rows(1, "SELECT * FROM call_contents")
    for gateway, count in ((full, 1), (plain, 0)):
        assert len(gateway.select("SELECT * FROM call_contents")) == count


async def test_what_is_long_is_cut_and_says_so(upstream: Upstream, start: Start) -> None:
    telemetry = {"privacy_level": "full", "content_max_bytes": "1KiB"}
    gateway = await start({"providers": providers(upstream), "telemetry": telemetry})
    upstream.script = stream([event({"content": "word "}) for _ in range(1000)] + DONE)
    kept = await content(gateway, await gateway.chat("lab/m", "words " * 1000, stream=True))
    assert (kept["request_cut"], kept["answer_cut"]) == (True, True)
    assert (len(kept["request"]), len(kept["answer"])) == (1024, 1024)
    assert kept["request_length"] > 6000
    assert kept["answer_length"] > 5000


async def test_the_content_of_a_call_is_for_the_master_key_alone(
    upstream: Upstream, start: Start
) -> None:
    config = {"providers": providers(upstream), "auth": {"master_key": "tk-master-1"}, **FULL}
    gateway = await start(config)
    got = await gateway.chat("lab/m", PROMPT)
    await content(gateway, got)
    async with httpx.AsyncClient(base_url=gateway.url) as stranger:
        path = f"/stats/calls/{got.headers['x-request-id']}/content"
        assert (await stranger.get(path)).status_code == 401
    missing = await gateway.client.get("/stats/calls/unknown/content")
    assert (missing.status_code, missing.json()["error"]["param"]) == (404, "request_id")


async def test_the_last_calls_before_the_end_are_kept_too(
    upstream: Upstream, tmp_path: Path
) -> None:
    upstream.script = completion(SAID)
    async with running(tmp_path, {"providers": providers(upstream), **FULL}) as gateway:
        for _ in range(5):
            await gateway.chat("lab/m", PROMPT)
    assert len(gateway.select("SELECT * FROM call_contents")) == 5


# Keys.

KEYS = {
    "provider": "sk-canary-5f0e9d8c7b6a",
    "master": "tk-master-canary-91ab",
    "client": "sk-client-canary-77de3f01",
    "redis": "redis-canary-password",
    "issued": "tk-" + "canary-4e1F_" * 3 + "0123456",
}


async def test_no_key_of_anybody_is_found_anywhere(
    upstream: Upstream,
    start: Start,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    config = {
        "providers": {"lab": lab(upstream.url, KEYS["provider"])},
        "auth": {"master_key": KEYS["master"]},
        "state": {"url": f"redis://:{KEYS['redis']}@127.0.0.1:1/0"},
        "server": {"log_level": "debug"},
        **FULL,
    }
    gateway = await start(config, Faulty())
    everything = " ".join(KEYS.values())
    fault = b'data: {"error":"%s"}\n\n' % everything.encode()
    upstream.by_model |= {
        "invalid": error(400, f"Bearer {everything}"),
        "answer": completion(everything),
        "late": stream([event({"content": everything}), 0.01, fault]),
    }
    for name in ("invalid", "answer", "late", "faulty"):
        with suppress(httpx.RemoteProtocolError):
            await gateway.chat(f"lab/{name}", everything, stream=name == "late")
    unknown = await gateway.chat(KEYS["issued"])  # where the model should stand
    assert unknown.status_code == 404
    async with httpx.AsyncClient(base_url=gateway.url) as stranger:
        theirs = {"authorization": f"Bearer {KEYS['client']}"}
        refused = await stranger.post("/v1/chat/completions", json={}, headers=theirs)
    assert refused.status_code == 401
    await gateway.rows(5, "SELECT * FROM api_calls WHERE is_final")
    await gateway.rows(5, "SELECT * FROM call_contents")
    places = await found(gateway, tmp_path)
    for row in gateway.select("SELECT request_id FROM call_contents"):
        path = f"/stats/calls/{row['request_id']}/content"
        places[path] = (await gateway.client.get(path)).text
        assert "[redacted]" in places[path]
    out, err = capfd.readouterr()
    ours = [record for record in caplog.records if not record.name.startswith("http")]
    places["the log"] = "\n".join([out, err, *map(logging.Formatter().format, ours)])
    places["the refusal"] = refused.text
    places["the unknown model"] = unknown.text
    assert not [
        (place, name)
        for place, text in places.items()
        for name, key in KEYS.items()
        if key in text or key[:12] in text
    ]
