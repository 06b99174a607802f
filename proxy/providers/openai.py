"""Any OpenAI-compatible server: OpenAI itself, vLLM, llama.cpp, LM Studio, another gateway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from proxy.providers.base import Dialect


class OpenAI(Dialect):
    """The plain protocol. Its address is always configured, and it may need no key."""

    name: ClassVar[str] = "openai"
    windows: ClassVar[Mapping[str, int]] = {"requests": 60, "tokens": 60}
    forwarded: ClassVar[frozenset[bytes]] = frozenset({b"openai-organization", b"openai-project"})
