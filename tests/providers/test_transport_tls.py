"""The upstream client over TLS: whom it trusts, and that TLS changes nothing else."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from proxy.providers.transport import Transport, tls_context
from tests.providers.sockets import (
    CHUNKED,
    OK,
    Peer,
    always,
    body_of,
    fetch,
    listening,
    post,
    rest,
    until,
)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, its key in the same file."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=up.test", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run([program, *command.split(), *names, *files], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes(b"".join((folder / f"{n}.pem").read_bytes() for n in ("certificate", "key")))
    return both


@pytest.fixture
def server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest_asyncio.fixture
async def client(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Transport]:
    """A client that trusts the certificate because the environment names it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    transport = Transport()
    yield transport
    await transport.aclose()
    await until(lambda: not transport._open)


async def test_a_certificate_that_the_environment_trusts_is_trusted_and_the_connection_kept(
    client: Transport, server_side: ssl.SSLContext
) -> None:
    async with listening(always(OK), server_side) as server:
        for _ in range(3):
            assert await fetch(client, post(server.url)) == b"ok"
        (peer,) = server.peers
        assert peer.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"


async def test_an_unknown_authority_is_not_trusted(server_side: ssl.SSLContext) -> None:
    client = Transport()
    async with listening(always(OK), server_side) as server:
        with pytest.raises(httpx.ConnectError, match="self-signed certificate"):
            await fetch(client, post(server.url))
        assert server.requests == []
    assert not client._open


async def test_a_certificate_for_another_name_is_refused(
    client: Transport, server_side: ssl.SSLContext
) -> None:
    async with listening(always(OK), server_side) as server:
        with pytest.raises(httpx.ConnectError, match="Hostname mismatch"):
            await fetch(client, post(server.url.replace("127.0.0.1", "localhost")))
        assert server.requests == []
    assert not client._open


def test_certificates_and_names_are_checked() -> None:
    context = tls_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_where_the_platform_trusts_nobody_certifi_says_whom(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "nowhere"))
    assert tls_context().cert_store_stats()["x509_ca"] > 20


async def test_a_server_without_tls(client: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read(100)
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        peer.close()

    async with listening(script) as server:
        with pytest.raises(httpx.ConnectError, match="cannot connect"):
            await fetch(client, post(server.url.replace("http:", "https:")))
    assert not client._open


async def test_a_handshake_that_never_ends(client: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.gone()

    async with listening(script) as server:
        with pytest.raises(httpx.ConnectTimeout):
            await fetch(client, post(server.url.replace("http:", "https:"), connect=0.03))
        await until(lambda: server.peers[0].left)


async def test_cancelled_while_shaking_hands(client: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.gone()

    async with listening(script) as server:
        url = server.url.replace("http:", "https:")
        task = asyncio.ensure_future(fetch(client, post(url)))
        await until(lambda: server.peers)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.peers[0].left)


async def test_a_handshake_that_is_cut_off(client: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read(100)
        peer.reset()

    async with listening(script) as server:
        with pytest.raises(httpx.ConnectError):
            await fetch(client, post(server.url.replace("http:", "https:")))
        assert len(server.peers) == 1


async def test_leaving_a_stream_closes_its_connection(
    client: Transport, server_side: ssl.SSLContext
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED, b"2\r\nhi\r\n")
        await peer.gone()

    async with listening(script, server_side) as server:
        response = await client.handle_async_request(post(server.url))
        assert await anext(aiter(body_of(response))) == b"hi"
        await response.aclose()
        await until(lambda: server.peers[0].left)
        assert not client._open


@pytest.mark.parametrize("way", ["close", "reset"])
async def test_a_stream_that_is_cut_off_is_an_error(
    client: Transport, server_side: ssl.SSLContext, way: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED, b"2\r\nhi\r\n")
        await until(lambda: received)
        getattr(peer, way)()

    received: list[bytes] = []
    async with listening(script, server_side) as server:
        response = await client.handle_async_request(post(server.url))
        chunks = aiter(body_of(response))
        received.append(await anext(chunks))
        with pytest.raises(httpx.RemoteProtocolError, match="cut"):
            await anext(chunks)


async def test_a_large_answer_waits_for_its_reader(
    client: Transport, server_side: ssl.SSLContext
) -> None:
    size = 16 * 1024 * 1024

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(256):
            await peer.send(b"x" * 65_536)
        await peer.gone()

    async with listening(script, server_side) as server:
        response = await client.handle_async_request(post(server.url))
        before = -1
        while before <= 0 or before != body_of(response)._size:
            before = body_of(response)._size
            await asyncio.sleep(0.02)
        assert before <= 768 * 1024
        assert sum(map(len, await rest(response))) == size
