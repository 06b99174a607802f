from __future__ import annotations

from proxy.sample import GpuSample, HostSample


def test_what_is_not_supported_is_unknown() -> None:
    sample = HostSample(timestamp=1, gpus=(GpuSample(gpu_id=0),))
    assert sample.cpu_percent is None
    assert sample.gpus[0].utilization_percent is None
