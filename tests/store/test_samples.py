from __future__ import annotations

from pathlib import Path

import pytest

from proxy.sample import GpuSample, HostSample
from proxy.store import samples
from proxy.store.engine import Store
from proxy.store.filters import Filters
from tests.store.rows import rows


async def test_a_sample_has_a_row_for_each_gpu(store: Store, path: Path) -> None:
    gpus = (GpuSample(0, name="H200", power_draw_watts=71.5), GpuSample(1, temperature_c=40))
    await store.write([HostSample(10, 2, cpu_percent=12.5, gpus=gpus), HostSample(20)])
    first, second = rows(path, "SELECT * FROM system_metrics ORDER BY timestamp")
    assert (first["gpu_count"], first["cpu_percent"]) == (2, 12.5)
    assert (second["gpu_count"], second["cpu_percent"]) == (0, None)
    zero, one = rows(path, "SELECT * FROM gpu_metrics ORDER BY gpu_id")
    assert zero["sample_id"] == one["sample_id"] == first["id"]
    assert zero["timestamp"] == 10
    assert (zero["name"], zero["power_draw_watts"], one["temperature_c"]) == ("H200", 71.5, 40)


async def test_the_means_of_a_window_are_over_what_was_measured_in_it(either: Store) -> None:
    one = (GpuSample(0, utilization_percent=90, memory_used_mb=2048), GpuSample(1))
    two = (GpuSample(0, utilization_percent=10, memory_used_mb=1024),)
    await either.write(
        [
            HostSample(10, 2, cpu_percent=10, memory_percent=50, memory_used_gb=4.5, gpus=one),
            HostSample(20, 1, cpu_percent=20, memory_used_gb=3.5, gpus=two),
            HostSample(30, cpu_percent=99, memory_percent=99, memory_used_gb=99),
        ]
    )
    async with either.reader() as connection:
        found = await samples.means(connection, Filters(start=10, end=30, provider=("lab",)))
        assert found == {
            "cpu_percent": pytest.approx(15),
            "memory_percent": pytest.approx(50),
            "peak_memory_gb": pytest.approx(4.5),
            "gpu_percent": pytest.approx(50),
            "peak_gpu_memory_gb": pytest.approx(2),
        }
        assert await samples.means(connection, Filters(start=40, end=50)) == samples.UNKNOWN
        month = Filters(start=0, end=30 * 86_400_000)
        assert await samples.means(connection, month) == samples.UNKNOWN
