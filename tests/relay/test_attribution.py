from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.clients import Client
from proxy.metering.attempt import Attribution
from proxy.redact import Redactor
from proxy.relay.attribution import TOOLS, attribution, completed
from proxy.relay.inbound import parse
from proxy.types import Operation

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SECRET = f"sk-proj-{'aB3_' * 40}"
KEY = Client("ck-1", "ann", 0, tags=("team-a", "eu"))
REDACT = Redactor(())


def read(**headers: str) -> Attribution:
    return attribution(
        [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        redact=REDACT,
    )


def test_every_header_has_its_member() -> None:
    found = read(
        x_request_id="theirs",
        x_agent_name="Researcher",
        x_tool_name="search",
        x_session_id="s-1",
        traceparent=f"00-{TRACE}-00f067aa0ba902b7-01",
        authorization="Bearer sk-1",
    )
    assert found == Attribution("theirs", "Researcher", "search", "s-1", TRACE)


def test_a_key_in_a_header_is_not_written_down() -> None:
    names = ("x_request_id", "x_agent_name", "x_tool_name", "x_session_id")
    found = read(**dict.fromkeys(names, SECRET))
    kept = (found.client_request_id, found.agent_name, found.tool_name, found.session_id)
    assert set(kept) == {"[redacted]"}
    late = read(**dict.fromkeys(names, f"{'u' * 120} {SECRET}"))
    assert late.session_id == late.client_request_id == f"{'u' * 120} [redact"
    ids = ("0f8fad5b-d9cb-469f-a165-70867728950e", TRACE, "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG")
    assert [read(x_request_id=each).client_request_id for each in ids] == [*ids]


@pytest.mark.parametrize(
    ("value", "private"),
    [("metadata", True), ("none", True), ("", True), ("full", False), ("FULL ", False)],
)
def test_whatever_is_not_full_is_private(value: str, private: bool) -> None:
    assert read(x_tollkeeper_privacy=value).private is private


def test_what_a_client_is_willing_to_pay_is_read_as_it_was_sent() -> None:
    assert read(x_max_cost_usd=" 0.01").max_cost == b" 0.01"


@pytest.mark.parametrize(
    ("headers", "user"),
    [
        ({"x_user_id": "ann"}, "ann"),
        ({"x_openwebui_user_id": "web"}, "web"),
        ({"x_openwebui_user_id": "web", "x_user_id": "ann"}, "ann"),
        ({"x_user_id": " ", "x_openwebui_user_id": ""}, None),
        ({"x_user_id": "u" * 500}, "u" * 128),
        ({"x_user_id": SECRET}, "[redacted]"),
        ({"x_user_id": f"{'u' * 120} {SECRET}"}, f"{'u' * 120} [redact"),
    ],
)
def test_the_user_is_whom_a_header_names(headers: dict[str, str], user: str | None) -> None:
    assert read(**headers).user_id == user


def test_the_tags_of_the_key_come_first() -> None:
    many = ",".join(str(number) for number in range(20))
    found = attribution([(b"x-tags", many.encode())], KEY, REDACT).tags
    assert found == ("team-a", "eu", *map(str, range(8)))
    assert attribution([], KEY, REDACT).tags == ("team-a", "eu")
    assert read(x_tags=f"a, {SECRET} ,a").tags == ("a", "[redacted]")


@pytest.mark.parametrize(
    ("told", "user", "labels"),
    [
        ({}, None, ("h",)),
        ({"user": "u-7", "safety_identifier": "s-7"}, "u-7", ("h",)),
        ({"safety_identifier": "s-7"}, "s-7", ("h",)),
        ({"user": 7}, None, ("h",)),
        ({"user": "x" * 500}, "x" * 128, ("h",)),
        ({"user": SECRET}, "[redacted]", ("h",)),
        ({"metadata": {"tags": ["a", "h", 1, "b,c", SECRET]}}, None, (*"habc", "[redacted]")),
        ({"metadata": {"tags": "a, b", "tag": "c"}}, None, (*"hab",)),
        ({"metadata": {"tags": {"a": "b"}}}, None, ("h",)),
        ({"metadata": None}, None, ("h",)),
        ({"metadata": "text"}, None, ("h",)),
        ({"metadata": {"tags": ["a"]}, "messages": "odd"}, None, (*"ha",)),
        ({"metadata": "text", "messages": "odd"}, None, ("h",)),
    ],
)
def test_what_the_body_tells_goes_beside_the_headers(
    told: dict[str, Any], user: str | None, labels: tuple[str, ...]
) -> None:
    inbound = parse(json.dumps({"model": "m", "messages": [], **told}).encode(), Operation.CHAT)
    found = completed(read(x_tags="h", x_agent_name="planner"), inbound, REDACT)
    assert (found.user_id, found.tags, found.agent_name) == (user, labels, "planner")


def test_a_header_beats_the_body() -> None:
    inbound = parse(b'{"model": "m", "user": "u-7"}', Operation.CHAT)
    assert completed(read(x_user_id="ann"), inbound, REDACT).user_id == "ann"


def test_without_headers_nothing_is_known() -> None:
    assert attribution([]) == Attribution()


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"plain", "plain"),
        (b"  spaces  ", "spaces"),
        (b"caf\xc3\xa9", "caf\u00e9"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"a\x00b", "ab"),
        (b"\x00", None),
        (b"   ", None),
        (b"", None),
        (b"x" * 5000, "x" * 128),
        ("\N{TOKYO TOWER}".encode() * 200, "\N{TOKYO TOWER}" * 128),
    ],
)
def test_values_are_text_and_bounded(value: bytes, kept: str | None) -> None:
    assert attribution([(b"x-agent-name", value)]).agent_name == kept


@pytest.mark.parametrize(
    ("agent", "tool"),
    [
        ("claude-cli/2.0.1 (external, cli)", "claude-code"),
        ("codex_cli_rs/0.46.0 (Linux)", "codex"),
        ("Aider/0.86", "aider"),
        ("Cline/3.1", "cline"),
        ("GeminiCLI/0.8 (linux; x64)", "gemini-cli"),
        ("GitHubCopilotChat/0.30", "copilot"),
        ("OpenAI/Python 2.6.1", None),
        ("curl/8.5.0", None),
        ("not-aider/1", None),
    ],
)
def test_coding_tools_are_known_by_their_user_agent(agent: str, tool: str | None) -> None:
    assert read(user_agent=agent).tool_name == tool


@pytest.mark.parametrize(("start", "tool"), TOOLS)
def test_every_known_tool_is_found(start: str, tool: str) -> None:
    assert read(user_agent=f"{start.upper()}/1.0").tool_name == tool


def test_a_name_that_is_said_beats_the_user_agent() -> None:
    assert read(user_agent="aider/1", x_tool_name="mine").tool_name == "mine"


@pytest.mark.parametrize(
    ("value", "trace"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f"cc-{TRACE}-00f067aa0ba902b7-00-more", TRACE),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE[:-1]}-00f067aa0ba902b7-01", None),
        (TRACE, None),
        ("\u00e9", None),
    ],
)
def test_a_trace_is_read_as_w3c_writes_it(value: str, trace: str | None) -> None:
    assert read(traceparent=value).trace_id == trace


def test_a_header_that_comes_twice_adds_its_tags() -> None:
    assert attribution([(b"x-tags", b"a,b"), (b"x-tags", b"c")]).tags == ("a", "b", "c")
    twice = [(b"x-max-cost-usd", b"0.1"), (b"x-max-cost-usd", b"5")]
    assert attribution(twice).max_cost == b"0.1,5"  # which is no price
