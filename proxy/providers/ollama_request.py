"""Requests in OpenAI's words as Ollama's own paths take them: https://docs.ollama.com/api.

Each function takes the members of a body and gives those of Ollama's, or raises Untranslatable.
What Ollama has no word for (``n``, ``logit_bias``, ``user`` and the like) is left out, as by its
OpenAI paths. What only Ollama knows passes: ``options``, ``keep_alive``, ``think``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.providers.faults import mappings
from proxy.providers.members import inner
from proxy.providers.translation import Untranslatable

Members = Mapping[str, Any]

_OPTIONS = (
    *("temperature", "top_p", "top_k", "seed"),
    *("frequency_penalty", "presence_penalty"),
)
_PASSED = ("model", "keep_alive", "think")
_EFFORTS = {"none": False, "minimal": "low", "xhigh": "high"}
_ROLES = {"developer": "system", "function": "tool"}
_BASE64 = ";base64,"


def chat(members: Members) -> dict[str, Any]:
    """``/v1/chat/completions`` for ``/api/chat``."""
    question = _question(members)
    question["messages"] = _messages(members.get("messages"))
    if members.get("tools") and members.get("tool_choice") != "none":
        question["tools"] = members["tools"]
    if members.get("logprobs") is True:
        question |= _given(members, "logprobs", "top_logprobs")
    return question


def generate(members: Members) -> dict[str, Any]:
    """``/v1/completions`` for ``/api/generate``."""
    prompt = members.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        [prompt] = prompt
    if not isinstance(prompt, str):
        raise Untranslatable("'prompt' must be one text: Ollama takes neither several nor tokens.")
    return {**_question(members), "prompt": prompt, **_given(members, "suffix")}


def embed(members: Members) -> dict[str, Any]:
    """``/v1/embeddings`` for ``/api/embed``."""
    return _given(members, "model", "input", "dimensions", "keep_alive", "options")


def _question(members: Members) -> dict[str, Any]:
    """What chat and text have in common."""
    question = _given(members, *_PASSED)
    effort = members.get("reasoning_effort") or inner(members, "reasoning").get("effort")
    if "think" not in question and isinstance(effort, str):
        question["think"] = _EFFORTS.get(effort, effort)
    shape = _format(inner(members, "response_format"))
    if shape is not None:
        question["format"] = shape
    options = _options(members)
    if options:
        question["options"] = options
    return question


def _options(members: Members) -> dict[str, Any]:
    options = _given(members, *_OPTIONS)
    for name in ("max_tokens", "max_completion_tokens"):
        if members.get(name) is not None:
            options["num_predict"] = members[name]
    stop = members.get("stop")
    if stop is not None:
        options["stop"] = [stop] if isinstance(stop, str) else stop
    return {**options, **inner(members, "options")}


def _given(members: Members, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := members.get(name)) is not None}


def _format(wanted: Members) -> Any:
    if wanted.get("type") == "json_object":
        return "json"
    if wanted.get("type") == "json_schema":
        return inner(wanted, "json_schema").get("schema", "json")
    return None


def _messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list):
        raise Untranslatable("'messages' must be a list.")
    called: dict[str, Any] = {}  # the name of each call: a tool's answer has its id alone
    told = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise Untranslatable("Each of the 'messages' must be an object.")
        role = str(message.get("role"))
        text, images = _content(message.get("content"))
        one: dict[str, Any] = {"role": _ROLES.get(role, role), "content": text}
        if images:
            one["images"] = images
        thought = message.get("reasoning") or message.get("reasoning_content")
        if isinstance(thought, str):
            one["thinking"] = thought
        calls = mappings(message.get("tool_calls"))
        if calls:
            one["tool_calls"] = [_call(call) for call in calls]
            called |= {str(call.get("id")): inner(call, "function").get("name") for call in calls}
        if one["role"] == "tool":
            name = message.get("name") or called.get(str(message.get("tool_call_id")))
            one |= _given(message, "tool_call_id") | _given({"tool_name": name}, "tool_name")
        told.append(one)
    return told


def _content(content: Any) -> tuple[str, list[str]]:
    """The text and the images of a message."""
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list):
        raise Untranslatable("The 'content' of a message must be a text or a list of parts.")
    texts, images = [], []
    for part in mappings(content):
        match part.get("type"):
            case "text":
                texts.append(str(part.get("text") or ""))
            case "image_url":
                images.append(_image(part.get("image_url")))
            case _:
                raise Untranslatable("Ollama takes texts and images, and no other part.")
    return "\n".join(texts), images


def _image(image: Any) -> str:
    """The base64 of an image."""
    url = image.get("url") if isinstance(image, Mapping) else image
    if not isinstance(url, str) or not url.startswith("data:") or _BASE64 not in url:
        raise Untranslatable("Ollama takes images as data: URLs in base64, and fetches none.")
    return url.partition(_BASE64)[2]


def _call(call: Members) -> dict[str, Any]:
    """A call that the model made earlier; Ollama wants its arguments as an object."""
    function = inner(call, "function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, Mapping):
        raise Untranslatable("The 'arguments' of a tool call must be a JSON object.")
    told = {"function": {"name": function.get("name"), "arguments": arguments}}
    return {**_given(call, "id"), **told}
