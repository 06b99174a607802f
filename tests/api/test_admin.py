from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from proxy.api import errors
from proxy.api.admin import admin_router
from proxy.errors import ConfigError

KEY = {"provider": "lab", "name": "k1", "until": 1_700_000_000_000, "models": [], "limits": []}


class Office:
    def __init__(self) -> None:
        self.orders: list[tuple[str, str, str]] = []
        self.mistakes: list[str] = []
        app = FastAPI()
        errors.install(app)
        app.include_router(admin_router(self.steer, self.reload))
        transport = httpx.ASGITransport(app)
        self.client = httpx.AsyncClient(base_url="http://gateway", transport=transport)

    def steer(self, provider: str, name: str, order: str) -> dict[str, Any] | None:
        self.orders.append((provider, name, order))
        return KEY if name == "k1" else None

    def reload(self) -> dict[str, Any]:
        if self.mistakes:
            raise ConfigError(self.mistakes)
        return {"reloaded": True}


@pytest.mark.parametrize("order", ["reset", "disable", "enable"])
async def test_an_order_reaches_the_key_and_its_state_comes_back(order: str) -> None:
    office = Office()
    got = await office.client.post(f"/admin/providers/lab/keys/k1/{order}")
    assert (got.status_code, got.json()["until"]) == (200, "2023-11-14T22:13:20.000Z")
    assert office.orders == [("lab", "k1", order)]


async def test_a_key_that_is_not_there_is_a_404() -> None:
    got = await Office().client.post("/admin/providers/lab/keys/k9/reset")
    error = got.json()["error"]
    assert (got.status_code, error["code"]) == (404, "key_not_found")
    assert "k9" in error["message"]


@pytest.mark.parametrize("path", ["/admin/reload", "/admin/providers/lab/keys/k1/reset"])
async def test_orders_are_posted(path: str) -> None:
    assert (await Office().client.get(path)).status_code == 405


async def test_an_unknown_order_is_a_404() -> None:
    office = Office()
    assert (await office.client.post("/admin/providers/lab/keys/k1/burn")).status_code == 404
    assert not office.orders


async def test_a_reload_says_what_it_did() -> None:
    got = await Office().client.post("/admin/reload")
    assert (got.status_code, got.json()) == (200, {"reloaded": True})


async def test_a_configuration_that_does_not_hold_is_a_422_with_every_mistake() -> None:
    office = Office()
    office.mistakes = ["t.yaml: a: is wrong", "t.yaml: b: is missing"]
    got = await office.client.post("/admin/reload")
    error = got.json()["error"]
    assert (got.status_code, error["code"]) == (422, "invalid_configuration")
    assert error["message"] == "t.yaml: a: is wrong; t.yaml: b: is missing"
