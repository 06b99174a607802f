from __future__ import annotations

from pathlib import Path

from proxy.sample import GpuSample, HostSample
from proxy.store.engine import Store
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
