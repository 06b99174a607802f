from __future__ import annotations

import asyncio
import csv
import io
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from proxy.api import errors, stats
from proxy.changes import BreakerRecord, CooldownRecord
from proxy.clock import now_ms, rfc3339
from proxy.sample import GpuSample, HostSample
from proxy.store import samples
from proxy.store.address import parse
from proxy.store.credits import Account, Credits
from proxy.store.engine import Store
from proxy.store.events import EventRecord
from proxy.store.filters import Filters
from proxy.store.migrate import migrate
from proxy.store.recent import Recent
from tests.store.rows import call, failed

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
NOON = 1_735_732_800_000  # 2025-01-01T12:00:00Z
PATHS = (
    "",
    "/summary",
    "/calls",
    "/providers",
    "/models",
    "/endpoints",
    "/errors",
    "/keys",
    "/timeseries",
    "/rate-limits",
    "/credits",
    "/events",
    "/health",
    "/tps",
    "/system",
    "/costs/daily",
    "/database",
    "/recent",
    "/groups",
    "/compare",
    "/waste",
    "/errors/fingerprints",
)
LISTS = sorted(set(PATHS) - {"", "/summary", "/database"})
RECORDER = {"recorded": 3, "queued": 1, "dropped": 0, "last_error": None}
KEYS = [
    {
        "provider": "groq",
        "name": "org-a",
        "quota_group": "org-a",
        "state": "cooling",
        "reason": "rate_limit",
        "until": NOON,
        "in_flight": 2,
        "models": [{"model": "llama", "state": "cooling", "reason": "rate_limit", "until": NOON}],
        "limits": [],
    },
    {
        "provider": "ollama",
        "name": None,
        "quota_group": None,
        "state": "healthy",
        "reason": None,
        "until": None,
        "in_flight": 0,
        "models": [],
        "limits": [],
    },
]

Get = Callable[..., Any]


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "empty.db"
    asyncio.run(migrate(parse(f"sqlite+aiosqlite:///{path}")))
    return path


@pytest.fixture
async def store(migrated: Path, tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(f"sqlite+aiosqlite:///{shutil.copy(migrated, tmp_path / 't.db')}")
    await store.open()
    yield store
    await store.close()


class Memory:
    def __init__(self, calls: Recent) -> None:
        self._calls = calls

    async def recorder(self) -> dict[str, Any]:
        return RECORDER

    async def keys(self) -> list[dict[str, Any]]:
        return KEYS

    async def recent(self, filters: Filters, limit: int) -> list[msgspec.Raw]:
        return self._calls.newest(filters, limit)


def client_of(store: Store, recent: Recent | None = None) -> httpx.AsyncClient:
    app = FastAPI()
    errors.install(app)
    app.include_router(stats.stats_router(store, Memory(recent or Recent())))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


@pytest.fixture
async def get(store: Store) -> AsyncIterator[Get]:
    async with client_of(store) as client:

        async def ask(path: str, expected: int = 200, **params: Any) -> Any:
            answer = await client.get(f"/stats{path}", params=params)
            assert answer.status_code == expected, answer.text
            return answer.json()

        yield ask


@pytest.mark.parametrize("path", PATHS)
async def test_an_empty_database_answers(get: Get, path: str) -> None:
    body = await get(path)
    if path in ("", "/summary"):
        assert body["totals"]["requests"] == 0
        assert body["totals"]["success_rate"] is None
        assert body["latency_ms"] == {"avg": None, "p50": None, "p95": None, "p99": None}
    elif path != "/database":
        assert body["next_cursor"] is None


@pytest.mark.parametrize("path", PATHS)
async def test_a_store_that_keeps_nothing_answers(path: str) -> None:
    store = Store(None)
    await store.open()
    async with client_of(store) as client:
        assert (await client.get(f"/stats{path}")).status_code == 200
    await store.close()


async def test_a_database_that_is_not_there_is_a_503_but_for_the_summary(tmp_path: Path) -> None:
    store = Store(f"sqlite+aiosqlite:///{tmp_path}/missing/t.db")
    async with client_of(store) as client:
        answer = await client.get("/stats/calls")
        summary = await client.get("/stats")
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "the database is not open"
    assert summary.status_code == 200
    assert set(summary.json()["totals"].values()) == {None}
    assert "recorded" in summary.json()["recorder"]


async def test_the_summary_is_what_a_pencil_says(store: Store, get: Get) -> None:
    now = now_ms()
    latencies = [100.0, 200.0, 300.0, 400.0, 1000.0]
    await store.write(
        [call(timestamp=now - 60_000, total_duration_ms=value) for value in latencies]
        + [failed(timestamp=now - 60_000, total_duration_ms=None)]
        + [call(timestamp=now - 25 * HOUR)]
    )
    await store.write([HostSample(now - 60_000, cpu_percent=12.5)])
    body = await get("/summary")
    assert body["machine"] == {**samples.UNKNOWN, "cpu_percent": 12.5}
    assert list(body) == [
        *("window", "totals", "latency_ms", "ttft_ms", "tokens_per_second"),
        *("machine", "recorder"),
    ]
    assert body["totals"] == {
        "requests": 6,
        "attempts": 6,
        "success": 5,
        "errors": 1,
        "cancelled": 0,
        "rejected": 0,
        "success_rate": pytest.approx(5 / 6),
        "failovers": 0,
        "input_tokens": 5000,
        "output_tokens": 2500,
        "total_tokens": 7500,
        "cost_usd": 0.004925,
        "unpriced": 0,
    }
    assert body["latency_ms"] == {
        "avg": 400.0,
        "p50": 300.0,
        "p95": pytest.approx(880.0),
        "p99": pytest.approx(976.0),
    }
    assert body["recorder"] == RECORDER
    assert (await get("/summary", period="7d"))["totals"]["requests"] == 7
    assert await get("", end=now / 1000) == await get("/summary", end=now / 1000)


@pytest.mark.parametrize(("period", "length"), [("1h", HOUR), ("24h", DAY)])
async def test_the_edge_of_a_period_is_sharp(
    store: Store, get: Get, period: str, length: int
) -> None:
    now = now_ms()
    await store.write([call(timestamp=now - length + by) for by in (5000, -5000)])
    assert (await get("", period=period))["totals"]["requests"] == 1


@pytest.mark.parametrize(("period", "length"), [("7d", 7 * DAY), ("30d", 30 * DAY)])
async def test_a_long_period_begins_with_a_whole_hour(
    store: Store, get: Get, monkeypatch: pytest.MonkeyPatch, period: str, length: int
) -> None:
    now = (now_ms() - 40 * MINUTE) // HOUR * HOUR + 40 * MINUTE
    monkeypatch.setattr(stats, "now_ms", lambda: now)
    first = now - length - 40 * MINUTE
    await store.write([call(timestamp=at) for at in (first - 1, first, now)])
    body = await get("", period=period)
    assert body["window"] == {"start": rfc3339(first), "end": rfc3339(now + 1)}
    assert body["totals"]["requests"] == 2
    exactly = await get("", period=period, end=now / 1000)
    assert exactly["window"]["start"] == rfc3339(now - length)
    assert exactly["totals"]["requests"] == 0


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2025-01-01T12:00:00Z", "2025-01-01T12:00:01Z"),
        ("2025-01-01T14:00:00+02:00", "2025-01-01T12:00:00.001Z"),
        (str(NOON // 1000), str(NOON / 1000 + 0.5)),
        ("2025-01-01", "2025-01-02"),
    ],
)
async def test_a_window_is_given_in_several_forms(
    store: Store, get: Get, start: str, end: str
) -> None:
    await store.write([call(timestamp=NOON), call(timestamp=NOON + 2 * DAY)])
    body = await get("", start=start, end=end)
    assert body["totals"]["requests"] == 1
    assert body["window"]["start"].startswith("2025-01-01T")
    assert body["window"]["start"].endswith("Z")


async def test_a_period_may_end_anywhere(store: Store, get: Get) -> None:
    await store.write([call(timestamp=NOON)])
    body = await get("", period="1h", end="2025-01-01T12:30:00Z")
    assert body["window"]["start"] == "2025-01-01T11:30:00.000Z"
    assert body["totals"]["requests"] == 1


async def test_filters_repeat_and_combine(store: Store, get: Get) -> None:
    await store.write([call(), call(provider="gemini"), call(provider="lab"), failed()])
    two = await get("/calls", provider=["groq", "gemini"], status="success")
    assert sorted(row["provider"] for row in two["data"]) == ["gemini", "groq"]
    assert (await get("", min_tokens=2000))["totals"]["requests"] == 0


async def test_calls_have_pages(store: Store, get: Get) -> None:
    await store.write([call(request_id=f"r{n}") for n in range(5)])
    seen, cursor = [], None
    for _ in range(3):
        page = await get("/calls", limit=2, **({"cursor": cursor} if cursor else {}))
        seen += [row["request_id"] for row in page["data"]]
        cursor = page["next_cursor"]
    assert sorted(seen) == ["r0", "r1", "r2", "r3", "r4"]
    assert cursor is None


async def test_a_call_is_shown_under_its_columns(store: Store, get: Get) -> None:
    await store.write([call(timestamp=now_ms(), metadata='{"a": 1}')])
    ((row,),) = [(await get("/calls"))["data"]]
    assert row["metadata"] == {"a": 1}
    assert (row["is_final"], row["is_stream"], row["success"]) == (True, True, True)
    assert row["cost_estimate_usd"] == 0.000985
    assert row["timestamp"].endswith("Z")
    assert row["error_reason"] is None


async def test_one_request_is_shown_with_its_attempts(store: Store, get: Get) -> None:
    await store.write([failed(request_id="r", is_final=False), call(request_id="r", attempt=2)])
    body = await get("/calls/r")
    assert body["request_id"] == "r"
    assert [row["status"] for row in body["data"]] == ["error", "success"]
    missing = await get("/calls/other", expected=404)
    assert missing["error"]["param"] == "request_id"


async def test_groups_have_the_same_measures(store: Store, get: Get) -> None:
    await store.write([call(), call(), call(provider="gemini", model="flash"), failed("timeout")])
    totals = (await get(""))["totals"]
    for path in ("/providers", "/models", "/endpoints"):
        groups = (await get(path))["data"]
        assert sum(group["attempts"] for group in groups) == 4
        assert sum(group["cost_usd"] for group in groups) == pytest.approx(totals["cost_usd"])
        assert groups[0]["ttft_ms"]["p95"] == 200.0
    (late,) = (await get("/errors"))["data"]
    assert (late["provider"], late["error_reason"], late["errors"]) == ("groq", "timeout", 1)
    first = await get("/models", limit=1)
    second = await get("/models", limit=1, cursor=first["next_cursor"])
    models = [page["data"][0]["model"] for page in (first, second)]
    assert (models, second["next_cursor"]) == (["llama", "flash"], None)


async def test_keys_join_their_state_and_their_use(store: Store, get: Get) -> None:
    await store.write([call(), call(), call(key_id="gone"), call(provider="ollama", key_id="old")])
    used, unused = (await get("/keys"))["data"]
    assert (used["state"], used["until"]) == ("cooling", "2025-01-01T12:00:00.000Z")
    assert used["models"][0]["until"] == "2025-01-01T12:00:00.000Z"
    assert (used["in_flight"], used["requests"]) == (2, 2)
    assert used["cost_usd"] == 0.00197
    assert (unused["state"], unused["until"], unused["requests"]) == ("healthy", None, 0)
    assert unused["latency_ms"]["p50"] is None
    await store.write([call(provider="ollama", key_id=None)])
    (keyless,) = (await get("/keys", provider="ollama"))["data"]
    assert (keyless["name"], keyless["requests"]) == (None, 1)
    assert (await get("/keys", key="org-a"))["data"] == [used]


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("requests", 1),
        ("errors", 0),
        ("latency_ms", 1000.25),
        ("ttft_ms", 200.0),
        ("tokens_per_second", 100.0),
        ("input_tokens", 1000),
        ("output_tokens", 500),
        ("cost_usd", 0.000985),
    ],
)
async def test_a_series_has_every_bucket(store: Store, get: Get, metric: str, value: float) -> None:
    await store.write([call(timestamp=NOON + 90_000)])
    window = {"start": "2025-01-01T12:00:00Z", "end": "2025-01-01T12:05:00Z"}
    body = await get("/timeseries", metric=metric, bucket="minute", **window)
    assert [point["timestamp"] for point in body["data"]] == [
        rfc3339(NOON + minute * 60_000) for minute in range(5)
    ]
    assert body["data"][1]["value"] == value
    assert body["data"][2]["value"] in (0, None)


async def test_the_machine_is_shown_with_its_gpus(store: Store, get: Get) -> None:
    await store.write([HostSample(now_ms(), 1, cpu_percent=5.0, gpus=(GpuSample(0, name="fake"),))])
    (sample,) = (await get("/system"))["data"]
    assert (sample["cpu_percent"], sample["gpus"][0]["name"]) == (5.0, "fake")


async def test_days_are_listed_newest_first_and_both_ends_count(store: Store, get: Get) -> None:
    await store.write([call(timestamp=NOON + day * DAY, agent_name="a") for day in range(4)])
    window = {"start": "2025-01-02", "end": "2025-01-03T10:00:00Z"}
    days = (await get("/costs/daily", agent="a", **window))["data"]
    assert [day["date"] for day in days] == ["2025-01-03", "2025-01-02"]
    assert days[0]["total_cost_usd"] == 0.000985


async def test_the_database_counts_itself(store: Store, get: Get) -> None:
    await store.write([call(timestamp=NOON)])
    body = await get("/database")
    rows = {table["name"]: table["rows"] for table in body["tables"]}
    assert (rows["api_calls"], rows["daily_costs"], rows["errors"]) == (1, 1, 0)
    assert body["oldest"] == "2025-01-01T12:00:00.000Z"
    assert (body["queue_depth"], body["refused"], body["recorder"]) == (1, 0, RECORDER)


async def test_the_recent_calls_need_no_database() -> None:
    recent = Recent()
    for number in range(3):
        recent.add(call(request_id=f"r{number}", provider=("groq", "lab")[number % 2]))
    async with client_of(Store("sqlite+aiosqlite:///missing/t.db"), recent) as client:
        body = (await client.get("/stats/recent", params={"limit": 2})).json()
        (one,) = (await client.get("/stats/recent?provider=lab")).json()["data"]
    assert [row["request_id"] for row in body["data"]] == ["r2", "r1"]
    assert (one["request_id"], one["id"], body["next_cursor"]) == ("r1", None, None)


async def test_providers_stand_side_by_side(store: Store, get: Get) -> None:
    slow = call(provider="lab", total_duration_ms=2000.5)
    await store.write([call(), call(), slow, call(model="qwen", total_duration_ms=2000.5)])
    body = await get("/compare")
    assert (body["by"], [row["provider"] for row in body["data"]]) == ("provider", ["groq", "lab"])
    body = await get("/compare", by="model", limit=1)
    assert [(row["provider"], row["model"]) for row in body["data"]] == [("groq", "llama")]
    rest = (await get("/compare", by="model", cursor=body["next_cursor"]))["data"]
    assert {row["ratio"]["latency_ms"]["p50"] for row in rest} == {2.0}  # to the best of all pages


async def test_the_dearest_groups_stand_before_all_others(store: Store, get: Get) -> None:
    ann = {"client_id": "ann", "tags": '["eu"]', "user_id": "u-1", "session_id": "s-1"}
    await store.write([call(**ann), call(**ann), call(client_id="bo"), failed(), call()])
    body = await get("/groups", group_by=["client", "status"], top=1)
    assert list(body) == ["window", "group_by", "order", "data", "next_cursor"]
    assert (body["group_by"], body["order"]) == (["client", "status"], "cost_usd")
    first, rest = body["data"]
    assert (first["client"], first["status"], first["other"]) == ("ann", "success", False)
    assert (rest["client"], rest["status"], rest["other"]) == (None, None, True)
    assert (first["requests"], rest["requests"]) == (2, 3)
    default = (await get("/groups", order="requests"))["data"]
    assert [row["client"] for row in default] == ["ann", None, "bo"]
    twice = await get("/groups", group_by=["tag", "tag"], user="u-1", session="s-1", tag="eu")
    assert [(row["tag"], row["requests"]) for row in twice["data"]] == [("eu", 2)]
    assert (await get("/calls", tag="eu"))["data"][0]["tags"] == ["eu"]


async def test_three_dimensions_are_too_many(get: Get) -> None:
    error = await get("/groups", expected=422, group_by=["client", "user", "tag"])
    assert error["error"]["param"] == "group_by"


async def test_the_recent_calls_of_a_user_or_a_tag(store: Store) -> None:
    recent = Recent()
    for each in (call(user_id="ann", tags='["eu","batch"]'), call(session_id="s-1"), call()):
        recent.add(each)
    async with client_of(store, recent) as client:
        for name, value in {"user": "ann", "tag": "batch", "session": "s-1"}.items():
            found = (await client.get("/stats/recent", params={name: value})).json()["data"]
            assert len(found) == 1, name


async def test_waste_has_totals_by_kind_and_groups_of_them(store: Store, get: Get) -> None:
    await store.write([failed(), call(status="cancelled", model="qwen")])
    body = await get("/waste", limit=1)
    assert list(body) == ["window", "totals", "data", "next_cursor"]
    assert list(body["totals"]) == ["all", "failed", "abandoned", "discarded"]
    assert (body["totals"]["failed"]["cost_usd"], body["totals"]["failed"]["unpriced"]) == (None, 1)
    assert body["totals"]["all"]["cost_usd"] == 0.000985
    (first,) = body["data"]
    assert (first["model"], first["abandoned"]["attempts"], body["next_cursor"]) == ("qwen", 1, "1")


async def test_errors_of_one_kind_are_one(store: Store, get: Get) -> None:
    before = now_ms() - 60_000
    await store.write([failed(timestamp=before) for _ in range(2)])
    await store.write([failed("timeout", timestamp=before)])
    first, second = (await get("/errors/fingerprints"))["data"]
    assert (first["reason"], first["count"], second["count"]) == ("server_error", 2, 1)
    assert first["message"] == "it failed: server_error"


def sheet(answer: httpx.Response) -> list[dict[str, str]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    return list(csv.DictReader(io.StringIO(answer.text, newline="")))


@pytest.mark.parametrize("path", LISTS)
async def test_every_list_is_csv_where_that_is_asked_for(store: Store, path: str) -> None:
    turned = BreakerRecord("groq", "llama", "closed", "open", "timeout", NOON, 1, now_ms())
    rest = CooldownRecord("groq", "", "org-a", "org", NOON, "rate_limit", 1, NOON)
    calls = [call(), failed("timeout", timestamp=now_ms() - 60_000)]
    event, sample = EventRecord("e", now_ms(), "hit"), HostSample(now_ms(), 1, gpus=(GpuSample(0),))
    await store.write([*calls, rest, turned, event, sample])
    await Credits(store).allow(Account("search", "tavily", "main"), 1, "monthly", NOON)
    recent = Recent()
    recent.add(calls[0])
    async with client_of(store, recent) as client:
        rows = sheet(await client.get(f"/stats{path}", headers={"accept": "text/csv"}))
        (first, *_) = data = (await client.get(f"/stats{path}")).json()["data"]
    assert len(rows) == len(data)
    flat = {}
    for name, value in first.items():
        members = value.items() if isinstance(value, dict) else [("", value)]
        for member, inner in members:
            further = inner.items() if isinstance(inner, dict) else [("", inner)]
            flat |= {".".join(filter(None, (name, member, last))): v for last, v in further}
    known = {name: value for name, value in flat.items() if not isinstance(value, list)}
    assert {name for name in rows[0] if name not in ("tried", "succeeded")} == set(known)
    for name, value in known.items():
        told = str(value).lower() if isinstance(value, bool) else value
        assert rows[0][name] == ("" if told is None else str(told)), name


@pytest.mark.parametrize("path", LISTS)
async def test_a_csv_has_the_same_columns_without_rows(store: Store, path: str) -> None:
    async with client_of(store) as client:
        nobody = {"provider": "nobody", "end": 0}
        csv_ = {"accept": "text/csv"}
        empty = await client.get(f"/stats{path}", headers=csv_, params=nobody)
        assert sheet(empty) == [], empty.text
        await store.write([call(timestamp=NOON), failed(timestamp=NOON)])
        full = await client.get(f"/stats{path}", headers=csv_, params={"end": NOON / 1000 + 9})
    assert empty.text.splitlines()[0] == full.text.splitlines()[0]


async def test_a_csv_has_pages_and_one_request_too(store: Store) -> None:
    names = [f"r{n}" for n in range(5)]
    await store.write([call(request_id=name, agent_name="=1+1") for name in names])
    seen: list[str] = []
    async with client_of(store) as client:
        url: Any = "/stats/calls?limit=2&agent=%3D1%2B1"
        while url:
            answer = await client.get(url, headers={"accept": "text/csv"})
            seen += [row["request_id"] for row in sheet(answer)]
            following = answer.links.get("next")
            url = answer.request.url.join(following["url"]) if following else None
            assert (answer.headers.get("x-next-cursor") is None) == (url is None)
        (one,) = sheet(await client.get("/stats/calls/r1", headers={"accept": "text/csv"}))
        groups = await client.get("/stats/models?limit=1", headers={"accept": "text/csv"})
        wrong = await client.get("/stats/calls?limit=0", headers={"accept": "text/csv"})
    assert sorted(seen) == names
    assert (one["request_id"], one["agent_name"]) == ("r1", "'=1+1")
    assert "x-next-cursor" not in groups.headers
    assert wrong.json()["error"]["param"] == "limit"


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("", "period", "2h"),
        ("", "start", "yesterday"),
        ("", "start", "nan"),
        ("", "end", "2025-13-01"),
        ("", "end", "-5"),
        ("", "start", "2999-01-01"),
        ("", "perod", "1h"),
        ("/calls", "limit", "0"),
        ("/calls", "limit", "1001"),
        ("/calls", "limit", "many"),
        ("/calls", "cursor", "nonsense"),
        ("/providers", "cursor", "-1"),
        ("/tps", "cursor", "WzEsMl0x"),
        ("/calls", "status", "broken"),
        ("/calls", "min_latency_ms", "inf"),
        ("/calls", "min_latency_ms", "-1"),
        ("/calls", "min_tokens", "1.5"),
        ("/calls", "min_tokens", str(2**70)),
        ("/timeseries", "metric", "happiness"),
        ("/timeseries", "bucket", "week"),
        ("/compare", "by", "key"),
        ("/groups", "group_by", "country"),
        ("/groups", "order", "latency_ms"),
        ("/groups", "top", "0"),
        ("/groups", "top", "1001"),
        ("/compare", "cursor", "-1"),
        ("/calls", "by", "model"),
        ("/waste", "start", "yesterday"),
        ("/recent", "limit", "1001"),
        ("/costs/daily", "start", "01/02/2025"),
    ],
)
async def test_a_bad_parameter_is_named(get: Get, path: str, name: str, value: str) -> None:
    error = (await get(path, expected=422, **{name: value}))["error"]
    assert error["type"] == "invalid_request_error"
    assert name in error["message"]
    assert error["param"] == name


async def test_too_short_buckets_are_refused(get: Get) -> None:
    error = (await get("/timeseries", expected=422, period="30d", bucket="minute"))["error"]
    assert error["param"] == "bucket"


@pytest.mark.parametrize(
    "value", ["'; DROP TABLE api_calls; --", "%00\0", "é" * 500, "\ud83d\ude00"[:1] or "x"]
)
async def test_odd_values_find_nothing(store: Store, get: Get, value: str) -> None:
    await store.write([call()])
    value = value.encode(errors="replace").decode()
    assert (await get("/calls", provider=value))["data"] == []
    assert len((await get("/calls"))["data"]) == 1
