"""``system_metrics`` and ``gpu_metrics``: the machine's figures, as the sampler averaged them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.sample import HostSample
from proxy.store.tables import gpu_metrics, system_metrics


async def save(connection: AsyncConnection, samples: Iterable[HostSample]) -> None:
    """Write each sample with a row for each of its GPUs."""
    for sample in samples:
        values = msgspec.structs.asdict(sample)
        gpus = values.pop("gpus")
        inserted = await connection.execute(insert(system_metrics).values(values))
        key = inserted.inserted_primary_key
        if gpus and key is not None:
            of_sample = {"sample_id": key[0], "timestamp": sample.timestamp}
            rows = [msgspec.structs.asdict(gpu) | of_sample for gpu in gpus]
            await connection.execute(insert(gpu_metrics), rows)
