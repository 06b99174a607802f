"""``POST /track/...``: what did not pass through the gateway, told by whoever did it.

A member that is not listed here is refused, so that no prompt and no answer is kept by mistake;
where they are to be kept they have members of their own.
The answer is 201 and the id; the row is written by the batch writer, within a second.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from proxy.api import body
from proxy.api.body import bad
from proxy.bounds import MOST_TOKENS, MOST_USD
from proxy.clock import new_id, now_ms
from proxy.content import Content
from proxy.redact import shorten
from proxy.relay.attribution import attribution
from proxy.store.events import EventRecord
from proxy.tags import MOST
from proxy.telemetry.dates import moment
from proxy.telemetry.record import InvocationRecord, call, content
from proxy.types import Caller, CallRecord, FaultRecord

MAX_FULL_BODY = 2 * 1024 * 1024
"""Bytes, where prompts and answers are kept."""

MOST_ATTRIBUTES = 16

OTHERS = {
    "invocation_id": "request_id",
    "model_name": "model",
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "latency_ms": "response_time_ms",
}
"""Names that others have for a member: those of the view ``invocations``."""

Text = Annotated[str, Field(pattern="^[^\x00]*$")]  # PostgreSQL takes no NUL
Name = Annotated[Text, Field(min_length=1, max_length=200)]
Word = Annotated[Text, Field(max_length=64)]
"""Too short for a prompt."""
Count = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
Amount = Annotated[float, Field(ge=0, lt=1e9, allow_inf_nan=False)]
Money = Annotated[float, Field(ge=0, le=MOST_USD, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Status = Annotated[int, Field(ge=100, le=599)]


def _theirs(id: str) -> str:
    if _OURS.fullmatch(id):
        raise ValueError("the gateway alone makes ids of this form, for the calls that it relays")
    return id


_OURS = re.compile("[0-9A-HJKMNP-TV-Z]{18}")
Theirs = Annotated[Name, AfterValidator(_theirs)]
"""An id that can be none of ours, whose call it would keep from being recorded."""


class Told(BaseModel):
    """What all have. ``timestamp`` is RFC 3339; the id is made where none is told."""

    model_config = ConfigDict(extra="forbid", strict=True)

    timestamp: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, told: Any) -> Any:
        if not isinstance(told, dict):
            return told
        names = {name: OTHERS.get(name, name) for name in told}
        return {n if names[n] in told else names[n]: value for n, value in told.items()}


class Inference(Told):
    """A call of a model: columns of ``api_calls``, and the names that others have for them."""

    request_id: Theirs = Field(default_factory=lambda: f"t{new_id()}")
    provider: Name
    model: Name
    agent_name: Name | None = None
    tool_name: Name | None = None
    session_id: Name | None = None
    trace_id: Name | None = None
    user_id: Name | None = None
    tags: Annotated[list[Word], Field(max_length=MOST)] | None = None
    status: Literal["success", "error", "timeout", "cancelled", "rejected"] = "success"
    error_reason: Name | None = None
    error_message: Text | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    total_tokens: Count | None = None
    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None
    reasoning_tokens: Count | None = None
    cost_usd: Money | None = None
    response_time_ms: Amount | None = None
    time_to_first_token_ms: Amount | None = None

    # Columns of the same name.
    model_version: Name | None = None
    is_stream: bool | None = None
    http_status: Status | None = None
    finish_reason: Name | None = None
    queue_time_ms: Amount | None = None
    processing_time_ms: Amount | None = None
    tokens_per_second: Amount | None = None
    prompt_length: Count | None = None
    response_length: Count | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    max_tokens: Count | None = None

    # Kept at the level full, and read nowhere else.
    prompt: Text | None = None
    response: Text | None = None

    def row(self, client_id: str | None, redact: Callable[[str], str]) -> CallRecord:
        """The row; ValueError, with the member's name, where a value cannot be."""
        told = self.model_dump(exclude_none=True)
        same = {name: told.pop(name) for name in _SAME & told.keys()}
        same = {n: redact(value) if isinstance(value, str) else value for n, value in same.items()}
        record = InvocationRecord(**{_NAMES.get(name, name): told[name] for name in told})
        made = call(
            record, now=now_ms(), endpoint="/track/inference", client_id=client_id, redact=redact
        )
        return msgspec.structs.replace(made, **same)


_NAMES = {ours: theirs for theirs, ours in OTHERS.items()}
_SAME = Inference.model_fields.keys() - InvocationRecord.__struct_fields__ - _NAMES.keys()


class Mistake(Told):
    """Something that went wrong: a row of ``errors``. No stack: what stands there is anybody's
    guess."""

    request_id: Name = Field(default_factory=new_id)
    error_type: Name
    error_message: Text
    severity: Literal["info", "warning", "error", "critical"] = "error"
    provider: Name | None = None
    model: Name | None = None
    endpoint: Name = "/track/error"
    http_status: Status | None = None

    def row(self, client_id: str | None, redact: Callable[[str], str]) -> FaultRecord:
        """The row; ValueError, with the member's name, where a value cannot be."""
        return FaultRecord(
            timestamp=_instant(self.timestamp),
            error_type=redact(self.error_type),
            error_message=shorten(redact(self.error_message)),
            request_id=redact(self.request_id),
            endpoint=redact(self.endpoint),
            severity=self.severity,
            provider=_redacted(redact, self.provider),
            model_name=_redacted(redact, self.model),
            client_id=client_id,
            http_status=self.http_status,
        )


class Custom(Told):
    """Anything else that is worth counting: a row of ``custom_events``."""

    event_id: Name = Field(default_factory=new_id)
    name: Name
    value: Number | None = None
    request_id: Name | None = None
    agent_name: Name | None = None
    tool_name: Name | None = None
    attributes: dict[Word, Word | bool | int | Number] = Field({}, max_length=MOST_ATTRIBUTES)

    def row(self, client_id: str | None, redact: Callable[[str], str]) -> EventRecord:
        """The row; ValueError, with the member's name, where a value cannot be."""
        return EventRecord(
            event_id=redact(self.event_id),
            timestamp=_instant(self.timestamp),
            name=redact(self.name),
            value=self.value,
            request_id=_redacted(redact, self.request_id),
            agent_name=_redacted(redact, self.agent_name),
            tool_name=_redacted(redact, self.tool_name),
            client_id=client_id,
            metadata=self._metadata(redact),
        )

    def _metadata(self, redact: Callable[[str], str]) -> str | None:
        attributes = {
            redact(name): redact(value) if isinstance(value, str) else value
            for name, value in self.attributes.items()
        }
        return msgspec.json.encode(attributes).decode() if attributes else None


_Told = TypeVar("_Told", bound=Told)


def track_router(
    call: Callable[[CallRecord], None],
    keep: Callable[[object], None],
    redact: Callable[[str], str],
    check: Callable[[], None],
    keep_content: Callable[[Content], None] | None = None,
) -> APIRouter:
    """``call`` takes what is a call, ``keep`` any other row. ``check`` raises what is answered
    where nothing can be written down, since 201 would be a lie. ``keep_content`` takes prompts and
    answers; None: they are not kept."""
    router = APIRouter(prefix="/track")

    async def told(request: Request, kind: type[_Told]) -> _Told:
        check()
        most = body.MAX_BODY if keep_content is None else MAX_FULL_BODY
        return await body.told(request, kind, most)

    @router.post("/inference", status_code=201)
    async def inference(request: Request) -> dict[str, Any]:
        it = await told(request, Inference)
        row = _made(it, request, redact)
        if keep_content is not None and not attribution(request.headers.raw).private:
            row = msgspec.structs.replace(row, privacy_level="full")
            said = content(row, it.prompt, it.response)
            if said is not None:
                keep_content(said)
        call(row)
        return {"id": it.request_id}

    @router.post("/custom", status_code=201)
    async def custom(request: Request) -> dict[str, Any]:
        it = await told(request, Custom)
        keep(_made(it, request, redact))
        return {"id": it.event_id}

    @router.post("/error", status_code=201)
    async def error(request: Request) -> dict[str, Any]:
        it = await told(request, Mistake)
        keep(_made(it, request, redact))
        return {"id": it.request_id}

    return router


def _made(told: Any, request: Request, redact: Callable[[str], str]) -> Any:
    caller: Caller = request.scope.get("caller") or Caller()
    try:
        return told.row(caller.client_id, redact)
    except ValueError as error:
        name, _, what = str(error).partition(": ")
        raise bad(name, what) from None


def _redacted(redact: Callable[[str], str], name: str | None) -> str | None:
    return None if name is None else redact(name)


def _instant(timestamp: str | None) -> int:
    if timestamp is None:
        return now_ms()
    try:
        return moment(timestamp)
    except ValueError as error:
        raise ValueError(f"timestamp: {error}") from None
