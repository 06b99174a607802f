"""The row that a call has if nothing more is heard of it: its process ended while it ran."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from proxy import tags
from proxy.errors import ErrorReason
from proxy.metering.attempt import Asked, Attempt, Attribution
from proxy.types import CallRecord

ADMISSION = 1
"""The first byte of a journal's entry that is an admission."""
INTERRUPTED = "the gateway ended while the call ran"

_KEPT = (
    *("request_id", "endpoint", "provider", "model", "requested_model", "client_id"),
    *("client_request_id", "agent_name", "tool_name", "session_id", "trace_id", "is_stream"),
    *("user_id", "tags", "privacy_level"),
)
"""What is so of every attempt of a request, as far as anybody knows."""


class Admission(msgspec.Struct, frozen=True):
    """An attempt is about to be made. ``call`` is its row, should it not come to its end."""

    call: CallRecord


def admission(
    request_id: str,
    attempt: Attempt,
    asked: Asked,
    who: Attribution,
    *,
    endpoint: str,
    client_id: str | None,
    privacy_level: str,
) -> CallRecord:
    """The row of an attempt that is about to be made, as far as it is known by then."""
    return CallRecord(
        request_id=request_id,
        attempt=attempt.number,
        is_final=True,
        timestamp=attempt.timestamp,
        finished_at=attempt.timestamp,
        endpoint=endpoint,
        provider=attempt.target.provider,
        model=attempt.target.model,
        requested_model=asked.model,
        key_id=attempt.key_id,
        account=attempt.account,
        client_id=client_id,
        client_request_id=who.client_request_id,
        agent_name=who.agent_name,
        tool_name=who.tool_name,
        session_id=who.session_id,
        trace_id=who.trace_id,
        user_id=who.user_id,
        tags=tags.written(who.tags),
        is_stream=asked.stream,
        status="error",
        error_reason=str(ErrorReason.INTERRUPTED),
        error_message=INTERRUPTED,
        usage_source="none",
        cost_source="none",
        message_count=asked.message_count,
        prompt_length=asked.prompt_length,
        temperature=asked.temperature,
        top_p=asked.top_p,
        frequency_penalty=asked.frequency_penalty,
        presence_penalty=asked.presence_penalty,
        top_k=asked.top_k,
        max_tokens=asked.max_tokens,
        stop_count=asked.stop_count,
        tool_count=asked.tool_count,
        n=asked.n,
        seed=asked.seed,
        reasoning_effort=asked.reasoning_effort,
        privacy_level=privacy_level,
    )


class Unfinished:
    """The requests of one process that have no final row yet, in the order of their beginning."""

    def __init__(self, calls: Iterable[tuple[str, CallRecord]] = ()) -> None:
        self._calls = dict(calls)

    def __len__(self) -> int:
        return len(self._calls)

    def copy(self) -> Unfinished:
        return Unfinished(self._calls.items())

    def hear(self, item: object) -> None:
        """An entry of the process's journal; they come in order."""
        match item:
            case Admission(call=call):
                self._calls[call.request_id] = call
            case CallRecord(is_final=True, request_id=request_id):
                self._calls.pop(request_id, None)
            case CallRecord(request_id=request_id):
                known = self._calls.get(request_id)
                if known is None or known.attempt <= item.attempt:  # else the next is under way
                    self._calls[request_id] = following(item)

    def rows(self) -> list[CallRecord]:
        """The final row of each, now that nothing more will be heard of it."""
        return list(self._calls.values())


def following(failed: CallRecord) -> CallRecord:
    """The final row of a request that was to be tried again after an attempt that failed."""
    return CallRecord(
        **{name: getattr(failed, name) for name in _KEPT},
        attempt=failed.attempt + 1,
        is_final=True,
        timestamp=failed.finished_at,
        finished_at=failed.finished_at,
        status="error",
        error_reason=str(ErrorReason.INTERRUPTED),
        error_message=INTERRUPTED,
        usage_source="none",
        cost_source="none",
    )
