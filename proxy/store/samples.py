"""``system_metrics`` and ``gpu_metrics``: the machine's figures, as the sampler averaged them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.sample import HostSample
from proxy.store.filters import Filters, where
from proxy.store.tables import gpu_metrics, system_metrics

_LONGEST_MS = 8 * 86_400_000
"""The window that is averaged at most: a sample every ten seconds is 69,000 rows, and no sums of
them are kept."""
UNKNOWN: Mapping[str, float | None] = {
    "cpu_percent": None,
    "memory_percent": None,
    "peak_memory_gb": None,
    "gpu_percent": None,
    "peak_gpu_memory_gb": None,
}
"""What ``means`` tells of a window without samples."""


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


async def means(connection: AsyncConnection, filters: Filters) -> Mapping[str, float | None]:
    """How busy the machine was in a window: means over its samples, and over its GPUs, and the most
    memory in use, in GiB. Of a window of more than eight days nothing."""
    if filters.end - filters.start > _LONGEST_MS:
        return UNKNOWN
    host, gpu = system_metrics.c, gpu_metrics.c
    of_host = select(
        func.avg(host.cpu_percent).label("cpu_percent"),
        func.avg(host.memory_percent).label("memory_percent"),
        func.max(host.memory_used_gb).label("peak_memory_gb"),
    ).where(*where(system_metrics, filters))
    of_gpus = select(
        func.avg(gpu.utilization_percent).label("gpu_percent"),
        (func.max(gpu.memory_used_mb) / 1024).label("peak_gpu_memory_gb"),
    ).where(*where(gpu_metrics, filters))
    found = (await connection.execute(of_host)).one()._mapping
    return {**found, **(await connection.execute(of_gpus)).one()._mapping}
