"""Cloudflare Workers AI: https://developers.cloudflare.com/workers-ai/."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, tzinfo
from typing import Any, ClassVar

import msgspec

from proxy.providers.base import Dialect
from proxy.providers.faults import mappings
from proxy.providers.members import inner, number, text
from proxy.types import ModelInfo


class Cloudflare(Dialect):
    """Has the account in its address, and lists its models outside the OpenAI paths."""

    name: ClassVar[str] = "cloudflare"
    base_url: ClassVar[str | None] = (
        "https://api.cloudflare.com/client/v4/accounts/{account_id}/ai/v1"
    )
    catalog: ClassVar[str | None] = "cloudflare"
    forwarded: ClassVar[frozenset[bytes]] = frozenset({b"x-session-affinity"})
    day: ClassVar[tzinfo | None] = UTC

    def models_url(self, base_url: str) -> str:
        """``/ai/v1/models`` answers 405; the account's search lists what it may run."""
        return base_url.removesuffix("/v1") + "/models/search?per_page=100"

    def models(self, provider: str, body: bytes) -> list[ModelInfo]:
        """Cloudflare's envelope: ``result`` with a name, a task and a list of properties."""
        answer = msgspec.json.decode(body)
        if not isinstance(answer, Mapping) or answer.get("success") is False:
            raise ValueError("no model list")
        return [
            ModelInfo(
                provider=provider,
                name=name,
                raw=entry,
                context_length=_context(entry),
                type=text(inner(entry, "task").get("name")),
            )
            for entry in mappings(answer.get("result"))
            if (name := text(entry.get("name")))
        ]


def _context(entry: Mapping[str, Any]) -> int | None:
    for item in mappings(entry.get("properties")):
        if item.get("property_id") in ("context_window", "max_input_tokens"):
            value = item.get("value")
            if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
                return int(value)
            return number(value)
    return None
