from __future__ import annotations

import msgspec
import pytest

from proxy.content import ContentRecord, pack
from proxy.store import contents
from proxy.store.engine import Store
from tests.store.stories import NOON, content


@pytest.fixture
def store(either: Store) -> Store:
    return either


async def asked(store: Store, request_id: str = "r") -> bytes | None:
    async with store.reader() as connection:
        found = await contents.request(connection, request_id)
    return None if found is None else msgspec.json.encode(found)


async def test_a_content_comes_back_to_the_digit(store: Store) -> None:
    body = '{"temperature": 0.10, "seed": 123456789012345678901234567890}'
    await store.write([content("r", NOON, body, "Ho\0"), content("other", NOON)])
    assert await asked(store) == (
        b'{"request_id":"r","attempt":1,"timestamp":"2025-01-01T12:00:00.123Z",'
        b'"request":' + body.encode() + b',"request_length":2,"request_cut":false,'
        b'"answer":"Ho\\u0000","answer_length":2,"answer_cut":true}'
    )


async def test_of_several_attempts_the_last_one_counts_and_each_is_written_once(
    store: Store,
) -> None:
    again = msgspec.structs.replace(content("r", NOON), attempt=2, request=pack("2"))
    await store.write([content("r", NOON, "1")])
    await store.write([content("r", NOON, "other"), again])
    found = msgspec.json.decode(await asked(store) or b"")
    assert (found["attempt"], found["request"]) == (2, 2)
    assert store.refused == 0


async def test_there_may_be_no_answer_and_no_content(store: Store) -> None:
    await store.write([ContentRecord("r", 1, NOON, pack("Hi"), 2, False, None, None, False)])
    found = msgspec.json.decode(await asked(store) or b"")
    assert (found["request"], found["answer"], found["answer_length"]) == ("Hi", None, None)
    assert await asked(store, "unknown") is None
