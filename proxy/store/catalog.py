"""``models``: what the providers say they serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.tables import models
from proxy.store.upsert import Insert, insert_into
from proxy.types import ModelInfo

_KEY = ("provider", "name")
_LASTING = ("version", "type", "parameters", "context_length", "max_output_tokens")
_PRICES = (
    "input_price_per_mtok",
    "output_price_per_mtok",
    "cached_price_per_mtok",
    "price_source",
    "price_version",
    "is_free",
)
_PASSING = ("memory_usage_gb", "loaded_at", *_PRICES, "last_seen", "metadata")
_METADATA_BYTES = 4096


async def save(connection: AsyncConnection, listed: Sequence[ModelInfo], now: int) -> None:
    """Remember the models. What is known of one is not forgotten by a list that does not say it;
    whether it is loaded, and what it costs, is as the newest list says."""
    if not listed:
        return
    latest = {(model.provider, model.name): model for model in listed}
    rows = [_row(latest[key], now) for key in sorted(latest)]
    await connection.execute(_sighting(connection.dialect.name), rows)


@cache
def _sighting(dialect: str) -> Insert:
    insert = insert_into(models, dialect)
    lasting = {name: func.coalesce(insert.excluded[name], models.c[name]) for name in _LASTING}
    passing = {name: insert.excluded[name] for name in _PASSING}
    return insert.on_conflict_do_update(index_elements=_KEY, set_=lasting | passing)


def _row(model: ModelInfo, now: int) -> dict[str, Any]:
    fields = {name: getattr(model, name) for name in ModelInfo.__struct_fields__ if name != "raw"}
    seen = {"first_seen": now, "last_seen": now}
    return fields | seen | {"metadata": _bounded(model.raw)}


def _bounded(raw: Mapping[str, Any]) -> str | None:
    """The members as JSON, without those that would carry it over the limit."""
    kept: dict[str, bytes] = {}
    size = 2
    for name, value in raw.items():
        encoded = msgspec.json.encode(value)
        size += len(encoded) + len(name.encode()) + 4
        if size > _METADATA_BYTES:
            size -= len(encoded) + len(name.encode()) + 4
            continue
        kept[name] = encoded
    if not kept:
        return None
    raws = {name: msgspec.Raw(encoded) for name, encoded in kept.items()}
    return msgspec.json.encode(raws).decode()
