"""Samples of the host, its GPUs and this process, taken off the event loop.

A daemon thread reads (psutil, NVML) and hands each sample to the loop; all that is kept belongs
to the loop. A call into a driver may hang for ever: then no new samples come, and nothing else
changes. Whatever cannot be read is None.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import reduce
from operator import or_
from typing import Any, TypeVar

import msgspec
import psutil
import pynvml  # type: ignore[import-untyped]

from proxy.clock import monotonic, now_ms
from proxy.sample import GpuSample, HostSample

_log = logging.getLogger("tollkeeper.host")

_T = TypeVar("_T")
_GIB = 1024**3
_MIB = 1024**2
_TEMPERATURE = pynvml.NVML_TEMPERATURE_GPU
_SM_CLOCK = pynvml.NVML_CLOCK_SM
_MEMORY_V2 = pynvml.nvmlMemory_v2

_KEPT = 60
"""Samples kept in memory: a minute of them."""

_LAG_EVERY = 0.1
"""Seconds between two looks at the event loop; a stall longer than this cannot hide."""

_JOIN = 0.5
"""Seconds that the end of the program waits for the thread."""

_LAST = {
    *("timestamp", "gpu_count", "gpu_id", "uuid", "name"),
    *("disk_read_bytes", "disk_write_bytes", "network_bytes_sent", "network_bytes_recv"),
}
"""Of an interval these have a last value, not a mean: names, and counters since boot."""

_WHOLE = {"process_threads", "open_fds", "in_flight_requests", "writer_queue_depth"}
"""Counted in whole numbers, so their mean is rounded."""


class HostSampler:
    """Takes a sample each ``sample_every`` seconds and emits their mean each ``store_every``.

    ``emit`` gets the HostSample of each stored interval; ``gauges`` says the requests in flight
    and the depth of the writer's queue. Both are called on the event loop. ``loop_lag_ms`` is the
    longest overshoot of a 0.1 s sleep in the interval, since a mean would hide a stall; a GPU's
    ``throttle_reasons`` are all that were seen in it; counters are the last; the rest is a mean.
    """

    def __init__(
        self,
        emit: Callable[[HostSample], None],
        gauges: Callable[[], tuple[int, int]],
        sample_every: float = 1.0,
        store_every: float = 10.0,
    ) -> None:
        self._emit = emit
        self._gauges = gauges
        self._every = sample_every
        self._per_store = max(1, round(store_every / sample_every))
        self._interval: list[HostSample] = []
        self._lag = 0.0
        self.recent: deque[HostSample] = deque(maxlen=_KEPT)

    @property
    def latest(self) -> HostSample | None:
        """The newest sample, None before the first."""
        return self.recent[-1] if self.recent else None

    def gpu_memory_used_mb(self) -> float | None:
        """What was in use on all GPUs at the newest sample, in MiB; None if no GPU told."""
        gpus = self.latest.gpus if self.latest is not None else ()
        used = [gpu.memory_used_mb for gpu in gpus if gpu.memory_used_mb is not None]
        return sum(used) if used else None

    async def run(self) -> None:
        """Sample until cancelled."""
        loop = asyncio.get_running_loop()
        stop = threading.Event()
        ended = asyncio.Event()

        def post(function: Callable[..., None], *args: object) -> None:
            with suppress(RuntimeError):  # the loop has been closed while a driver call hung
                loop.call_soon_threadsafe(function, *args)

        def sample() -> None:
            try:
                for taken in _samples(stop, self._every, self._per_store):
                    post(self._take, taken)
            except Exception:
                _log.exception("the host is no longer sampled")
            finally:
                post(ended.set)

        threading.Thread(target=sample, name="host-sampler", daemon=True).start()
        try:
            await self._watch_lag(min(_LAG_EVERY, self._every))
        finally:
            stop.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(_JOIN):
                    await ended.wait()

    async def _watch_lag(self, pause: float) -> None:
        while True:
            begin = monotonic()
            await asyncio.sleep(pause)
            self._lag = max(self._lag, monotonic() - begin - pause)

    def _take(self, sample: HostSample) -> None:
        in_flight, queued = self._gauges()
        sample = msgspec.structs.replace(
            sample,
            loop_lag_ms=self._lag * 1000,
            in_flight_requests=in_flight,
            writer_queue_depth=queued,
        )
        self._lag = 0.0
        self.recent.append(sample)
        self._interval.append(sample)
        if len(self._interval) >= self._per_store:
            taken, self._interval = self._interval, []
            self._emit(_average(taken))


def _average(samples: Sequence[HostSample]) -> HostSample:
    """One sample for an interval, at the time of its last one and with the GPUs of that."""
    values = _fold(samples)
    lags = [sample.loop_lag_ms for sample in samples if sample.loop_lag_ms is not None]
    values["loop_lag_ms"] = max(lags, default=None)
    values["gpus"] = tuple(
        _average_gpu([gpu for s in samples for gpu in s.gpus if gpu.gpu_id == last.gpu_id])
        for last in samples[-1].gpus
    )
    return HostSample(**values)


def _average_gpu(samples: Sequence[GpuSample]) -> GpuSample:
    values = _fold(samples)
    seen = [gpu.throttle_reasons for gpu in samples if gpu.throttle_reasons is not None]
    values["throttle_reasons"] = reduce(or_, seen) if seen else None
    return GpuSample(**values)


def _fold(samples: Sequence[HostSample] | Sequence[GpuSample]) -> dict[str, Any]:
    """Member by member: the mean of what is known (or the last), None where nothing is."""
    values: dict[str, Any] = {}
    for name in samples[0].__struct_fields__:
        if name == "gpus":
            continue
        known = [value for s in samples if (value := getattr(s, name)) is not None]
        if not known:
            values[name] = None
        elif name in _LAST:
            values[name] = known[-1]
        else:
            mean = sum(known) / len(known)
            values[name] = round(mean) if name in _WHOLE else mean
    return values


def _samples(stop: threading.Event, every: float, per_store: int) -> Iterator[HostSample]:
    """A sample each ``every`` seconds until ``stop`` is set; runs in the thread."""
    process = psutil.Process()
    _try(lambda: psutil.cpu_percent(None))  # both answer 0.0 the first time: since when?
    _try(lambda: process.cpu_percent(None))
    fds: int | None = None
    with _nvml() as gpus:
        due = monotonic()
        count = 0
        while True:
            due = max(due + every, monotonic())
            if stop.wait(due - monotonic()):
                return
            if count % per_store == 0:  # it lists a folder with an entry for each connection
                fds = _try(lambda: process.num_fds())
            count += 1
            yield _read_host(process, fds, tuple([gpu.read() for gpu in gpus]))


def _read_host(process: psutil.Process, fds: int | None, gpus: tuple[GpuSample, ...]) -> HostSample:
    memory = _try(psutil.virtual_memory)
    disk = _try(psutil.disk_io_counters)
    network = _try(psutil.net_io_counters)
    load = _try(psutil.getloadavg) or (None, None, None)
    return HostSample(
        timestamp=now_ms(),
        gpu_count=len(gpus),
        cpu_percent=_try(lambda: psutil.cpu_percent(None)),
        memory_percent=memory and memory.percent,
        memory_used_gb=memory and memory.used / _GIB,
        memory_total_gb=memory and memory.total / _GIB,
        swap_percent=_try(lambda: psutil.swap_memory().percent),
        disk_percent=_try(lambda: psutil.disk_usage(".").percent),
        disk_read_bytes=disk and disk.read_bytes,
        disk_write_bytes=disk and disk.write_bytes,
        network_bytes_sent=network and network.bytes_sent,
        network_bytes_recv=network and network.bytes_recv,
        load_1m=load[0],
        load_5m=load[1],
        load_15m=load[2],
        process_rss_mb=_try(lambda: process.memory_info().rss / _MIB),
        process_cpu_percent=_try(lambda: process.cpu_percent(None)),
        process_threads=_try(process.num_threads),
        open_fds=fds,
        gpus=gpus,
    )


@contextmanager
def _nvml() -> Iterator[list[_Gpu]]:
    """The GPUs of this host; empty without NVML."""
    try:
        pynvml.nvmlInit()
    except Exception as error:  # NVMLError, or what the loader says of a broken library
        _log.info("no NVIDIA GPU is watched: %s", error)
        yield []
        return
    try:
        yield [_Gpu(number) for number in range(_try(pynvml.nvmlDeviceGetCount) or 0)]
    finally:
        _try(pynvml.nvmlShutdown)


class _Gpu:
    """One GPU; each member by a call of its own, since each may be unsupported on this card."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._handle = _try(lambda: pynvml.nvmlDeviceGetHandleByIndex(number))
        self._uuid = _text(self._ask("UUID"))
        self._name = _text(self._ask("Name"))

    def read(self) -> GpuSample:
        memory = self._ask("MemoryInfo", version=_MEMORY_V2)
        if memory is None:  # a driver before 510: there "used" holds the driver's own share, too
            memory = self._ask("MemoryInfo")
        used, total = (memory.used, memory.total) if memory is not None else (None, None)
        utilization = self._ask("UtilizationRates")
        reasons = self._ask("CurrentClocksEventReasons")
        if reasons is None:  # its name before driver 535
            reasons = self._ask("CurrentClocksThrottleReasons")
        return GpuSample(
            gpu_id=self._number,
            uuid=self._uuid,
            name=self._name,
            temperature_c=self._ask("Temperature", _TEMPERATURE),
            utilization_percent=None if utilization is None else utilization.gpu,
            memory_used_mb=_divided(used, _MIB),
            memory_total_mb=_divided(total, _MIB),
            memory_percent=_divided(used, total and total / 100),
            power_draw_watts=_divided(self._ask("PowerUsage"), 1000),
            power_limit_watts=_divided(self._ask("EnforcedPowerLimit"), 1000),
            sm_clock_mhz=self._ask("ClockInfo", _SM_CLOCK),
            throttle_reasons=reasons,
        )

    def _ask(self, what: str, *args: object, **options: object) -> Any:
        """``nvmlDeviceGet…`` of this GPU."""
        if self._handle is None:
            return None
        name = f"nvmlDeviceGet{what}"
        return _try(lambda: getattr(pynvml, name)(self._handle, *args, **options))


def _divided(value: float | None, unit: float | None) -> float | None:
    return value / unit if value is not None and unit else None


def _text(name: str | bytes | None) -> str | None:
    """Older bindings answer bytes, newer ones str."""
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def _try(read: Callable[[], _T]) -> _T | None:
    """What ``read`` answers, None if it cannot: a container without parts of /proc, a card
    without a sensor. What is raised then is of many kinds, and none of them matters here."""
    try:
        return read()
    except Exception:
        return None
