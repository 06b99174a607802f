"""The head of an answer and its body travel together, and nothing is held for long."""

from __future__ import annotations

import asyncio
from typing import Any

from proxy.wire import OneWrite

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Socket:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> str:
        return name


def wire() -> tuple[Any, Socket]:
    socket: Any = Socket()
    return OneWrite(socket, asyncio.get_running_loop()), socket


async def test_head_and_body_are_one_write() -> None:
    one, socket = wire()
    one.write(HEAD)
    one.write(b"body")
    one.write(b"more")
    await asyncio.sleep(0)
    assert socket.written == [HEAD + b"body", b"more"]


async def test_a_head_alone_goes_out_with_the_next_turn() -> None:
    one, socket = wire()
    one.write(HEAD)
    assert socket.written == []
    await asyncio.sleep(0)
    assert socket.written == [HEAD]
    one.write(b"late")
    assert socket.written == [HEAD, b"late"]


async def test_closing_loses_nothing() -> None:
    one, socket = wire()
    one.write(HEAD)
    one.close()
    assert (socket.written, socket.closed, one.is_closing()) == ([HEAD], True, True)


async def test_an_interim_answer_is_not_held() -> None:
    one, socket = wire()
    one.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert socket.written == [b"HTTP/1.1 100 Continue\r\n\r\n"]


async def test_everything_else_is_the_transports() -> None:
    one, _ = wire()
    assert one.get_extra_info("peername") == "peername"
