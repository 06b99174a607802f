from __future__ import annotations

from typing import Any

import pytest

from proxy.store.engine import Store
from proxy.store.savings import Used, used
from proxy.types import Usage
from tests.store.rows import anything, call, failed


async def found(store: Store, *lengths: int, **filters: Any) -> list[Used]:
    async with store.reader() as connection:
        return await used(connection, anything(**filters), ["fast", "slow"], lengths)


def tokens(given: int, made: int, **more: Any) -> dict[str, Any]:
    return {"input_tokens": given, "output_tokens": made, "total_tokens": given + made, **more}


async def test_the_attempts_of_a_name_are_summed_by_who_served_them(either: Store) -> None:
    await either.write(
        [
            call(requested_model="fast", **tokens(10, 1, cached_tokens=4, cost_nano_usd=7)),
            call(requested_model="fast", **tokens(20, 2, reasoning_tokens=1, cost_nano_usd=None)),
            call(requested_model="fast", provider="lab", **tokens(40, 4, cost_nano_usd=1)),
            call(requested_model="slow", **tokens(80, 8, cost_nano_usd=0)),
            call(requested_model="groq/llama", **tokens(160, 16)),
            call(**tokens(320, 32)),
        ]
    )
    both = Usage(30, 3, 33, cached_tokens=4, reasoning_tokens=1)
    assert await found(either) == [
        Used("fast", "groq", "llama", 0, 2, 1, 7, both),
        Used("fast", "lab", "llama", 0, 1, 0, 1, Usage(40, 4, 44)),
        Used("slow", "groq", "llama", 0, 1, 0, 0, Usage(80, 8, 88)),
    ]
    assert [each.provider for each in await found(either, provider=("lab",))] == ["lab"]


async def test_a_failed_attempt_counts_if_it_used_tokens(either: Store) -> None:
    cut = failed("truncated", requested_model="fast", is_final=False, **tokens(10, 1))
    await either.write(
        [
            cut,
            failed(requested_model="fast"),
            call(requested_model="fast", input_tokens=None, total_tokens=None),
            call(requested_model="fast", output_tokens=None, total_tokens=None),
        ]
    )
    (only,) = await found(either)
    assert (only.attempts, only.unpriced, only.nano_usd) == (1, 1, None)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((), [(0, 4)]),
        ((100,), [(0, 2), (1, 2)]),
        ((99, 100, 200), [(0, 1), (1, 1), (2, 1), (3, 1)]),
    ],
)
async def test_calls_are_kept_apart_by_the_length_of_their_input(
    either: Store, lengths: tuple[int, ...], expected: list[tuple[int, int]]
) -> None:
    await either.write(
        [call(requested_model="fast", **tokens(each, 1)) for each in (99, 100, 200, 201)]
    )
    assert [(each.lengths, each.attempts) for each in await found(either, *lengths)] == expected


async def test_without_a_name_nothing_is_asked(either: Store) -> None:
    await either.write([call(requested_model="fast")])
    async with either.reader() as connection:
        assert await used(connection, anything(), []) == []


async def test_many_dollars_are_summed_without_loss(either: Store) -> None:
    costs = (1_000_000_000_000_001, 3, 985_000)
    await either.write([call(requested_model="fast", cost_nano_usd=nano) for nano in costs])
    (only,) = await found(either)
    assert only.nano_usd == sum(costs)
