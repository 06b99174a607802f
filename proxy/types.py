"""The nouns that every floor shares. Unknown is None, never 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from itertools import chain
from typing import Any, Literal

import msgspec

from proxy.clients import Client
from proxy.errors import ErrorReason

Headers = list[tuple[bytes, bytes]]
"""Header fields as they travel: lower-case names, values as sent."""


class Operation(StrEnum):
    """What a request asks for; the value is OpenTelemetry's ``gen_ai.operation.name``."""

    CHAT = "chat"
    COMPLETION = "text_completion"
    EMBEDDINGS = "embeddings"

    @property
    def path(self) -> str:
        """The path below an OpenAI-compatible base address, ``/chat/completions`` for chat."""
        return _PATHS[self]


_PATHS = {
    Operation.CHAT: "/chat/completions",
    Operation.COMPLETION: "/completions",
    Operation.EMBEDDINGS: "/embeddings",
}


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Who asks. ``client_id`` is "master" for the master key and None on an open gateway. With a
    client's own key there is the ``client``, too."""

    client_id: str | None = None
    client: Client | None = None


class Target(msgspec.Struct, frozen=True, gc=False):
    """One model at one provider: what an attempt is made at."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


class Demand(msgspec.Struct, frozen=True, gc=False):
    """What of a request decides who should serve it. ``tokens`` is what its prompt is expected to
    have, ``session`` whatever should stay with one key and target, for its prompt cache."""

    tokens: int = 0
    max_tokens: int | None = None
    stream: bool = False
    session: str | None = None


class Plan(msgspec.Struct, frozen=True, gc=False):
    """The targets that may serve a request, best first. ``alias`` is None for a direct name.

    ``instead`` are the targets that take over from all others where one fails for that reason.
    """

    requested_model: str
    targets: tuple[Target, ...]
    alias: str | None = None
    rewrite_model: bool = False
    instead: Mapping[ErrorReason, tuple[Target, ...]] = {}

    @property
    def everyone(self) -> tuple[Target, ...]:
        """Every target that may come to serve, each once."""
        return tuple(dict.fromkeys((*self.targets, *chain(*self.instead.values()))))

    def only(self, may: Callable[[Target], bool]) -> Plan:
        """The plan with the targets that may serve, which can be none."""
        targets = tuple(filter(may, self.targets))
        instead = {reason: tuple(filter(may, others)) for reason, others in self.instead.items()}
        return msgspec.structs.replace(self, targets=targets, instead=instead)


class Action(StrEnum):
    """What follows a failed attempt."""

    NEXT_KEY = "next_key"  # another key of the same target, then the next target
    NEXT_TARGET = "next_target"
    STOP = "stop"  # the answer goes to the client as it is


Rests = Literal["none", "group", "key", "target"]
"""What is left alone after a fault: nothing, the key's quota group, the key alone, or the model at
the provider whatever the key."""


class Fault(msgspec.Struct, frozen=True, gc=False):
    """Why an attempt failed. ``quoted``: the message is the provider's, and may say anything.

    ``status`` is the upstream's HTTP status, None if none came. ``retry_after`` is seconds until
    it may be asked again, as the provider said or as its day ends, None if neither is known;
    ``hint`` is where the provider said so. ``probe_after`` is seconds after which one call may
    look whether the limit is gone although ``retry_after`` has not passed.
    ``executed`` says that the upstream may have done (and billed) the work: the request was sent
    and no complete refusal came back.
    ``covers`` is the models that a limit holds for: None for the one that was asked, "" for all,
    "*:free" for every one whose name ends so. ``of_key`` says that it was set on this key alone,
    not on the account behind its quota group.
    """

    reason: ErrorReason
    message: str
    status: int | None = None
    type: str | None = None
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None
    hint: Literal["header", "body"] | None = None
    executed: bool = False
    covers: str | None = None
    probe_after: float | None = None
    of_key: bool = False
    quoted: bool = False


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What to do after a fault.

    ``rests`` is what is left alone, ``covers`` for which models (as in ``Fault``): a key rests for
    all of them, a target is one. ``cooldown`` is seconds (None: the pool's own back-off), and
    ``probe_after`` seconds after which one call may look whether the limit is gone.
    ``failure`` counts against the provider, whatever rests.
    """

    action: Action
    rests: Rests = "none"
    covers: str | None = None
    cooldown: float | None = None
    probe_after: float | None = None
    failure: bool = False


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts of one call, inclusive: cached, audio and images are inside input, reasoning,
    audio and images inside output.

    ``hidden_tokens`` are output tokens that were billed but never sent (thoughts that stay with
    the provider). ``cost_nano_usd`` is what the provider itself said the call cost.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    input_audio_tokens: int | None = None
    output_audio_tokens: int | None = None
    input_image_tokens: int | None = None
    output_image_tokens: int | None = None
    hidden_tokens: int | None = None
    cost_nano_usd: int | None = None


class Memory(msgspec.Struct, frozen=True, gc=False):
    """What a model holds where it runs, in MiB, and the part of it that is on GPUs. Both are 0 for
    one that is not loaded."""

    total_mb: float = 0.0
    vram_mb: float = 0.0


class ModelInfo(msgspec.Struct, frozen=True):
    """A model as a provider lists it; ``raw`` is its entry as it came."""

    provider: str
    name: str
    raw: Mapping[str, Any] = {}
    context_length: int | None = None
    max_output_tokens: int | None = None
    parameters: int | None = None
    memory_usage_gb: float | None = None
    version: str | None = None
    type: str | None = None
    loaded_at: int | None = None  # UTC milliseconds
    input_price_per_mtok: float | None = None  # US dollars per million tokens
    output_price_per_mtok: float | None = None
    cached_price_per_mtok: float | None = None
    price_source: str | None = None
    price_version: str | None = None
    is_free: bool | None = None


class CallRecord(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One upstream attempt, or one request refused before any: a row of ``api_calls``.

    The fields are the columns, in order (``id`` and the computed ``success`` aside). Instants are
    UTC milliseconds, durations milliseconds. ``cost_nano_usd`` is stored as
    ``cost_estimate_usd`` and ``list_cost_nano_usd`` as ``list_cost_usd``, in dollars.
    The last two fields are no columns: ``rate_headers``, the raw ``x-ratelimit-*`` of the answer,
    which the store turns into ``rate_limits``, and ``leases``, those that the cost was held by.

    ``first_*_ms`` and ``last_token_ms`` count from sending the attempt. ``model_load_ms``,
    ``prompt_eval_ms`` and ``generation_ms`` are what the model's server measured itself;
    ``is_cold_start`` says that it had to load the model; ``model_memory_mb`` and
    ``model_vram_mb`` (MiB) are what the model held there, ``gpu_memory_used_mb`` what was in use
    on this host's GPUs, when the attempt began. ``tags`` is a JSON list of texts.
    """

    request_id: str
    attempt: int
    is_final: bool
    timestamp: int
    finished_at: int
    endpoint: str
    provider: str
    model: str
    requested_model: str | None = None
    model_version: str | None = None
    key_id: str | None = None
    account: str | None = None
    client_id: str | None = None
    client_request_id: str | None = None
    upstream_request_id: str | None = None
    agent_name: str | None = None
    tool_name: str | None = None
    session_id: str | None = None
    trace_id: str | None = None
    user_id: str | None = None
    tags: str | None = None
    is_stream: bool
    status: str
    http_status: int | None = None
    client_status: int | None = None
    error_reason: str | None = None
    error_message: str | None = None
    finish_reason: str | None = None
    response_time_ms: float | None = None
    total_duration_ms: float | None = None
    queue_time_ms: float | None = None
    processing_time_ms: float | None = None
    overhead_ms: float | None = None
    overhead_before_ms: float | None = None
    overhead_after_ms: float | None = None
    ttfb_ms: float | None = None
    time_to_first_token_ms: float | None = None
    first_reasoning_ms: float | None = None
    first_content_ms: float | None = None
    first_tool_ms: float | None = None
    last_token_ms: float | None = None
    tokens_per_second: float | None = None
    inter_token_avg_ms: float | None = None
    inter_token_p50_ms: float | None = None
    inter_token_p95_ms: float | None = None
    max_stall_ms: float | None = None
    stall_count: int | None = None
    chunk_count: int | None = None
    model_load_ms: float | None = None
    prompt_eval_ms: float | None = None
    generation_ms: float | None = None
    is_cold_start: bool | None = None
    model_memory_mb: float | None = None
    model_vram_mb: float | None = None
    gpu_memory_used_mb: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    input_audio_tokens: int | None = None
    output_audio_tokens: int | None = None
    input_image_tokens: int | None = None
    output_image_tokens: int | None = None
    usage_source: str
    cost_nano_usd: int | None = None
    list_cost_nano_usd: int | None = None
    cost_source: str
    price_version: str | None = None
    message_count: int | None = None
    prompt_length: int | None = None
    response_length: int | None = None
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
    privacy_level: str
    metadata: str | None = None
    rate_headers: tuple[tuple[bytes, bytes], ...] = ()
    leases: tuple[str, ...] = ()


BESIDE = ("rate_headers", "leases")
"""The last fields of a CallRecord, which are no columns."""


class FaultRecord(msgspec.Struct, frozen=True):
    """A fault that is no attempt's, a row of ``errors``: something in this program broke (with its
    stack), or in another that tells of it."""

    timestamp: int
    error_type: str
    error_message: str
    stack_trace: str | None = None
    request_id: str | None = None
    endpoint: str | None = None
    severity: str = "critical"
    provider: str | None = None
    model_name: str | None = None
    client_id: str | None = None
    http_status: int | None = None
