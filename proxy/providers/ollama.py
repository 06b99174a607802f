"""Ollama: https://docs.ollama.com/api, its OpenAI paths and what only its own paths tell."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar

import httpx
import msgspec

from proxy.clock import now_ms
from proxy.providers.base import Dialect, Fetch
from proxy.providers.faults import mappings
from proxy.providers.members import inner, number, text
from proxy.types import Memory, ModelInfo

_SHOWN = 32  # new models looked at in one refresh; the rest follows in the next
_GIB = 1024**3
_MIB = 1024**2
_LARGEST = 1 << 16  # bytes of a version answer that are read


class Ollama(Dialect):
    """Runs on the desk: no key, no limits, but a model may have to load first."""

    name: ClassVar[str] = "ollama"
    base_url: ClassVar[str | None] = "http://127.0.0.1:11434/v1"
    root: ClassVar[str] = "/v1"
    first_byte: ClassVar[float] = 600.0
    mends_tool_indices: ClassVar[bool] = True

    async def enrich(
        self, base_url: str, models: list[ModelInfo], fetch: Fetch, known: dict[str, Any]
    ) -> list[ModelInfo]:
        """Adds sizes, context and what is in memory, from ``/api/tags``, ``/ps`` and ``/show``.

        What ``/show`` says of a digest never changes and is asked once. No answer tells since when
        a model is loaded: it is the moment it was first seen so.
        """
        own = native(base_url)
        tags = _by_name(await fetch("GET", f"{own}/tags", None))
        running = _by_name(await fetch("GET", f"{own}/ps", None))
        shown: dict[str, Any] = known.setdefault("shown", {})
        unknown = {
            digest: name
            for name, tag in tags.items()
            if (digest := text(tag.get("digest"))) and digest not in shown
        }
        for digest, name in list(unknown.items())[:_SHOWN]:
            shown[digest] = {}  # stays so where the answer is no good: the others still count
            with suppress(ValueError):
                question = msgspec.json.encode({"model": name})
                shown[digest] = _object(await fetch("POST", f"{own}/show", question))
        seen = known.get("loaded", {})
        loaded = known["loaded"] = {name: seen.get(name) or now_ms() for name in running}
        return [
            _described(model, tags.get(model.name, {}), running.get(model.name), shown, loaded)
            for model in models
        ]

    def running_url(self, base_url: str, model: str) -> str | None:
        """``/api/ps``; what runs at ollama.com is in no memory that one could ask for."""
        cloud = model.endswith("cloud") or base_url.startswith("https://ollama.com")
        return None if cloud else f"{native(base_url)}/ps"

    def memory(self, model: str, body: bytes) -> Memory | None:
        """By the list of what is loaded: a model that is not in it holds nothing. What is on no GPU
        has no ``size_vram``."""
        try:
            answer = _object(body)
        except (ValueError, RecursionError):
            return None
        if "models" not in answer:
            return None
        name = (model if ":" in model.rpartition("/")[2] else f"{model}:latest").lower()
        for entry in mappings(answer["models"]):
            if str(entry.get("name")).lower() == name:
                total, vram = number(entry.get("size")), number(entry.get("size_vram"))
                return None if total is None else Memory(total / _MIB, (vram or 0) / _MIB)
        return Memory()


async def answers(transport: httpx.AsyncBaseTransport, base_url: str, within: float = 0.3) -> bool:
    """Whether an Ollama answers at an address within so many seconds. Never raises."""
    try:
        async with asyncio.timeout(within):
            request = httpx.Request("GET", f"{native(base_url)}/version")
            response = await transport.handle_async_request(request)
            try:
                body = b""
                assert isinstance(response.stream, httpx.AsyncByteStream)
                async for chunk in response.stream:
                    body += chunk
                    if len(body) > _LARGEST:
                        return False
            finally:
                await response.aclose()
            return response.status_code == 200 and "version" in _object(body)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError, ValueError, RecursionError):
        return False


def native(base_url: str) -> str:
    """Where its own paths begin."""
    return base_url.rstrip("/").removesuffix("/v1") + "/api"


def _object(body: bytes) -> Mapping[str, Any]:
    answer = msgspec.json.decode(body)
    return answer if isinstance(answer, Mapping) else {}


def _by_name(body: bytes) -> dict[str, Mapping[str, Any]]:
    entries = mappings(_object(body).get("models"))
    return {name: entry for entry in entries if (name := text(entry.get("name")))}


def _described(
    model: ModelInfo,
    tag: Mapping[str, Any],
    running: Mapping[str, Any] | None,
    shown: Mapping[str, Any],
    loaded: Mapping[str, int],
) -> ModelInfo:
    digest = text(tag.get("digest"))
    show = shown.get(digest or "", {})
    facts, abilities = inner(show, "model_info"), show.get("capabilities")
    contexts = (value for key, value in facts.items() if str(key).endswith(".context_length"))
    memory = number(running.get("size")) if running else None
    kind = None
    if isinstance(abilities, list):
        kind = "embedding" if "embedding" in abilities else "chat"
    return msgspec.structs.replace(
        model,
        raw={**model.raw, **tag, **(running or {})},
        version=digest,
        type=kind,
        parameters=number(facts.get("general.parameter_count")) or _size(inner(tag, "details")),
        context_length=next((size for each in contexts if (size := number(each))), None),
        memory_usage_gb=None if memory is None else memory / _GIB,
        loaded_at=loaded.get(model.name),
    )


def _size(details: Mapping[str, Any]) -> int | None:
    """``3.2B`` as a count of parameters."""
    size = details.get("parameter_size")
    if not isinstance(size, str) or size[-1:] not in ("K", "M", "B", "T"):
        return None
    try:
        return number(round(float(size[:-1]) * 1000 ** (1 + "KMBT".index(size[-1]))))
    except (ValueError, OverflowError):
        return None
