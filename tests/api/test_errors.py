from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Query

from proxy.api.errors import install
from proxy.errors import ErrorReason, GatewayError
from proxy.store.address import StoreError


@pytest.fixture
def broken() -> list[Any]:
    return []


@pytest.fixture
async def client(broken: list[Any]) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI(openapi_url=None)
    app.state.broken = lambda exc, request_id, path: broken.append((str(exc), request_id, path))
    install(app)

    @app.get("/raise/{what}")
    async def fail(what: str) -> None:
        raise {
            "own": GatewayError(
                429, "later", ErrorReason.RATE_LIMIT, code="x", param="p", retry_after=7
            ),
            "http": HTTPException(418, "a teapot", {"x-tea": "green"}),
            "store": StoreError("the database is gone"),
            "fault": KeyError("secret words"),
        }[what]

    @app.get("/ask")
    async def ask(
        limit: Annotated[int, Query(ge=1)], tag: Annotated[list[int], Query()]
    ) -> None: ...

    async def named(scope: Any, receive: Any, send: Any) -> None:
        scope["request_id"] = "ID"
        await app(scope, receive, send)

    transport = httpx.ASGITransport(named, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


def error(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    found: dict[str, Any] = answer.json()["error"]
    assert sorted(found) == ["code", "message", "param", "type"]
    return found


async def test_an_error_of_our_own_is_answered_as_it_says(client: httpx.AsyncClient) -> None:
    answer = await client.get("/raise/own")
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "7"
    assert error(answer) == {
        "message": "later",
        "type": "rate_limit_error",
        "param": "p",
        "code": "x",
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nowhere", 404, "Unknown route: GET /nowhere"),
        ("GET", "/" + "x" * 900, 404, "Unknown route: GET /" + "x" * 199),
        ("POST", "/raise/own", 405, "POST is not allowed on /raise/own"),
        ("GET", "/raise/http", 418, "a teapot"),
    ],
)
async def test_routes_and_methods_that_are_not_there(
    client: httpx.AsyncClient, method: str, path: str, status: int, message: str
) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, error(answer)["message"]) == (status, message)
    assert error(answer)["type"] == "invalid_request_error"


async def test_headers_of_a_refusal_stay(client: httpx.AsyncClient) -> None:
    assert (await client.post("/raise/own")).headers["allow"] == "GET"
    assert (await client.get("/raise/http")).headers["x-tea"] == "green"


@pytest.mark.parametrize(
    ("query", "name"),
    [("tag=1", "limit"), ("limit=0&tag=1", "limit"), ("limit=1&tag=1&tag=x", "tag")],
)
async def test_a_bad_parameter_is_named(client: httpx.AsyncClient, query: str, name: str) -> None:
    answer = await client.get(f"/ask?{query}")
    assert answer.status_code == 422
    assert error(answer)["param"] == name
    assert error(answer)["message"].startswith(f"{name}: ")


async def test_without_a_database_it_is_503(client: httpx.AsyncClient) -> None:
    answer = await client.get("/raise/store")
    assert (answer.status_code, error(answer)["code"]) == (503, "database_unavailable")
    assert error(answer)["message"] == "the database is gone"


async def test_a_fault_of_our_own_is_reported_and_says_nothing(
    client: httpx.AsyncClient, broken: list[Any]
) -> None:
    answer = await client.get("/raise/fault")
    assert answer.status_code == 500
    assert error(answer)["type"] == "api_error"
    assert "secret words" not in answer.text
    assert broken == [("'secret words'", "ID", "/raise/fault")]
