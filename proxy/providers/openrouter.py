"""OpenRouter: https://openrouter.ai/docs/api/reference/overview."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from datetime import UTC, tzinfo
from typing import ClassVar

import msgspec

from proxy.providers.base import Dialect
from proxy.providers.faults import ErrorBody, clean
from proxy.types import Headers

_TITLES = frozenset({b"x-title", b"x-openrouter-title"})


class OpenRouter(Dialect):
    """Tells what each call cost, and hides the provider's own words in ``metadata.raw``."""

    name: ClassVar[str] = "openrouter"
    base_url: ClassVar[str | None] = "https://openrouter.ai/api/v1"
    root: ClassVar[str] = "/api/v1"
    include_usage: ClassVar[bool] = False
    catalog: ClassVar[str | None] = "openrouter"
    day: ClassVar[tzinfo | None] = UTC
    forwarded: ClassVar[frozenset[bytes]] = _TITLES | {b"http-referer", b"x-openrouter-categories"}

    def defaults(self, sent: AbstractSet[bytes]) -> Headers:
        """Attribution (https://openrouter.ai/docs/app-attribution), unless the client has its own.

        The two belong together: our title must not stand beside somebody else's address.
        """
        if b"http-referer" in sent or not _TITLES.isdisjoint(sent):
            return []
        return [(b"http-referer", b"http://localhost"), (b"x-openrouter-title", b"Tollkeeper")]

    def explain(self, error: ErrorBody) -> ErrorBody:
        """Its "Provider returned error" alone helps nobody: adds who said it, and what."""
        metadata = error.member("metadata")
        raw, who = metadata.get("raw"), metadata.get("provider_name")
        if not isinstance(raw, str) or not raw:
            return error
        source = f"{who[:100]}: " if isinstance(who, str) and who else ""
        return msgspec.structs.replace(error, message=clean(f"{error.message} ({source}{raw})"))
