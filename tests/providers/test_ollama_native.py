"""How a call is put into Ollama's words; what the words are, stands in the tests of both halves."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.errors import ErrorReason as R
from proxy.providers import OLLAMA_NATIVE
from proxy.providers.base import Provider
from proxy.providers.translation import Translation, Untranslatable
from proxy.types import Operation
from tests.metering.streams import watch
from tests.providers import test_ollama
from tests.providers.cases import NOW, Case, name_of
from tests.transcripts import body

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def translated(operation: Operation, stream: bool, **members: Any) -> tuple[Any, Translation]:
    """What Ollama is asked, and the translation of its answer."""
    question, answer = OLLAMA_NATIVE.translate(operation, json.dumps(members).encode(), stream)
    assert answer is not None
    return json.loads(question), answer


def test_each_operation_has_a_path_of_its_own() -> None:
    provider = Provider.of("desk", OLLAMA_NATIVE, base_url="http://127.0.0.1:11434/v1")
    assert provider.base_url == "http://127.0.0.1:11434/v1"  # its list of models stays there
    assert {each: provider.url(each).path for each in Operation} == {
        Operation.CHAT: "/api/chat",
        Operation.COMPLETION: "/api/generate",
        Operation.EMBEDDINGS: "/api/embed",
    }


@pytest.mark.parametrize("stream", [True, False])
def test_whether_to_stream_is_always_said(stream: bool) -> None:
    question, answer = translated(Operation.CHAT, stream, **CHAT)
    assert question == {**CHAT, "stream": stream}
    kind = b"text/event-stream" if stream else b"application/json"
    assert answer.content_type == kind
    question, answer = translated(Operation.COMPLETION, stream, model="m", prompt="a")
    assert question == {"model": "m", "prompt": "a", "stream": stream}
    assert answer.content_type == kind


@pytest.mark.parametrize(("wanted", "vector"), [(None, [0.0]), ("base64", "AAAAAA==")])
def test_embeddings_are_one_document_in_the_format_that_was_asked_for(
    wanted: str | None, vector: Any
) -> None:
    asked = {"model": "m", "input": "a", "encoding_format": wanted}
    question, answer = translated(Operation.EMBEDDINGS, True, **asked)
    assert question == {"model": "m", "input": "a"}
    assert answer.feed(b'{"embeddings":[[0.0]]}') == b""
    assert json.loads(answer.finish())["data"][0]["embedding"] == vector


@pytest.mark.parametrize(
    "body", [b'{"messages": [' + b"[" * 5000, b'{"messages":[], "seed": 1e999}']
)
def test_a_body_that_cannot_be_read_is_the_clients_matter(body: bytes) -> None:
    with pytest.raises(Untranslatable):
        OLLAMA_NATIVE.translate(Operation.CHAT, body, False)


def test_the_meter_reads_the_translation() -> None:
    _, answer = translated(Operation.CHAT, True, **CHAT)
    tap, _ = watch(answer.feed(body("T23.thinking")), answer.finish())
    assert (tap.done, tap.finish_reason, tap.chunk_count) == (True, "stop", 4)
    assert tap.usage is not None
    usage = OLLAMA_NATIVE.usage(tap.usage)
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (11, 4, 15)


def test_a_prompt_that_was_not_counted_is_unknown() -> None:
    counts = {"prompt_tokens": 0, "completion_tokens": 4, "total_tokens": 4}
    usage = OLLAMA_NATIVE.usage(counts)
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (None, 4, None)


@pytest.mark.parametrize("case", test_ollama.CASES, ids=name_of)
def test_its_refusals_are_those_of_any_ollama(case: Case) -> None:
    text = json.loads(case.body)["error"]
    message = text["message"] if isinstance(text, dict) else text
    headers = [(name.encode(), value.encode()) for name, value in case.headers.items()]
    own = json.dumps({"error": message}).encode()
    assert OLLAMA_NATIVE.classify(case.status, headers, own, NOW).reason is case.reason


def test_an_error_inside_a_stream_is_a_broken_stream() -> None:
    _, answer = translated(Operation.CHAT, True, **CHAT)
    tap, _ = watch(answer.feed(body("T23.error")))
    fault = OLLAMA_NATIVE.classify_event(tap.error, NOW)
    assert (fault.reason, fault.executed) == (R.STREAM_ERROR, True)
    assert fault.message.endswith("CUDA error")
