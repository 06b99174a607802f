"""What the machine was doing: its figures at one instant, or averaged over one interval."""

from __future__ import annotations

import msgspec


class GpuSample(msgspec.Struct, frozen=True):
    """One GPU at one instant. Memory in MiB, power in watts, clocks in MHz; None: not supported."""

    gpu_id: int
    uuid: str | None = None
    name: str | None = None
    temperature_c: float | None = None
    utilization_percent: float | None = None
    memory_used_mb: float | None = None
    memory_total_mb: float | None = None
    memory_percent: float | None = None
    power_draw_watts: float | None = None
    power_limit_watts: float | None = None
    sm_clock_mhz: float | None = None
    throttle_reasons: int | None = None


class HostSample(msgspec.Struct, frozen=True):
    """The host, its GPUs and this process, averaged over one stored interval.

    Sizes in GiB and MiB, counters in bytes since boot, ``timestamp`` UTC milliseconds.
    """

    timestamp: int
    gpu_count: int = 0
    cpu_percent: float | None = None
    memory_percent: float | None = None
    memory_used_gb: float | None = None
    memory_total_gb: float | None = None
    swap_percent: float | None = None
    disk_percent: float | None = None
    disk_read_bytes: int | None = None
    disk_write_bytes: int | None = None
    network_bytes_sent: int | None = None
    network_bytes_recv: int | None = None
    load_1m: float | None = None
    load_5m: float | None = None
    load_15m: float | None = None
    process_rss_mb: float | None = None
    process_cpu_percent: float | None = None
    process_threads: int | None = None
    open_fds: int | None = None
    loop_lag_ms: float | None = None
    in_flight_requests: int | None = None
    writer_queue_depth: int | None = None
    gpus: tuple[GpuSample, ...] = ()
