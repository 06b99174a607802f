"""The keys that clients show: who is behind one, and what it may ask for.

A key is ``tk-`` and 256 random bits. Only a keyed hash of it is kept, so that neither the database
nor a copy of it opens the gateway.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Annotated, Literal

import msgspec

from proxy.budget import Budget

PREFIX = b"tk-"
"""What every key begins with."""

Refusal = Literal["unknown", "revoked", "expired"]


Amount = Annotated[int, msgspec.Meta(ge=1, le=10**12)]


class ClientLimits(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a client may use; None: as much as it likes.

    Requests and tokens in any minute, hour and day, calls at a time, bytes of a request's body, and
    output tokens that a request may ask for.
    """

    rpm: Amount | None = None
    rph: Amount | None = None
    rpd: Amount | None = None
    tpm: Amount | None = None
    tph: Amount | None = None
    tpd: Amount | None = None
    parallel: Amount | None = None
    max_body: Amount | None = None
    max_output_tokens: Amount | None = None


UNLIMITED = ClientLimits()

Holder = tuple[Literal["client", "user", "tag"], str]
"""Whose calls are limited: a scope, and an id or a tag."""


class Client(msgspec.Struct, frozen=True):
    """Whoever has a key of its own. Instants are UTC milliseconds.

    ``id`` is public and stands on the rows of its calls. ``models`` and ``providers`` are shell
    patterns; without one, all are allowed. ``budgets`` are what it may spend.
    """

    id: str
    name: str
    created_at: int
    owner: str | None = None
    models: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    budgets: tuple[Budget, ...] = ()
    expires_at: int | None = None
    revoked_at: int | None = None
    limits: ClientLimits = UNLIMITED

    def may(self, asked: str, provider: str, model: str) -> bool:
        """Whether it may have a model by the name that it asks for, or by its own."""
        if self.providers and not _fits(provider, self.providers):
            return False
        if not self.models:
            return True
        return _fits(asked, self.models) or _fits(f"{provider}/{model}", self.models)


class Secret(msgspec.Struct, frozen=True):
    """The hash of one key of a client, which has two of them while it is being replaced."""

    digest: str
    client_id: str
    created_at: int
    expires_at: int | None = None


class Keyring:
    """Every key, by its hash under ``pepper``: looking one up asks nobody."""

    def __init__(self, pepper: bytes) -> None:
        self._keyed = hmac.new(pepper, digestmod=sha256)
        self._held: dict[str, tuple[Client, Secret]] = {}

    def hold(self, clients: Iterable[Client], hashes: Iterable[Secret]) -> None:
        """These, and no others."""
        by_id = {client.id: client for client in clients}
        self._held = {
            each.digest: (by_id[each.client_id], each) for each in hashes if each.client_id in by_id
        }

    def find(self, key: bytes, now: int) -> Client | Refusal:
        """The client behind a key, or why there is none. ``now`` is UTC milliseconds."""
        held = self._held.get(self.digest(key))
        if held is None:
            return "unknown"
        client, secret = held
        if client.revoked_at is not None and client.revoked_at <= now:
            return "revoked"
        ends = [end for end in (client.expires_at, secret.expires_at) if end is not None]
        return "expired" if ends and min(ends) <= now else client

    def digest(self, key: bytes) -> str:
        """The keyed hash. To find one by trying says nothing about any key: a lookup by a hash
        that nobody else can compute has no timing to learn from."""
        mac = self._keyed.copy()  # OpenSSL takes longer to begin one than all the rest
        mac.update(key)
        return mac.hexdigest()


def new_id() -> str:
    """What a client is called in public."""
    return f"ck-{secrets.token_hex(6)}"


def new_key() -> str:
    """256 random bits."""
    return f"{PREFIX.decode()}{secrets.token_urlsafe(32)}"


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
