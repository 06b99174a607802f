"""Providers from well-known variables of the environment, for those who write no file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_KEYED = {
    "groq": "GROQ_API_KEY",
    "gemini": "GEMINI_API_KEY",
    "openrouter": "OPENROUTER_API_KEY",
    "cloudflare": "CLOUDFLARE_API_TOKEN",
}

OLLAMA_URL = "http://127.0.0.1:11434/v1"
"""Where an Ollama that nobody configured is looked for."""


def discover(environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The ``providers`` that ``environ`` switches on, as in a file, and what there is to warn of.

    ``GROQ_API_KEY`` and ``GROQ_API_KEY_<N>``, any gap in the numbers allowed; likewise the others.
    A key is named after its number; the one without a number is the first.
    """
    providers: dict[str, Any] = {}
    warnings: list[str] = []
    for provider, variable in _KEYED.items():
        if keys := _keys(variable, environ):
            providers[provider] = {"keys": keys}
    if "cloudflare" in providers:
        if account := environ.get("CLOUDFLARE_ACCOUNT_ID", "").strip():
            providers["cloudflare"]["account_id"] = account
        else:
            del providers["cloudflare"]
            warnings.append("CLOUDFLARE_ACCOUNT_ID: is not set; cloudflare is left out")
    if host := environ.get("OLLAMA_HOST", "").strip():
        if address := ollama_url(host):
            providers["ollama"] = {"base_url": address}
        else:
            warnings.append("OLLAMA_HOST: is no host, host:port or URL; ollama is left out")
    return providers, warnings


def ollama_url(host: str) -> str | None:
    """The base address behind ``OLLAMA_HOST``: a host, host:port or URL; None if it is none.

    The ports are Ollama's own: 11434, but 80 and 443 once a scheme is written
    (https://github.com/ollama/ollama, envconfig). An address that means "every interface" to
    the server is turned into the loopback one, where a client finds it.
    """
    match = re.fullmatch(
        r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/:@?#\[\]]*)"
        r"(?::(?P<port>\d{1,5}))?(?P<path>/[^\s?#]*)?",
        host,
    )
    if match is None or int(match["port"] or 0) > 65535:
        return None
    scheme = match["scheme"] or "http"
    port = match["port"] or {"http": 80, "https": 443}.get(match["scheme"], 11434)
    name = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(
        match["host"], match["host"]
    )
    path = (match["path"] or "").rstrip("/").removesuffix("/v1")
    return f"{scheme}://{name}:{port}{path}/v1"


def _keys(variable: str, environ: Mapping[str, str]) -> list[dict[str, str]]:
    pattern = re.compile(re.escape(variable) + r"_(0|[1-9][0-9]*)")
    numbered = {
        int(match[1]): value.strip()
        for name, value in environ.items()
        if (match := pattern.fullmatch(name)) and value.strip()
    }
    keys = [{"name": f"key-{number}", "value": numbered[number]} for number in sorted(numbered)]
    if bare := environ.get(variable, "").strip():
        keys.insert(0, {"name": "key" if 1 in numbered else "key-1", "value": bare})
    return keys
