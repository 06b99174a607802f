"""How to speak to an upstream: one dialect a provider, and what all of them share."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.providers.base import Dialect
from proxy.providers.cloudflare import Cloudflare
from proxy.providers.gemini import Gemini
from proxy.providers.groq import Groq
from proxy.providers.ollama import Ollama
from proxy.providers.ollama_native import OllamaNative
from proxy.providers.openai import OpenAI
from proxy.providers.openrouter import OpenRouter

DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect
    for dialect in (OpenAI(), Groq(), Gemini(), OpenRouter(), Ollama(), Cloudflare())
}
"""Every dialect under its ``type``."""

OLLAMA_NATIVE = OllamaNative()
"""For ``type: ollama`` with ``api: native``."""
