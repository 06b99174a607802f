from __future__ import annotations

import inspect

import msgspec
import pytest

from proxy import reasons
from proxy.errors import ErrorReason as R
from proxy.reasons import FAILURES, MEANINGS
from proxy.types import Action


def test_every_reason_has_its_meaning_in_the_order_of_their_list() -> None:
    """A new reason has no row until somebody has thought of one; a row of a former one is stale."""
    assert list(MEANINGS) == list(R)


def test_no_reason_has_two_rows() -> None:
    source = inspect.getsource(reasons)
    for reason in R:
        assert source.count(f"R.{reason.name}:") == 1


def test_what_a_provider_answers_for_is_known_and_closed() -> None:
    assert {
        R.SERVER_ERROR,
        R.OVERLOADED,
        R.CONNECT,
        R.TIMEOUT,
        R.STREAM_ERROR,
        R.TRUNCATED,
        R.EMPTY_RESPONSE,
        R.BAD_RESPONSE,
    } == FAILURES


@pytest.mark.parametrize("reason", list(R))
def test_the_columns_of_a_row_agree(reason: R) -> None:
    meaning = MEANINGS[reason]
    if meaning.own:  # what is the client's own is nobody else's fault
        assert (meaning.rests, meaning.failure) == ("none", False)
        assert 400 <= meaning.status < 500
    if meaning.rests in ("group", "key"):  # another key is of use exactly then
        assert (meaning.action, meaning.failure) == (Action.NEXT_KEY, False)
    if meaning.failure:
        assert meaning.status >= 500
        assert meaning.action is not Action.STOP


@pytest.mark.parametrize("reason", list(R))
def test_a_client_never_hears_that_its_own_key_or_account_is_at_fault(reason: R) -> None:
    assert MEANINGS[reason].status not in (401, 402, 407)
    assert MEANINGS[reason].own or MEANINGS[reason].status != 403


def test_a_code_that_is_not_openais_names_the_reason() -> None:
    for reason, meaning in MEANINGS.items():
        if meaning.code is not None and meaning.code.startswith("upstream_"):
            assert meaning.code == f"upstream_{reason}"


def test_the_table_can_be_sent_anywhere() -> None:
    rows = msgspec.json.decode(msgspec.json.encode(MEANINGS))
    assert rows["credit"]["rests"] == "group"
