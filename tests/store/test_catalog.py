from __future__ import annotations

import json
from pathlib import Path

from proxy.store.engine import Store
from proxy.types import ModelInfo
from tests.store.rows import rows


async def test_a_model_is_one_row_and_keeps_when_it_was_first_seen(
    store: Store, path: Path
) -> None:
    await store.write([[ModelInfo("groq", "llama", {"id": "llama"}, context_length=8192)]])
    (first,) = rows(path, "SELECT * FROM models")
    await store.write([[ModelInfo("groq", "llama", version="2", loaded_at=5)]])
    (second,) = rows(path, "SELECT * FROM models")
    assert second["first_seen"] == first["first_seen"]
    assert second["last_seen"] >= first["last_seen"]
    assert (second["context_length"], second["version"], second["loaded_at"]) == (8192, "2", 5)
    assert json.loads(first["metadata"]) == {"id": "llama"}


async def test_a_model_that_is_no_longer_loaded_says_so(store: Store, path: Path) -> None:
    await store.write([[ModelInfo("ollama", "q", loaded_at=5, memory_usage_gb=2.5)]])
    await store.write([[ModelInfo("ollama", "q")]])
    (row,) = rows(path, "SELECT * FROM models")
    assert (row["loaded_at"], row["memory_usage_gb"]) == (None, None)


async def test_a_long_entry_loses_its_longest_members(store: Store, path: Path) -> None:
    raw = {"id": "m", "description": "x" * 5000, "pricing": {"prompt": "0"}}
    await store.write([[ModelInfo("openrouter", "m", raw)]])
    (row,) = rows(path, "SELECT * FROM models")
    assert json.loads(row["metadata"]) == {"id": "m", "pricing": {"prompt": "0"}}
