"""Watching an answer go by: a tap sees every byte, keeps none it does not need, and never raises.

Two taps with one face: ``StreamTap`` for server-sent events, ``BodyTap`` for one JSON document.
Times are seconds of the monotonic clock, given by the caller.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

from proxy.metering import estimate, tokenizer
from proxy.metering.answer import Answer, Choice, Message, decode, decode_all
from proxy.metering.decompress import Decompressor
from proxy.metering.sse import NEXT, EventSplitter, payload, plain_events
from proxy.metering.tool_calls import MARK, ToolCalls
from proxy.metering.transcript import Transcript
from proxy.metering.usage import RawUsage, from_timings, pick

MAX_BODY = 64 * 1024 * 1024
"""A JSON body longer than this passes unread."""
MAX_GAPS = 16_384
STALL = 1.0
"""Seconds between two outputs that may be a stall: whoever reads along has noticed."""


class Tap:
    """What both taps have found out. Unknown is None."""

    __slots__ = (  # each is read for every event: from a dict of this size it takes longer
        *("meaningful", "error", "finish_reason", "usage", "model", "fingerprint", "details"),
        *("response_length", "seen_tokens", "sample", "chunk_count", "first_byte"),
        *("first_reasoning", "first_content", "first_tool", "last_token"),
        *("gaps", "max_gap", "long_gaps", "transcript"),
    )

    def __init__(self) -> None:
        self.meaningful = False  # an event came that decides what this answer is
        self.error: Any = None
        self.finish_reason: str | None = None
        self.usage: RawUsage | None = None
        self.model: str | None = None
        self.fingerprint: str | None = None
        self.details: dict[str, Any] = {}
        self.response_length: int | None = None
        self.seen_tokens = 0  # an estimate, from what was seen
        self.sample = tokenizer.sample()  # of the same, to be counted
        self.first_byte: float | None = None
        self.first_reasoning: float | None = None
        self.first_content: float | None = None  # of the answer itself: text, a refusal, audio
        self.first_tool: float | None = None
        self.last_token: float | None = None
        self.chunk_count: int | None = None
        self.gaps = array("d")
        self.max_gap: float | None = None
        self.transcript: Transcript | None = None  # what it says, where that is kept
        self.long_gaps = array("d")  # all those above STALL, also where others were thinned out

    @property
    def complete(self) -> bool:
        """Whether the answer came to its own end."""
        return self.finish_reason is not None

    @property
    def saw_reasoning(self) -> bool:
        """Whether thoughts were in a stream."""
        return self.first_reasoning is not None

    @property
    def first_token(self) -> float | None:
        """When the first output of any kind came in a stream."""
        firsts = (self.first_reasoning, self.first_content, self.first_tool)
        return min((first for first in firsts if first is not None), default=None)

    def note(self, answer: Answer) -> None:
        """Keep what any chunk or body may carry beside its choices."""
        if answer.error and self.error is None:
            self.error = answer.error
            self.meaningful = True
        if answer.usage is not None:
            self.usage = pick(self.usage, answer.usage)
        if answer.x_groq is not None and isinstance(answer.x_groq, dict):
            self.usage = pick(self.usage, answer.x_groq.get("usage"))
            if self.error is None and answer.x_groq.get("error"):
                self.error = {"message": answer.x_groq["error"]}
                self.meaningful = True
        if answer.timings is not None:
            self.usage = pick(from_timings(answer.timings), self.usage)
            self.details["timings"] = answer.timings
        if answer.model:
            self.model = answer.model
        if answer.system_fingerprint:
            self.fingerprint = answer.system_fingerprint
        if answer.service_tier:
            self.details["service_tier"] = answer.service_tier
        if answer.provider:
            self.details["provider"] = answer.provider

    def reason(self, choice: Choice) -> None:
        """Keep why a choice ended; ``error`` as a reason is an error (OpenRouter)."""
        if choice.finish_reason:
            self.finish_reason = choice.finish_reason
            self.meaningful = True
        if self.error is None and (choice.error or choice.finish_reason == "error"):
            self.error = choice.error or {"message": "the provider ended with an error"}
            self.meaningful = True


class StreamTap(Tap):
    """Watches server-sent events.

    ``feed`` gives the bytes for the client: those that came, unless an event is withheld
    (``hide_usage``: the usage-only event that the client did not ask for), rewritten (``rewrite``:
    called with an event) or mended (``mend_tools``: tool calls that share an index are told
    apart). Then bytes are handed on event by event.
    """

    __slots__ = (
        *("done", "_by_event", "_decompressor", "_fed_at", "_finished", "_hide_usage", "_rewrite"),
        *("_saw_calls", "_skipped", "_splitter", "_step", "_tools"),
    )

    chunk_count: int  # events with output
    response_length: int  # characters of content

    def __init__(
        self,
        *,
        hide_usage: bool = False,
        rewrite: Callable[[bytes], bytes] | None = None,
        mend_tools: bool = False,
        encoding: str | None = None,
    ) -> None:
        super().__init__()
        self.done = False
        self.chunk_count = 0
        self.response_length = 0
        self._hide_usage = hide_usage
        self._rewrite = rewrite
        self._tools = ToolCalls() if mend_tools else None
        self._saw_calls = False
        self._by_event = hide_usage or rewrite is not None or mend_tools
        self._splitter = EventSplitter()
        self._decompressor = Decompressor(encoding) if encoding else None
        self._step = 1
        self._skipped = 0
        self._fed_at = 0.0
        self._finished = False

    @property
    def complete(self) -> bool:
        """The stream came to its own end: a finish_reason or ``[DONE]`` was seen."""
        return self.done or self.finish_reason is not None

    @property
    def inside_event(self) -> bool:
        """Whether an event has begun that has not ended."""
        return self._splitter.inside_event

    def feed(self, data: bytes, at: float) -> bytes:
        if self.first_byte is None:
            self.first_byte = at
        self._fed_at = at
        if self._decompressor is not None:
            self._watch(self._splitter.feed(self._decompressor.feed(data)), at)
            return data
        if NEXT in data and self._rewrite is None and self._splitter.between_events:
            plain = plain_events(data)
            answers = decode_all(*plain[:2]) if plain is not None else None
            if plain is not None and answers is not None:
                if self.transcript is not None:
                    self.transcript.read(plain[0])
                return self._see_all(answers, plain[2], data, at)
        if self._by_event:
            return self._watch(self._splitter.feed(data), at)
        for event in self._splitter.feed(data):
            found = payload(event)
            if found is not None:
                self._read(found, at)
        return data

    def finish(self) -> bytes:
        """The stream has ended: what was held back of an event that never did, once."""
        if self._finished:
            return b""
        self._finished = True
        rest = self._splitter.rest
        found = payload(rest)
        if found is not None and self._read(found, self._fed_at) and self._hide_usage:
            self._splitter = EventSplitter()
            return b""
        return rest if self._by_event and self._decompressor is None else b""

    def _see_all(self, answers: list[Answer], done: bool, data: bytes, at: float) -> bytes:
        """Note the answers of a read of whole events; give its bytes, less what is withheld."""
        before = self.chunk_count
        hidden = [place for place, answer in enumerate(answers) if self._see(answer)]
        if self.chunk_count != before:
            self._token(at)
            self._token_beside(self.chunk_count - before - 1)
        if done:
            self.done = self.meaningful = True
        if not self._hide_usage:
            hidden = []
        if not hidden and (self._tools is None or not self._saw_calls):
            return data
        events = data.split(b"\n\n")
        kept = [event for place, event in enumerate(events) if place not in hidden]
        return b"\n\n".join(map(self._mended, kept))

    def _watch(self, events: list[bytes], at: float) -> bytes:
        kept = []
        for event in events:
            found = payload(event)
            hidden = found is not None and self._read(found, at)
            if hidden and self._hide_usage:
                continue
            if self._saw_calls:  # before the first call nothing is searched for one
                event = self._mended(event)
            if self._rewrite is not None and found is not None and found != b"[DONE]":
                event = self._rewrite(event)
            kept.append(event)
        return b"".join(kept)

    def _mended(self, event: bytes) -> bytes:
        return event if self._tools is None or MARK not in event else self._tools.mend(event)

    def _read(self, data: bytes, at: float) -> bool:
        """Read one event's data; True if it holds usage and nothing else."""
        if data.startswith(b"[DONE]"):
            self.done = self.meaningful = True
            return False
        answer = decode(data)
        if answer is None:
            return False
        if self.transcript is not None:
            self.transcript.read(data)
        before = self.chunk_count
        hidden = self._see(answer)
        if self.chunk_count != before:
            self._token(at)
        return hidden

    def _see(self, answer: Answer) -> bool:
        """Note one chunk; True if it holds usage and nothing else."""
        self.note(answer)
        choices = answer.choices
        if not choices:
            return choices is not None and isinstance(answer.usage, dict) and not answer.error
        output = False
        for choice in choices:
            delta = choice.delta
            text = delta.content if delta is not None else choice.text
            if text:
                output = True
                if self.first_content is None:
                    self.first_content = self._fed_at
                self.response_length += len(text)
                self._say(text)
            if delta is not None and self._other(delta):
                output = True
            if choice.finish_reason or choice.error:
                self.reason(choice)
        if output:
            self.chunk_count += 1
        return False

    def _other(self, delta: Message) -> bool:
        """Output that is not content: reasoning, a refusal, a tool call, audio."""
        output = answered = delta.audio is not None
        thought = delta.reasoning or delta.reasoning_content or delta.thinking
        if thought or delta.reasoning_details:
            output = True
            if self.first_reasoning is None:
                self.first_reasoning = self._fed_at
            if thought:
                self._say(thought)
            else:
                self.seen_tokens += 1
        if delta.refusal:
            output = answered = True
            self._say(delta.refusal)
        if delta.tool_calls is not None:
            self._saw_calls = True
            for call in delta.tool_calls:
                for text in (call.function.name, call.function.arguments) if call.function else ():
                    if text:
                        output = True
                        if self.first_tool is None:
                            self.first_tool = self._fed_at
                        self._say(text)
        if answered and self.first_content is None:
            self.first_content = self._fed_at
        return output

    def _say(self, text: str) -> None:
        """Output that is text."""
        self.seen_tokens += estimate.delta_tokens(text)
        if self.sample is not None:
            self.sample.add(text)

    def _token(self, at: float) -> None:
        """Output came."""
        self.meaningful = True
        last, self.last_token = self.last_token, at
        if last is None:
            return
        gap = at - last
        if self.max_gap is None or gap > self.max_gap:
            self.max_gap = gap
        if gap > STALL:
            self.long_gaps.append(gap)
        self._skipped += 1
        if self._skipped >= self._step:
            self._skipped = 0
            self.gaps.append(gap)
            if len(self.gaps) >= MAX_GAPS:  # a very long stream: keep every other gap
                self.gaps = self.gaps[::2]
                self._step *= 2

    def _token_beside(self, count: int) -> None:
        """So many more outputs came in the same read."""
        if count and self.last_token is not None:
            if self._step == 1 and len(self.gaps) + count < MAX_GAPS:
                self.max_gap = self.max_gap or 0.0
                self.gaps.extend(repeat(0.0, count))
            else:
                for _ in range(count):
                    self._token(self.last_token)


class BodyTap(Tap):
    """Watches one JSON document, and reads it when it has ended."""

    def __init__(self, *, encoding: str | None = None) -> None:
        super().__init__()
        self.valid = False
        self.empty = True
        self._encoding = encoding
        self._parts: list[bytes] = []
        self._size = 0
        self._finished = False

    def feed(self, data: bytes, at: float) -> bytes:
        if self.first_byte is None:
            self.first_byte = at
        self._size += len(data)
        if self._size <= MAX_BODY:
            self._parts.append(data)
        else:
            self._parts.clear()
        return data

    def finish(self) -> None:
        """The body has ended. May be called again, and has no effect then."""
        if self._finished:
            return
        self._finished = True
        body = b"".join(self._parts)
        self._parts.clear()
        if self._encoding:
            body = Decompressor(self._encoding).feed(body)
        self.empty = not body.strip() and self._size <= MAX_BODY
        if self.transcript is not None and body:
            self.transcript.whole(body)
        answer = decode(body)
        if answer is None:
            return
        self.valid = True
        self.note(answer)
        length: int | None = None
        for choice in answer.choices or ():
            self.reason(choice)
            message = choice.message
            text = message.content if message is not None else choice.text
            if text is not None:
                length = (length or 0) + len(text)
            thought = (message.reasoning or message.reasoning_content) if message else None
            for said in (thought, text, *_calls(message)):
                self._say(said or "")
        self.response_length = length
        self.empty = not answer.choices and not answer.data and answer.usage is None

    def _say(self, text: str) -> None:
        self.seen_tokens += estimate.tokens(text)
        if self.sample is not None:
            self.sample.add(text)


def _calls(message: Message | None) -> Iterator[str | None]:
    """The names and arguments of a message's tool calls."""
    for call in (message.tool_calls if message is not None else None) or ():
        if call.function is not None:
            yield from (call.function.name, call.function.arguments)
