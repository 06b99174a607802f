from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.api.openai import RELAYED, Calls
from proxy.types import Operation
from tests.wire import Client


class Taken:
    """Stands for the relay and for the app, and notes who was asked."""

    def __init__(self) -> None:
        self.relayed: list[Operation] = []
        self.passed: list[Any] = []

    async def serve(self, operation: Operation, scope: Any, receive: Any, send: Any) -> None:
        assert scope["path"] == f"/v1{operation.path}"
        self.relayed.append(operation)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.passed.append(scope)


async def ask(client: Client | None = None, **scope: Any) -> Taken:
    taken = Taken()
    calls = Calls(taken.app)
    calls.relay = taken  # type: ignore[assignment]
    await calls(scope, None, (client or Client()).send)  # type: ignore[arg-type]
    return taken


def test_the_table_is_openais() -> None:
    assert RELAYED == {
        "/v1/chat/completions": Operation.CHAT,
        "/v1/completions": Operation.COMPLETION,
        "/v1/embeddings": Operation.EMBEDDINGS,
    }


@pytest.mark.parametrize("path", RELAYED)
async def test_posts_of_the_table_are_relayed(path: str) -> None:
    taken = await ask(type="http", method="POST", path=path)
    assert (taken.relayed, taken.passed) == ([RELAYED[path]], [])


@pytest.mark.parametrize(
    ("kind", "method", "path"),
    [
        ("http", "POST", "/v1/chat/completions/"),
        ("http", "POST", "/V1/chat/completions"),
        ("http", "POST", "/chat/completions"),
        ("http", "GET", "/stats"),
        ("lifespan", None, None),
    ],
)
async def test_everything_else_is_the_apps(kind: str, method: str | None, path: str | None) -> None:
    taken = await ask(type=kind, method=method, path=path)
    assert (taken.relayed, len(taken.passed)) == ([], 1)


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS"])
@pytest.mark.parametrize("path", RELAYED)
async def test_other_methods_are_refused_in_openais_envelope(path: str, method: str) -> None:
    client = Client()
    taken = await ask(client, type="http", method=method, path=path)
    assert (taken.relayed, taken.passed) == ([], [])
    assert client.status == 405
    assert (b"allow", b"POST") in client.headers
    assert json.loads(client.body)["error"]["type"] == "invalid_request_error"
