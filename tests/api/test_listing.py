from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest

from proxy.api.listing import Listing, wants_csv

ROWS = [{"a": "x", "b": {"c": 1}}, {"a": "=y", "b": {"c": None}}]
BLANK = {"a": None, "b": {"c": None}}


async def answer(listing: Any, query: str = "", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(listing), base_url="http://gateway", headers=headers
    ) as client:
        return await client.get("/stats/calls" + query)


async def test_a_list_is_json_with_what_there_is_to_say_beside_the_rows() -> None:
    got = await answer(Listing(ROWS, "c2", BLANK, by="provider"))
    assert got.headers["content-type"] == "application/json"
    assert got.headers["vary"] == "accept"
    assert got.json() == {"by": "provider", "data": ROWS, "next_cursor": "c2"}
    assert list(got.json()) == ["by", "data", "next_cursor"]


async def test_a_list_is_csv_for_those_who_ask() -> None:
    got = await answer(Listing(ROWS, None, BLANK, by="provider"), accept="text/csv")
    assert got.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert got.headers["vary"] == "accept"
    assert got.text == "a,b.c\r\nx,1\r\n'=y,\r\n"
    assert "link" not in got.headers
    assert "x-next-cursor" not in got.headers


async def test_the_next_page_of_a_csv_is_in_its_headers() -> None:
    listing = Listing(ROWS, "c=3", BLANK)
    asked = "?provider=a%26b&limit=2&cursor=c2&provider="
    got = await answer(listing, asked, accept="text/csv")
    assert got.headers["x-next-cursor"] == "c=3"
    following = got.request.url.join(got.links["next"]["url"])
    assert following.path == "/stats/calls"
    assert following.query == b"provider=a%26b&limit=2&provider=&cursor=c%3D3"


@pytest.mark.parametrize("accept", ["application/json", "text/csv"])
async def test_rows_may_be_json_already(accept: str) -> None:
    plain, raw = Listing(ROWS, None, BLANK), [msgspec.Raw(msgspec.json.encode(r)) for r in ROWS]
    got = await answer(Listing(raw, None, BLANK), accept=accept)
    expected = await answer(plain, accept=accept)
    assert got.text == expected.text


@pytest.mark.parametrize(
    ("accept", "csv"),
    [
        ("", False),
        ("*/*", False),
        ("text/csv", True),
        ("Text/CSV; charset=utf-8", True),
        ("text/*", True),
        ("text/csv, application/json;q=0.5", True),
        ("text/csv, application/json", False),
        ("text/csv;q=0.5, application/json", False),
        ("text/csv, */*;q=0.1", True),
        ("text/csv;q=0", False),
        ("text/csv;q=much", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("text/html", False),
    ],
)
def test_csv_is_for_those_who_prefer_it(accept: str, csv: bool) -> None:
    assert wants_csv(accept) == csv
