"""What an entry of the journal is: a byte for the kind of thing, then the thing as MessagePack.

The numbers stay what they are, as a journal may be older than the program that reads it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.changes import BreakerRecord, CooldownRecord, CountRecord, LiftRecord, SwitchRecord
from proxy.content import ContentRecord
from proxy.metering.admission import ADMISSION, Admission
from proxy.sample import HostSample
from proxy.store.events import EventRecord
from proxy.store.salvage import mend
from proxy.types import CallRecord, FaultRecord, ModelInfo

_KINDS: dict[int, Any] = {
    ADMISSION: Admission,
    2: CallRecord,
    3: CooldownRecord,
    4: LiftRecord,
    5: SwitchRecord,
    6: CountRecord,
    7: BreakerRecord,
    8: FaultRecord,
    9: HostSample,
    10: EventRecord,
    11: list[ModelInfo],
    12: ContentRecord,
}
_MARKS = {list if kind == list[ModelInfo] else kind: bytes([k]) for k, kind in _KINDS.items()}
_DECODERS = {number: msgspec.msgpack.Decoder(kind) for number, kind in _KINDS.items()}
_encode = msgspec.msgpack.Encoder().encode


def encode(item: object) -> bytes:
    """The payload of an entry. ValueError, OverflowError or TypeError where there is none."""
    mark = _MARKS.get(type(item))
    if mark is None:
        raise TypeError("it is no kind of entry")
    try:
        return mark + _encode(item)
    except (ValueError, OverflowError):
        # Half a character, or a number beyond 64 bits, which a client or a provider may send.
        if isinstance(item, CallRecord):
            return mark + _encode(mend(item))
        if isinstance(item, Admission):
            return mark + _encode(Admission(mend(item.call)))
        raise


def decode(payload: bytes) -> object:
    """What ``encode`` made a payload of; ValueError if that cannot be told."""
    decoder = _DECODERS.get(payload[0])
    if decoder is None:
        raise ValueError(f"kind {payload[0]} is not known")
    return decoder.decode(memoryview(payload)[1:])
