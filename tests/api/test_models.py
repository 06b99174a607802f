from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from proxy.api.errors import install
from proxy.api.models import models_router
from proxy.clients import Client
from proxy.types import Caller, ModelInfo, Target

LISTED = [
    ModelInfo(
        "lab", "vendor/big", {"id": "vendor/big", "created": 17, "owned_by": "us", "context": 8}
    ),
    ModelInfo("lab", "small", {"id": "small", "object": "odd", "created": "yesterday"}),
    ModelInfo("other", "small", {}),
    ModelInfo("other", "fast", {}),
]


@pytest.fixture
def names() -> dict[str, list[Target]]:
    """The aliases; a reload may change them."""
    return {"fast": [Target("lab", "small")], "our/fast": [Target("other", "fast")]}


@pytest.fixture
def who() -> list[Caller]:
    """Who asks, the last of them."""
    return [Caller("master")]


@pytest.fixture
async def client(
    names: dict[str, list[Target]], who: list[Caller]
) -> AsyncIterator[httpx.AsyncClient]:
    async def listed() -> list[ModelInfo]:
        return LISTED

    def aliases() -> dict[str, list[Target]]:
        return names

    app = FastAPI()
    install(app)
    app.include_router(models_router(aliases, listed))

    async def let_in(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "caller": who[-1]}, receive, send)

    transport = httpx.ASGITransport(let_in)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


async def test_all_lists_are_one_with_the_aliases_first(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/v1/models")).json()
    assert answer["object"] == "list"
    assert [entry["id"] for entry in answer["data"]] == [
        "fast",
        "our/fast",
        "lab/vendor/big",
        "lab/small",
        "other/small",
        "other/fast",
    ]
    assert {entry["object"] for entry in answer["data"]} == {"model"}
    assert {type(entry["created"]) for entry in answer["data"]} == {int}
    assert {type(entry["owned_by"]) for entry in answer["data"]} == {str}


async def test_aliases_are_those_that_there_are_now(
    client: httpx.AsyncClient, names: dict[str, list[Target]]
) -> None:
    assert (await client.get("/v1/models/slow")).status_code == 404
    names.clear()
    names["slow"] = []
    assert (await client.get("/v1/models/slow")).json()["owned_by"] == "tollkeeper"
    assert (await client.get("/v1/models")).json()["data"][0]["id"] == "slow"
    assert (await client.get("/v1/models/our/fast")).status_code == 404


async def test_what_a_provider_says_of_a_model_stays(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/models/lab/vendor/big")
    assert answer.json() == {
        "id": "lab/vendor/big",
        "object": "model",
        "created": 17,
        "owned_by": "us",
        "context": 8,
    }


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("fast", "fast"),
        ("our/fast", "our/fast"),
        ("lab/small", "lab/small"),
        ("other/small", "other/small"),
        ("small", "lab/small"),
        ("vendor/big", "lab/vendor/big"),
        ("other/fast", "other/fast"),
    ],
)
async def test_one_model_is_found_by_every_name_it_is_called_by(
    client: httpx.AsyncClient, name: str, found: str
) -> None:
    answer = await client.get(f"/v1/models/{name}")
    assert (answer.status_code, answer.json()["id"]) == (200, found)


@pytest.mark.parametrize("name", ["none", "lab", "lab/none", "x/fast", "%20", "x" * 3000])
async def test_a_model_that_is_not_there_is_404(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get(f"/v1/models/{name}")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "model_not_found")
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("may", "shown"),
    [
        ({"models": ("lab/*",)}, ["fast", "lab/vendor/big", "lab/small"]),
        ({"models": ("our/fast",)}, ["our/fast"]),
        ({"providers": ("other",)}, ["our/fast", "other/small", "other/fast"]),
        ({"models": ("none",)}, []),
    ],
)
async def test_a_client_sees_what_it_may_use(
    client: httpx.AsyncClient, who: list[Caller], may: dict[str, Any], shown: list[str]
) -> None:
    who.append(Caller("ck-1", Client(id="ck-1", name="ann", created_at=1, **may)))
    listed = (await client.get("/v1/models")).json()["data"]
    assert [each["id"] for each in listed] == shown
    for name in ("our/fast", "lab/small", "other/small"):
        found = (await client.get(f"/v1/models/{name}")).status_code
        assert found == (200 if name in shown else 404)
