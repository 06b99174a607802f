"""Ollama by its own paths, which tell what its OpenAI paths do not: durations, and cold starts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import msgspec

from proxy.providers.ollama import Ollama, native
from proxy.providers.ollama_answer import (
    AnswerBody,
    AnswerStream,
    completion,
    embeddings,
    text_completion,
)
from proxy.providers.ollama_request import chat, embed, generate
from proxy.providers.translation import Translation, Untranslatable
from proxy.providers.usage import count
from proxy.types import Operation, Usage

_PATHS = {
    Operation.CHAT: "/chat",
    Operation.COMPLETION: "/generate",
    Operation.EMBEDDINGS: "/embed",
}


class OllamaNative(Ollama):
    """The same server, asked by ``/api/chat``, ``/api/generate`` and ``/api/embed``."""

    mends_tool_indices: ClassVar[bool] = False

    def url(self, base_url: str, operation: Operation) -> str:
        """Its own path for an operation."""
        return native(base_url) + _PATHS[operation]

    def translate(
        self, operation: Operation, body: bytes, stream: bool
    ) -> tuple[bytes, Translation | None]:
        """Everything is put into its own words, and back."""
        try:
            members = msgspec.json.decode(body)
            question, answer = _translate(operation, members, stream)
            return msgspec.json.encode(question), answer
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Untranslatable(f"The body cannot be put into Ollama's words: {error}") from None

    def usage(self, raw: Mapping[str, Any]) -> Usage:
        """A prompt has tokens: where it tells of none, it has not counted them."""
        usage = count(raw)
        if usage.input_tokens:
            return usage
        return msgspec.structs.replace(usage, input_tokens=None, total_tokens=None)


def _translate(
    operation: Operation, members: Mapping[str, Any], stream: bool
) -> tuple[dict[str, Any], Translation]:
    if operation is Operation.EMBEDDINGS:
        packed = members.get("encoding_format") == "base64"
        return embed(members), AnswerBody(partial(embeddings, packed=packed))
    is_chat = operation is Operation.CHAT
    question = chat(members) if is_chat else generate(members)
    question["stream"] = stream  # Ollama streams unless it is told not to
    if stream:
        return question, AnswerStream(is_chat)
    return question, AnswerBody(completion if is_chat else text_completion)
