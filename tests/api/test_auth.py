from __future__ import annotations

import hmac
import json
from typing import Any

import pytest

from proxy.api import auth
from proxy.api.auth import Door
from proxy.clients import Keyring
from proxy.types import Caller
from tests.wire import Client

KEY = "tk-\u00e9-secret"
RING = Keyring(b"pepper")


class Inside:
    """What stands behind the door: answers 200 and remembers who was let in."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] == "http":
            headers = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"hello", "more_body": False})


class Entrance:
    """A door with a key or without, and what it did."""

    def __init__(self, key: str | None = None) -> None:
        self.inside = Inside()
        self.turned_away = 0
        self.door = Door(
            self.inside,
            master_key=key,
            keyring=RING,
            named_elsewhere=["/v1/chat/completions"],
            turned_away=self.count,
            state="state",
        )

    def count(self) -> None:
        self.turned_away += 1

    async def ask(
        self, *headers: tuple[bytes, bytes], path: str = "/stats", method: str = "GET"
    ) -> Client:
        client = Client()
        scope = {"type": "http", "path": path, "method": method, "headers": list(headers)}
        await self.door(scope, None, client.send)  # type: ignore[arg-type]
        assert (client.status == 200) == bool(self.inside.scopes)
        assert self.turned_away == (0 if self.inside.scopes else 1)
        return client


def header(client: Client, name: bytes) -> list[bytes]:
    return [value for field, value in client.headers if field == name]


# With a master key.


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer " + KEY.encode())],
        [(b"authorization", b"bearer   " + KEY.encode() + b" ")],
        [(b"x-api-key", KEY.encode())],
        [(b"api-key", KEY.encode())],
        [(b"authorization", b"Bearer " + KEY.encode()), (b"x-api-key", KEY.encode())],
        [(b"authorization", b"Basic dTpw"), (b"x-api-key", KEY.encode())],
        [(b"x-api-key", KEY.encode()), (b"host", b"evil.example"), (b"origin", b"https://evil")],
    ],
)
async def test_the_key_opens_from_wherever_it_comes(headers: list[tuple[bytes, bytes]]) -> None:
    entrance = Entrance(KEY)
    assert (await entrance.ask(*headers)).status == 200
    assert entrance.inside.scopes[0]["caller"] == Caller("master")


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ([], 401, "invalid_api_key"),
        ([(b"authorization", b"Bearer wrong")], 401, "invalid_api_key"),
        ([(b"authorization", b"Bearer ")], 401, "invalid_api_key"),
        ([(b"authorization", KEY.encode())], 401, "invalid_api_key"),
        ([(b"authorization", b"Basic " + KEY.encode())], 401, "invalid_api_key"),
        ([(b"x-api-key", KEY.encode()[:-1])], 401, "invalid_api_key"),
        ([(b"x-api-key", KEY.encode() + b"x")], 401, "invalid_api_key"),
        ([(b"cookie", b"key=" + KEY.encode())], 401, "invalid_api_key"),
        ([(b"x-api-key", KEY.encode()), (b"authorization", b"Bearer other")], 400, None),
        ([(b"x-api-key", KEY.encode()), (b"x-api-key", b"other")], 400, None),
    ],
)
async def test_whoever_has_no_key_is_turned_away(
    headers: list[tuple[bytes, bytes]], status: int, code: str | None
) -> None:
    client = await Entrance(KEY).ask((b"host", b"127.0.0.1"), *headers)
    error = json.loads(client.body)["error"]
    assert (client.status, error["code"]) == (status, code)
    assert header(client, b"www-authenticate") == ([b"Bearer"] if status == 401 else [])
    assert header(client, b"content-length") == [b"%d" % len(client.body)]
    assert len(header(client, b"x-request-id")[0]) == 18
    assert KEY not in client.body.decode()


async def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return False

    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    assert auth.hmac is hmac
    client = await Entrance(KEY).ask((b"x-api-key", KEY.encode()))
    assert client.status == 401  # nothing else lets anyone in
    assert [(len(one), len(other)) for one, other in compared] == [(32, 32)]
    assert KEY.encode() not in compared[0]


async def test_a_door_does_not_hold_its_key() -> None:
    entrance = Entrance(KEY)
    assert KEY not in str(vars(entrance.door))


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
@pytest.mark.parametrize("key", [KEY, None])
async def test_health_is_open_to_all(path: str, key: str | None) -> None:
    client = await Entrance(key).ask((b"host", b"10.0.0.1"), path=path)
    assert client.status == 200


@pytest.mark.parametrize(
    "path", ["/", "/healthz/", "/healthz/x", "//healthz", "/v1/models", "/docs", "/openapi.json"]
)
async def test_nothing_else_is_open(path: str) -> None:
    assert (await Entrance(KEY).ask(path=path)).status == 401


# Without one: this machine alone.

ORIGINS = [
    (None, True),
    (b"http://localhost:3000", True),
    (b"http://127.0.0.1", True),
    (b"http://[::1]:8000", True),
    (b"https://LOCALHOST", True),
    (b"null", False),
    (b"", False),
    (b"https://evil.example", False),
    (b"http://127.0.0.1@evil.example", False),
    (b"http://127.0.0.1:80@evil.example:80", False),
    (b"http://localhost.evil.example", False),
    (b"http://127.0.0.1.nip.io", False),
    (b"http://evil.example/127.0.0.1", False),
    (b"http://evil.example#@localhost", False),
    (b"http://192.168.0.2", False),
    (b"http://[::1", False),
    (b"http://\xff", False),
]
HOSTS = [
    (None, True),
    (b"localhost", True),
    (b"LocalHost:8000", True),
    (b"localhost.", True),
    (b"localhost.:8000", True),
    (b"127.0.0.1:8000", True),
    (b"127.0.0.2:8000", True),
    (b"[::1]", True),
    (b"[::1]:8000", True),
    (b"[0:0:0:0:0:0:0:1]:8000", True),
    (b"", False),
    (b"evil.example", False),
    (b"evil.example:8000", False),
    (b"127.0.0.1.evil.example", False),
    (b"127.0.0.1@evil.example", False),
    (b"0.0.0.0:8000", False),
    (b"192.168.0.2:8000", False),
    (b"[fe80::1]:8000", False),
    (b"[::1", False),
    (b"\xe9vil", False),
]


@pytest.mark.parametrize(("host", "local"), HOSTS)
async def test_an_open_gateway_serves_its_own_machine(host: bytes | None, local: bool) -> None:
    entrance = Entrance()
    fields = [] if host is None else [(b"host", host)]
    client = await entrance.ask(*fields)
    assert client.status == (200 if local else 403)
    if local:
        assert entrance.inside.scopes[0]["caller"] == Caller(None)
    else:
        assert json.loads(client.body)["error"]["code"] == "foreign_origin"


@pytest.mark.parametrize(("origin", "local"), ORIGINS)
async def test_an_open_gateway_serves_no_foreign_page(origin: bytes | None, local: bool) -> None:
    fields = [] if origin is None else [(b"origin", origin)]
    client = await Entrance().ask((b"host", b"localhost:8000"), *fields)
    assert client.status == (200 if local else 403)


async def test_what_is_remembered_of_places_is_right_and_has_an_end() -> None:
    entrance = Entrance()
    for round_ in range(2):
        for number in range(400):
            host = b"127.0.0.1:%d" % number if number % 2 else b"evil%d" % number
            entrance.inside.scopes.clear()
            entrance.turned_away = 0
            client = await entrance.ask((b"host", host))
            assert (client.status == 200) == bool(number % 2), round_
    assert len(vars(entrance.door)["_known"]) <= 256


# Names.


async def test_every_answer_gets_an_id_and_every_request_the_same_one() -> None:
    entrance = Entrance()
    ids = [header(await entrance.ask(), b"x-request-id") for _ in range(2)]
    assert ids == [[scope["request_id"].encode()] for scope in entrance.inside.scopes]
    assert ids[0] < ids[1]
    assert all(scope["started"] > 0 for scope in entrance.inside.scopes)


@pytest.mark.parametrize(
    ("path", "method", "named"),
    [
        ("/v1/chat/completions", "POST", False),
        ("/v1/chat/completions", "GET", True),
        ("/v1/models", "POST", True),
    ],
)
async def test_what_names_itself_is_not_named_twice(path: str, method: str, named: bool) -> None:
    client = await Entrance().ask(path=path, method=method)
    assert bool(header(client, b"x-request-id")) is named
    assert header(client, b"content-type") == [b"text/plain"]


async def test_the_lifespan_passes_and_the_state_is_the_apps() -> None:
    entrance = Entrance(KEY)
    await entrance.door({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert entrance.inside.scopes == [{"type": "lifespan"}]
    assert entrance.door.state == "state"
