from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel

from proxy.api import body, errors


class Told(BaseModel):
    name: str


@pytest.fixture
def client() -> httpx.AsyncClient:
    app = FastAPI()
    errors.install(app)

    @app.post("/")
    async def endpoint(request: Request) -> dict[str, str]:
        return {"name": (await body.told(request, Told)).name}

    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_a_body_becomes_what_it_should_be(client: httpx.AsyncClient) -> None:
    assert (await client.post("/", content=b'{"name": "a"}')).json() == {"name": "a"}


@pytest.mark.parametrize(
    ("sent", "status", "param"),
    [
        (b"", 422, "body"),
        (b"[]", 422, "body"),
        (b"\xff", 422, "body"),
        (b'{"name": 1}', 422, "name"),
        (b"{}", 422, "name"),
        (b" " * (body.MAX_BODY + 1), 413, None),
    ],
)
async def test_what_is_not_is_refused(
    client: httpx.AsyncClient, sent: bytes, status: int, param: str | None
) -> None:
    answer = await client.post("/", content=sent)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
