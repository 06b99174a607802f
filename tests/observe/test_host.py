from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.observe import host
from proxy.observe.host import HostSampler
from proxy.sample import GpuSample, HostSample

MIB = 1024**2
GIB = 1024**3


class NotSupported(Exception):
    """What the fake driver raises."""


class FakeNvml:
    """Two GPUs: a healthy one of today's bindings, a poor one of yesterday's."""

    def __init__(self) -> None:
        self.shut = threading.Event()

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None:
        self.shut.set()

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return "NVIDIA H200" if handle == 0 else b"Tesla K80"

    def nvmlDeviceGetUUID(self, handle: int) -> str | bytes:
        return "GPU-0" if handle == 0 else b"GPU-1"

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        assert sensor == 0
        return 41 + handle

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=self.first(handle, 73), memory=12)

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int | None = None) -> Any:
        if handle == 1 and version is not None:
            raise NotSupported
        return SimpleNamespace(used=512 * MIB, total=2048 * MIB)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return self.first(handle, 250_500)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return self.first(handle, 700_000)

    def nvmlDeviceGetClockInfo(self, handle: int, clock: int) -> int:
        assert clock == 1
        return self.first(handle, 1980)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:
        return self.first(handle, 4)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return 1

    def first(self, handle: int, value: int) -> int:
        if handle != 0:
            raise NotSupported
        return value


class NoNvml:
    def nvmlInit(self) -> None:
        raise NotSupported("NVML Shared Library Not Found")


@pytest.fixture(autouse=True)
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setattr(host, "pynvml", fake)
    return fake


async def sampled(
    until: Callable[[list[HostSample]], bool],
    gauges: Callable[[], tuple[int, int]] = lambda: (3, 7),
) -> tuple[HostSampler, list[HostSample]]:
    """Runs a quick sampler until what it emitted is enough."""
    emitted: list[HostSample] = []
    enough = asyncio.Event()

    def emit(sample: HostSample) -> None:
        emitted.append(sample)
        if until(emitted):
            enough.set()

    sampler = HostSampler(emit, gauges, sample_every=0.01, store_every=0.03)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(sampler.run())
        await asyncio.wait_for(enough.wait(), 10)
        task.cancel()
    return sampler, emitted


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "host-sampler"]


async def test_every_member_of_host_and_process_is_read() -> None:
    sampler, emitted = await sampled(lambda emitted: len(emitted) >= 2)
    first, second = emitted[:2]
    unknown = {name for name in first.__struct_fields__ if getattr(first, name) is None}
    assert unknown <= {"disk_read_bytes", "disk_write_bytes"}  # a machine may have no disks
    assert second.timestamp > first.timestamp
    assert first.memory_total_gb is not None
    assert first.memory_total_gb > 0.1
    assert first.process_rss_mb is not None
    assert 5 < first.process_rss_mb < 5000
    assert first.loop_lag_ms is not None
    assert first.loop_lag_ms >= 0
    assert (first.in_flight_requests, first.writer_queue_depth) == (3, 7)
    assert len(sampler.recent) >= 6
    assert sampler.latest is sampler.recent[-1]


async def test_the_memory_in_use_is_that_of_all_gpus(nvml: FakeNvml) -> None:
    sampler, _ = await sampled(bool)
    assert sampler.gpu_memory_used_mb() == 1024.0


async def test_all_gpus_are_read_each_member_by_itself(nvml: FakeNvml) -> None:
    _, emitted = await sampled(bool)
    assert emitted[0].gpu_count == 2
    assert emitted[0].gpus == (
        GpuSample(
            gpu_id=0,
            uuid="GPU-0",
            name="NVIDIA H200",
            temperature_c=41,
            utilization_percent=73,
            memory_used_mb=512,
            memory_total_mb=2048,
            memory_percent=25,
            power_draw_watts=250.5,
            power_limit_watts=700,
            sm_clock_mhz=1980,
            throttle_reasons=4,
        ),
        GpuSample(
            gpu_id=1,
            uuid="GPU-1",
            name="Tesla K80",
            temperature_c=42,
            memory_used_mb=512,
            memory_total_mb=2048,
            memory_percent=25,
            throttle_reasons=1,
        ),
    )
    assert nvml.shut.is_set()


async def test_gpu_without_a_handle_is_counted(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByIndex", lambda index: nvml.first(index, 0))
    _, emitted = await sampled(bool)
    assert emitted[0].gpu_count == 2
    assert emitted[0].gpus[0].name == "NVIDIA H200"
    assert emitted[0].gpus[1] == GpuSample(gpu_id=1)


async def test_host_without_nvml_has_no_gpus_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host, "pynvml", NoNvml())
    caplog.set_level(logging.INFO, "tollkeeper")
    _, emitted = await sampled(lambda emitted: len(emitted) >= 2)
    assert [(sample.gpu_count, sample.gpus) for sample in emitted[:2]] == [(0, ()), (0, ())]
    assert [r.message for r in caplog.records if r.name == "tollkeeper.host"] == [
        "no NVIDIA GPU is watched: NVML Shared Library Not Found"
    ]


@pytest.mark.parametrize(
    ("function", "members"),
    [
        ("cpu_percent", ["cpu_percent"]),
        ("virtual_memory", ["memory_percent", "memory_used_gb", "memory_total_gb"]),
        ("swap_memory", ["swap_percent"]),
        ("disk_usage", ["disk_percent"]),
        ("disk_io_counters", ["disk_read_bytes", "disk_write_bytes"]),
        ("net_io_counters", ["network_bytes_sent", "network_bytes_recv"]),
        ("getloadavg", ["load_1m", "load_5m", "load_15m"]),
    ],
)
async def test_what_cannot_be_read_is_none(
    function: str, members: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise FileNotFoundError("/proc/stat")

    monkeypatch.setattr(host.psutil, function, missing)
    _, emitted = await sampled(bool)
    assert [getattr(emitted[0], member) for member in members] == [None] * len(members)
    assert emitted[0].process_rss_mb is not None


async def test_missing_counters_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.psutil, "disk_io_counters", lambda: None)
    _, emitted = await sampled(bool)
    assert emitted[0].disk_read_bytes is None


async def test_means_are_of_the_interval_and_counters_its_last(
    monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml
) -> None:
    priming, rest = 99.0, [0.0] * 1000
    percents = iter([priming, 10.0, 20.0, 60.0, *rest])
    sent = iter(range(100, 5000))
    reasons = iter([0, 4, 1] + [0] * 1000)
    monkeypatch.setattr(host.psutil, "cpu_percent", lambda interval: next(percents))
    monkeypatch.setattr(
        host.psutil, "net_io_counters", lambda: SimpleNamespace(bytes_sent=next(sent), bytes_recv=1)
    )
    monkeypatch.setattr(
        nvml,
        "nvmlDeviceGetCurrentClocksEventReasons",
        lambda handle: next(reasons) if handle == 0 else 0,
    )
    in_flight = iter([1, 2, 6] + [0] * 1000)
    _, emitted = await sampled(bool, lambda: (next(in_flight), 0))
    assert emitted[0].cpu_percent == 30
    assert emitted[0].network_bytes_sent == 102
    assert emitted[0].in_flight_requests == 3
    assert emitted[0].gpus[0].throttle_reasons == 5


async def test_stall_of_the_loop_is_seen() -> None:
    stalled = False

    def stall_once() -> tuple[int, int]:
        nonlocal stalled
        if not stalled:
            stalled = True
            time.sleep(0.2)
        return (0, 0)

    _, emitted = await sampled(
        lambda emitted: max(sample.loop_lag_ms or 0 for sample in emitted) > 100, stall_once
    )
    assert emitted


async def test_hung_driver_stops_samples_and_nothing_else(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    freed = threading.Event()

    def hang(handle: int) -> int:
        hangs.set()
        freed.wait(30)
        return 0

    monkeypatch.setattr(host, "_JOIN", 0.05)
    monkeypatch.setattr(nvml, "nvmlDeviceGetPowerUsage", hang)
    sampler = HostSampler(lambda sample: None, lambda: (0, 0), sample_every=0.01, store_every=0.01)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(sampler.run())
        await asyncio.to_thread(hangs.wait, 10)
        task.cancel()
    assert task.cancelled()
    assert sampler.latest is None
    (thread,) = threads()
    assert thread.daemon
    freed.set()
    thread.join(10)
    assert not thread.is_alive()


async def test_thread_is_gone_after_cancelling() -> None:
    await sampled(bool)
    for thread in threads():
        thread.join(10)
    assert threads() == []


async def test_minute_of_samples_is_kept() -> None:
    sampler = HostSampler(lambda sample: None, lambda: (0, 0))
    assert sampler.latest is None
    assert sampler.gpu_memory_used_mb() is None
    assert sampler.recent.maxlen == 60
