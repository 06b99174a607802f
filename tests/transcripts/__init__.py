"""What providers really send, as bytes: one file a stream (.sse), body (.json) or native answer.

T1 Groq stream, usage three times          T12 OpenRouter error chunk with usage, then [DONE]
T2 Groq stream, error event                T13 OpenRouter error bodies: .daily .upstream
T3 Groq 429, tokens a day                      .capacity .key .credit .inside (a 200)
T4 Groq 413, too large for a minute        T14 Ollama stream with usage
T5 Groq .key .model .context .capacity     T15 Ollama runner dies: no finish, no [DONE]
T6 Gemini stream, hidden thoughts          T16 Ollama .native .model .busy .models (null list)
T7 Gemini tool call without index          T17 Cloudflare stream, zero usage last
T8 Gemini 429, requests a day              T18 Cloudflare .key .daily .capacity .input
T9 Gemini .key .field .overloaded          T19 OpenAI stream, null usage, obfuscation
T10 OpenRouter stream, comments, cost      T20 llama.cpp stream with timings; .error (a stream)
T11 OpenRouter error chunk, no [DONE]      T21 .vllm_key .vllm_context .llama_context .fastapi
T22 T10 under framing torture: ``tortured()``
T23 Ollama's own stream .text .thinking .tools .error .cut
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def stream(name: str) -> bytes:
    """The bytes of a 200 with ``text/event-stream``: ``stream("T1")``."""
    return (_HERE / f"{name}.sse").read_bytes()


def body(name: str) -> bytes:
    """The bytes of a JSON (or NDJSON) body: ``body("T5.key")``."""
    (found,) = (path for kind in ("json", "ndjson") if (path := _HERE / f"{name}.{kind}").exists())
    return found.read_bytes()


def data(name: str) -> list[bytes]:
    """The ``data:`` payloads of a stream, ``[DONE]`` among them."""
    return [line[6:] for line in stream(name).splitlines() if line.startswith(b"data: ")]


def tortured() -> dict[str, list[bytes]]:
    """T22: the same events as T10 in every framing that the standard allows, as lists of reads.

    "cut" ends inside an event, "unfinished" lacks the last blank line; "emoji" and "long" change
    the text (a four-byte character split over reads; a line of a mebibyte).
    """
    plain = stream("T10")
    emoji = plain.replace(b"Paris", "Paris \N{TOKYO TOWER}".encode())
    inside = emoji.index("\N{TOKYO TOWER}".encode()) + 2
    secret = b'"reasoning_details":[{"type":"reasoning.encrypted","data":"' + b"A" * 2**20 + b'"}],'
    return {
        "bytewise": [plain[i : i + 1] for i in range(len(plain))],
        "crlf": [plain.replace(b"\n", b"\r\n")],
        "crlf bytewise": [bytes([byte]) for byte in plain.replace(b"\n", b"\r\n")],
        "cr": [plain.replace(b"\n", b"\r")],
        "bom": [b"\xef\xbb\xbf" + plain],
        "no space": [plain.replace(b"data: ", b"data:")],
        "two data lines": [plain.replace(b',"object"', b',\ndata: "object"')],
        "emoji": [emoji[:inside], emoji[inside:]],
        "unfinished": [plain.removesuffix(b"\n")],
        "long": [plain.replace(b'"delta":{', b'"delta":{' + secret, 1)],
        "cut": [plain[: plain.rindex(b'"usage"') + 30]],
    }
