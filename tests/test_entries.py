from __future__ import annotations

import pytest

from proxy.changes import CountRecord, LiftRecord, SwitchRecord
from proxy.entries import decode, encode
from proxy.metering.admission import ADMISSION, Admission
from tests.store.rows import call
from tests.store.stories import NOON, everything

MORE = [
    Admission(call(error_reason="interrupted")),
    call(rate_headers=((b"x-ratelimit-limit", b"\xff"),), is_cold_start=False, temperature=0.0),
    call(leases=("a", "b")),
    LiftRecord("groq", "m", "k", "", NOON),
    SwitchRecord("groq", "k", "org", True, NOON),
    CountRecord("groq", "m", "k", "org", "rpm", 10, 2, 60, NOON, NOON),
]


@pytest.mark.parametrize("item", [*everything(NOON), *MORE], ids=lambda item: type(item).__name__)
def test_everything_that_is_kept_comes_back_as_it_was(item: object) -> None:
    payload = encode(item)
    assert decode(payload) == item
    assert (payload[0] == ADMISSION) == isinstance(item, Admission)


def test_a_plain_call_is_small() -> None:
    assert len(encode(call())) < 600


@pytest.mark.parametrize("wrap", [lambda record: record, Admission])
def test_values_that_have_no_form_cost_only_themselves(wrap: type) -> None:
    found = decode(encode(wrap(call(seed=2**70, finish_reason="half \ud800", output_tokens=7))))
    record = found.call if isinstance(found, Admission) else found
    assert record == call(
        request_id=record.request_id,  # type: ignore[attr-defined]
        timestamp=record.timestamp,  # type: ignore[attr-defined]
        finish_reason="half ?",
        output_tokens=7,
    )


@pytest.mark.parametrize("item", ["text", 1, {}])
def test_what_is_no_kind_of_entry_has_no_form(item: object) -> None:
    with pytest.raises(TypeError):
        encode(item)


def test_a_fault_with_half_a_character_has_none() -> None:
    fault = everything(NOON)[2]
    fault = type(fault)(NOON, "KeyError", "half \ud800")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="surrogate"):
        encode(fault)


@pytest.mark.parametrize(
    "payload", [b"\x63\x80", b"\x02", b"\x02\x80", encode(call())[:-1], b"\x02\xff"]
)
def test_a_payload_that_nothing_can_be_made_of_is_an_error(payload: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (of msgspec's, several)
        decode(payload)
