"""What is known of a request and of one try of it while it is under way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from proxy.clock import now_ms
from proxy.metering.departure import Departure
from proxy.metering.tap import Tap
from proxy.metering.transcript import Transcript
from proxy.types import Fault, Memory, Target, Usage


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What the client asked for, as far as a row keeps it. Unknown or odd members are None."""

    model: str | None = None
    stream: bool = False
    message_count: int | None = None
    prompt_length: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    stop_count: int | None = None
    tool_count: int | None = None
    n: int | None = None
    seed: int | None = None
    reasoning_effort: str | None = None


class Attribution(msgspec.Struct, frozen=True, gc=False):
    """Who and what a call is counted for, as the request says and the client's key. ``private``:
    the client wants no text of it kept. ``max_cost`` is what it is willing to pay, as it was
    sent."""

    client_request_id: str | None = None
    agent_name: str | None = None
    tool_name: str | None = None
    session_id: str | None = None
    trace_id: str | None = None
    private: bool = False
    max_cost: bytes | None = None
    user_id: str | None = None
    tags: tuple[str, ...] = ()


class Attempt:
    """One try of one target with one key, from asking for the key to the last byte.

    ``left`` is there from when its client has left while the upstream was at work on it.
    ``memory`` is what the model held as it began, ``gpu_memory_mb`` what was in use on this host's
    GPUs, in MiB.
    """

    def __init__(self, number: int, target: Target, began: float, *, leased: float) -> None:
        self.number = number
        self.target = target
        self.timestamp = now_ms() - round((leased - began) * 1000)
        self.began = began
        self.leased = leased
        self.sent: float = leased
        self.first_byte: float | None = None  # of the answer's head
        self.ended: float | None = None
        self.key_id: str | None = None
        self.account: str | None = None
        self.http_status: int | None = None
        self.upstream_request_id: str | None = None
        self.rate_headers: tuple[tuple[bytes, bytes], ...] = ()
        self.tap: Tap | None = None
        self.transcript: Transcript | None = None  # for the words of the answer, if they are kept
        self.normalise: Callable[[Mapping[str, Any]], Usage] | None = None
        self.fault: Fault | None = None
        self.total_tokens: int | None = None  # known once its record is made
        self.memory: Memory | None = None
        self.gpu_memory_mb: float | None = None
        self.left: Departure | None = None
        self.admitted = False  # it may be sent
        self.out = False
        self.called = True  # False: stands for a request that was refused before any attempt

    def holds(self, memory: Memory) -> None:
        """Its model's server has told what the model holds."""
        self.memory = memory

    def went_out(self) -> None:
        """The request is on its way: from now on it may be executed, and billed."""
        self.out = True
