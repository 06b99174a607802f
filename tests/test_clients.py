from __future__ import annotations

import pytest

from proxy.clients import Client, Keyring, Secret, new_id, new_key

NOW = 1_000


def client(**more: object) -> Client:
    return Client(**{"id": "ck-1", "name": "ann", "created_at": 1, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("models", "providers", "asked", "provider", "model", "may"),
    [
        ((), (), "fast", "groq", "llama", True),
        (("fast",), (), "fast", "groq", "llama", True),
        (("fast",), (), "groq/llama", "groq", "llama", False),
        (("groq/*",), (), "groq/llama", "groq", "llama", True),
        (("groq/*",), (), "llama", "groq", "llama", True),  # a bare name that groq lists
        (("groq/llama",), (), "groq/llama-70b", "groq", "llama-70b", False),
        (("*",), ("gem*",), "fast", "groq", "llama", False),
        ((), ("gem*",), "fast", "gemini", "flash", True),
        (("FAST",), (), "fast", "groq", "llama", False),
    ],
)
def test_what_a_client_may_ask_for(
    models: tuple[str, ...],
    providers: tuple[str, ...],
    asked: str,
    provider: str,
    model: str,
    may: bool,
) -> None:
    assert client(models=models, providers=providers).may(asked, provider, model) is may


@pytest.mark.parametrize(
    ("changes", "until", "found"),
    [
        ({}, None, "ann"),
        ({"expires_at": NOW + 1}, None, "ann"),
        ({"expires_at": NOW}, None, "expired"),
        ({}, NOW, "expired"),
        ({"expires_at": NOW + 1}, NOW, "expired"),
        ({"revoked_at": NOW}, None, "revoked"),
        ({"revoked_at": NOW, "expires_at": NOW}, None, "revoked"),
        ({"revoked_at": NOW + 1}, None, "ann"),
    ],
)
def test_a_key_opens_until_its_time_is_over(
    changes: dict[str, int], until: int | None, found: str
) -> None:
    ring = Keyring(b"pepper")
    ring.hold([client(**changes)], [Secret(ring.digest(b"tk-a"), "ck-1", 1, until)])
    who = ring.find(b"tk-a", NOW)
    assert (who.name if isinstance(who, Client) else who) == found


def test_a_key_that_nobody_has_opens_nothing() -> None:
    ring = Keyring(b"pepper")
    ring.hold([client()], [Secret(ring.digest(b"tk-a"), "ck-1", 1)])
    for other in (b"", b"tk-", b"tk-a ", b"tk-b", ring.digest(b"tk-a").encode()):
        assert ring.find(other, NOW) == "unknown"
    ring.hold([client()], [])
    assert ring.find(b"tk-a", NOW) == "unknown"


def test_another_pepper_knows_none_of_the_keys() -> None:
    one, other = Keyring(b"one"), Keyring(b"other")
    assert one.digest(b"tk-a") != other.digest(b"tk-a")


def test_keys_and_ids_are_never_the_same() -> None:
    assert len({new_key() for _ in range(100)} | {new_id() for _ in range(100)}) == 200
    assert len(new_key()) == len("tk-") + 43
