"""A bit of everything that happens, for tests about every table."""

from __future__ import annotations

from proxy.budget import Budget
from proxy.changes import BreakerRecord, CooldownRecord
from proxy.clients import Client, Secret
from proxy.content import ContentRecord, pack
from proxy.sample import GpuSample, HostSample
from proxy.store.clients import ClientTable
from proxy.store.credits import Account, Credits
from proxy.store.engine import Store
from proxy.store.events import EventRecord
from proxy.store.leases import LeaseTable
from proxy.types import FaultRecord, ModelInfo
from tests.store.rows import call, failed

MOVES = {"segment": (0, 100)}
"""How far the journal was taken in, for the table that has that."""

NOON = 1_735_732_800_123
"""2025-01-01T12:00:00.123Z."""


def content(request_id: str, at: int, request: str = "Hi", answer: str = "Ho") -> ContentRecord:
    return ContentRecord(request_id, 1, at, pack(request), 2, False, pack(answer), 2, True)


def everything(at: int, model: str = "llama") -> list[object]:
    """A row in each table, and a second call, at a moment in UTC milliseconds."""
    return [
        call(timestamp=at, model=model),
        failed(timestamp=at, model=model),
        FaultRecord(at, "KeyError", "x"),
        HostSample(at, 1, cpu_percent=1.5, gpus=(GpuSample(0, name="fake"),)),
        CooldownRecord("groq", model, "k", "k", at, "rate_limit", 1, at),
        BreakerRecord("groq", model, "closed", "open", "server_error", at + 10_000, 1, at),
        [ModelInfo("groq", model, {"id": model}, loaded_at=at)],
        EventRecord(f"e-{model}", at, "cache_hit", 1.0),
        content(f"c-{model}", at),
    ]


async def let_in(store: Store, at: int = NOON) -> None:
    """A client with a key, credits, and a lease of a budget, which no batch brings."""
    client = Client(id=f"ck-{at}", name="ann", created_at=at)
    await ClientTable(store).create(client, Secret(f"d-{at}", client.id, at))
    await Credits(store).allow(Account("search", "tavily", f"k-{at}"), 10, "monthly", at)
    budget = Budget("b", "b", 100, "day")
    await LeaseTable(store).lease(budget, f"lease-{at}", at, at + 60_000, lambda left: left)
