from __future__ import annotations

from typing import Any

from proxy.store.engine import Store
from proxy.store.fingerprints import BLANK, fingerprints
from proxy.types import FaultRecord
from tests.store.rows import anything, call, failed

NOON = 1_735_732_800_000


async def found(store: Store, **filters: Any) -> list[dict[str, Any]]:
    async with store.reader() as connection:
        return await fingerprints(connection, anything(**filters))


def late(request_id: str, seconds: int, **more: Any) -> Any:
    message = f"no answer within {seconds} s"
    return failed(
        "timeout",
        request_id=request_id,
        timestamp=NOON + seconds * 1000,
        finished_at=NOON + seconds * 1000,
        error_message=message,
        **more,
    )


async def test_errors_of_one_kind_are_one_with_the_newest_as_a_sample(either: Store) -> None:
    await either.write([late("a", 10), call(), late("b", 20, is_final=False)])
    await either.write([late("c", 30), failed("overloaded", http_status=503)])
    first, second = await found(either)
    assert len(first.pop("fingerprint")) == 16
    assert first == {
        **{"count": 3, "first_seen": "2025-01-01T12:00:10.000Z"},
        **{"last_seen": "2025-01-01T12:00:30.000Z", "provider": "groq", "model": "llama"},
        **{"reason": "timeout", "severity": "error", "http_status": 500},
        **{"message": "no answer within 30 s", "request_id": "c"},
    }
    assert (second["reason"], second["count"], second["http_status"]) == ("overloaded", 1, 503)
    assert list(second) == list(BLANK)


async def test_a_fault_of_our_own_has_no_provider(either: Store) -> None:
    await either.write([FaultRecord(NOON, "KeyError", "'x'", 'File "a", line 1', "r", "/stats")])
    (fault,) = await found(either)
    assert (fault["reason"], fault["provider"], fault["model"]) == ("KeyError", None, None)
    assert (fault["severity"], fault["message"]) == ("critical", "'x'")


async def test_only_what_was_seen_in_the_window_counts(either: Store) -> None:
    await either.write([late("a", 10), late("b", 20), late("c", 30, provider="lab")])
    (one,) = await found(either, start=NOON + 15_000, end=NOON + 25_000)
    assert (one["count"], one["request_id"], one["first_seen"]) == (1, "b", one["last_seen"])
    (two,) = await found(either, provider=("groq",), model=("llama",))
    assert two["count"] == 2
    assert await found(either, model=("other",)) == []


async def test_the_most_frequent_comes_first_then_the_newest(either: Store) -> None:
    await either.write(
        [
            *(late("a", 10, model="one"), late("b", 20, model="two")),
            *(late("c", 30, model="three"), late("d", 5, model="three")),
        ]
    )
    assert [row["model"] for row in await found(either)] == ["three", "two", "one"]
