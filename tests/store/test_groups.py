from __future__ import annotations

import pytest
from sqlalchemy import select

from proxy.store import coverage, groups
from proxy.store.engine import Store
from proxy.store.tables import api_calls
from tests.store.rows import anything, call, failed, plan


async def test_errors_are_grouped_by_provider_and_reason(store: Store) -> None:
    await store.write(
        [
            failed("rate_limit", request_id="r", is_final=False),
            call(request_id="r", attempt=2),
            failed("rate_limit"),
            failed("timeout", provider="gemini"),
        ]
    )
    async with store.reader() as connection:
        found = await groups.grouped(connection, "errors", anything())
    counted = {(g["provider"], g["error_reason"]): (g["attempts"], g["errors"]) for g in found}
    assert counted == {("groq", "rate_limit"): (2, 1), ("gemini", "timeout"): (1, 1)}


@pytest.mark.parametrize("few", [0, coverage.FEW], ids=["rollups", "rows"])
async def test_errors_without_a_reason_are_among_them(
    either: Store, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage, "FEW", few)
    await either.write([call(status="error"), failed("timeout"), call()])
    async with either.reader() as connection:
        found = await groups.grouped(connection, "errors", anything())
    assert {g["error_reason"]: g["attempts"] for g in found} == {None: 1, "timeout": 1}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("providers", [("groq",), ("gemini",)]),
        ("models", [("groq", "llama"), ("gemini", "flash"), ("groq", "qwen")]),
        ("endpoints", [("/v1/chat/completions",)]),
    ],
)
async def test_groups_come_with_most_requests_first(
    store: Store, name: str, keys: list[tuple[str, ...]]
) -> None:
    await store.write([call(), call(), call(model="qwen"), call(provider="gemini", model="flash")])
    async with store.reader() as connection:
        found = await groups.grouped(connection, name, anything())
    assert [tuple(group.values())[: len(keys[0])] for group in found] == keys


@pytest.mark.parametrize("name", groups.GROUPS)
async def test_a_blank_has_the_members_of_a_group(store: Store, name: str) -> None:
    await store.write([failed()])
    async with store.reader() as connection:
        (group,) = await groups.grouped(connection, name, anything())
    assert list(groups.blank(name)) == list(group)


async def test_the_whole_has_totals_and_distributions(store: Store) -> None:
    async with store.reader() as connection:
        whole = await groups.whole(connection, anything())
    assert list(whole) == ["totals", "latency_ms", "ttft_ms", "tokens_per_second"]
    assert {**whole.pop("totals"), **whole} == groups.NOTHING


async def test_keys_are_named_by_provider_and_name_and_a_keyless_one_by_none(store: Store) -> None:
    refused = call(provider="", model="", key_id=None, status="rejected")
    await store.write([call(), call(provider="ollama", key_id=None), refused])
    async with store.reader() as connection:
        used = await groups.by_key(connection, anything())
    assert {key: values["requests"] for key, values in used.items()} == {
        ("groq", "org-a"): 1,
        ("ollama", None): 1,
    }


async def test_errors_are_found_by_the_index_of_failures(store: Store) -> None:
    _, failed_only = groups.GROUPS["errors"]
    query = select(api_calls).where(api_calls.c.timestamp >= 1, *failed_only(api_calls.c))
    async with store.reader() as connection:
        assert "ix_api_calls_unsuccessful" in await plan(connection, query)
