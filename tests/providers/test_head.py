from __future__ import annotations

import httpx
import pytest

from proxy.providers.head import (
    MAX_FIELDS,
    MAX_HEAD,
    Malformed,
    check_size,
    ends_with_the_connection,
    serialise,
)


def request(method: str = "POST", *fields: tuple[bytes, bytes]) -> httpx.Request:
    return httpx.Request(
        method, "http://up.test:9/v1/chat?a=b%20c#d", headers=[(b"host", b"up"), *fields]
    )


def test_a_request_is_written_field_by_field() -> None:
    assert serialise(request("POST", (b"X-A", b"b")), b"{}") == (
        b"POST /v1/chat?a=b%20c HTTP/1.1\r\nhost: up\r\nX-A: b\r\ncontent-length: 2\r\n\r\n{}"
    )


def test_only_a_post_has_a_length_without_a_body() -> None:
    assert serialise(request("GET"), b"") == b"GET /v1/chat?a=b%20c HTTP/1.1\r\nhost: up\r\n\r\n"
    assert b"content-length: 0\r\n" in serialise(request("POST"), b"")


def test_a_request_has_one_length_and_it_is_ours() -> None:
    lies = [(b"Content-Length", b"99"), (b"transfer-encoding", b"chunked")]
    written = serialise(request("POST", *lies), b"{}").lower()
    assert written.count(b"content-length") == 1
    assert b"content-length: 2\r\n" in written
    assert b"transfer-encoding" not in written


@pytest.mark.parametrize("evil", [b"\r\nx: y", b"\n", b"\r", b"\0", b"\r\n\r\nGET / HTTP/1.1"])
def test_a_value_that_could_smuggle_is_refused_and_not_told(evil: bytes) -> None:
    with pytest.raises(httpx.LocalProtocolError, match="control character") as caught:
        serialise(request("POST", (b"authorization", b"Bearer sk-secret" + evil)), b"{}")
    assert "authorization" in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_a_name_or_a_method_that_could_smuggle_is_refused() -> None:
    with pytest.raises(httpx.LocalProtocolError, match="the header"):
        serialise(request("POST", (b"x: y\r\nz", b"")), b"")
    with pytest.raises(httpx.LocalProtocolError, match="the request line"):
        serialise(request("GET / HTTP/1.1\r\n\r\nPOST"), b"")


def test_a_body_may_hold_anything() -> None:
    assert serialise(request(), b"\r\n\0\xff").endswith(b"\r\n\r\n\r\n\0\xff")


@pytest.mark.parametrize(
    ("status", "fields", "ends"),
    [
        (200, [], True),
        (200, [(b"content-length", b"2")], False),
        (200, [(b"transfer-encoding", b"chunked")], False),
        (200, [(b"transfer-encoding", b" Chunked ")], False),
        (204, [], False),
        (304, [], False),
        (500, [(b"content-type", b"text/html")], True),
    ],
)
def test_what_tells_where_a_body_ends(
    status: int, fields: list[tuple[bytes, bytes]], ends: bool
) -> None:
    assert ends_with_the_connection(status, fields) is ends


@pytest.mark.parametrize(
    "coding", [b"gzip", b"gzip, chunked", b"chunked, chunked", b"xchunked", b"identity", b""]
)
def test_a_coding_that_we_do_not_undo_is_refused(coding: bytes) -> None:
    with pytest.raises(Malformed, match="transfer coding"):
        ends_with_the_connection(200, [(b"transfer-encoding", coding)])


def test_a_large_body_in_the_same_read_does_not_make_a_head_large() -> None:
    check_size([(b"a", b"b")], 10 * MAX_HEAD)


def test_a_head_that_is_too_large_is_refused() -> None:
    check_size([(b"a", b"b")] * MAX_FIELDS, 1000)
    with pytest.raises(Malformed):
        check_size([(b"a", b"b")] * (MAX_FIELDS + 1), 1000)
    with pytest.raises(Malformed):
        check_size([(b"a", b"b" * MAX_HEAD)], MAX_HEAD + 5)
