from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from proxy.errors import ConfigError
from proxy.log import RequestLog, request_line, setup, unchanged
from proxy.redact import Redactor
from proxy.types import CallRecord

SECRET = "correct-horse-battery"
_REQUIRED = {
    "request_id": "01JD0000000000000000000000",
    "attempt": 2,
    "is_final": True,
    "timestamp": 1_795_000_000_000,
    "finished_at": 1_795_000_001_234,
    "endpoint": "/v1/chat/completions",
    "provider": "groq",
    "model": "llama-3.1-8b-instant",
    "is_stream": True,
    "status": "success",
    "usage_source": "provider",
    "cost_source": "catalog",
    "privacy_level": "metadata",
}


def record(**known: Any) -> CallRecord:
    empty = {f.name: None for f in msgspec.structs.fields(CallRecord) if f.required}
    return CallRecord(**{**empty, **_REQUIRED, **known})


FULL = {
    "http_status": 200,
    "client_status": 200,
    "key_id": "org-a",
    "total_duration_ms": 812.44,
    "time_to_first_token_ms": 120.06,
    "tokens_per_second": 45.25,
    "input_tokens": 12,
    "output_tokens": 40,
    "cost_nano_usd": 123_000,
}


@pytest.fixture
def restored() -> Iterator[None]:
    names = ("tollkeeper", "uvicorn.error", "asyncio", "alembic", "sqlalchemy")
    before = [(logging.getLogger(n), logging.getLogger(n).level) for n in names]
    yield
    for logger, level in before:
        logger.handlers = []
        logger.setLevel(level)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_readable_line_has_every_figure() -> None:
    assert request_line(record(**FULL), "text") == (
        "2026-11-18T11:06:41.234Z success 200 groq/llama-3.1-8b-instant key=org-a attempts=2 stream"
        " 812.4ms ttft=120.1ms 45.2tok/s in=12 out=40 $0.000123 01JD0000000000000000000000"
    )


def test_readable_line_leaves_out_what_is_unknown() -> None:
    line = request_line(
        record(is_stream=False, status="rejected", error_reason="not_found", client_status=404),
        "text",
    )
    assert line == (
        "2026-11-18T11:06:41.234Z rejected 404 groq/llama-3.1-8b-instant not_found attempts=2"
        " 01JD0000000000000000000000"
    )


def test_json_line_names_columns_and_says_null() -> None:
    line = json.loads(request_line(record(**FULL), "json"))
    assert line["time"] == "2026-11-18T11:06:41.234Z"
    assert line["level"] == "info"
    assert line["attempts"] == 2
    assert line["cost_usd"] == 0.000123
    assert line["client_status"] == 200
    assert line["error_reason"] is None
    empty = json.loads(request_line(record(), "json"))
    assert empty["cost_usd"] is None
    assert empty["key_id"] is None
    assert set(empty) == set(line)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("evil", ["a\r\nb", "\x1b[2J", "a\u2028b", "a\u202eb", "\x9b31m", "\ud800"])
def test_hostile_model_name_stays_inside_its_line(form: str, evil: str) -> None:
    line = request_line(record(model=evil), form)
    assert line.isprintable()
    line.encode()


def test_readable_line_keeps_its_columns_and_its_length() -> None:
    line = request_line(record(model="x success 200 " + "y" * 100_000), "text")
    assert line.split(" ")[4] == "attempts=2"
    assert len(line) < 400


@pytest.mark.parametrize(("form", "first"), [("text", "2"), ("json", "{"), ("auto", "{")])
def test_request_log_writes_final_records_only(form: str, first: str) -> None:
    stream = io.StringIO()
    log = RequestLog("info", form, stream)
    log(record(is_final=False))
    log(record(request_id="01JD000000000000000000000A"))
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().startswith(first)
    assert "01JD000000000000000000000A" in stream.getvalue()


def test_request_log_is_readable_on_a_terminal() -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    RequestLog("DEBUG", "auto", stream)(record())
    assert stream.getvalue().startswith("2026-11-18T")


def test_request_log_is_silent_above_info() -> None:
    stream = io.StringIO()
    RequestLog("warning", "text", stream)(record())
    assert stream.getvalue() == ""


def test_request_log_survives_a_closed_stream() -> None:
    stream = io.StringIO()
    log = RequestLog("info", "text", stream)
    stream.close()
    log(record())


@pytest.mark.usefixtures("restored")
def test_json_messages_are_one_redacted_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    setup("info", "json", Redactor([SECRET]))
    logger = logging.getLogger("tollkeeper.store")
    logger.debug("unheard")
    logger.warning("key %s\r\n\x1b[31m\u2028is wrong", SECRET, extra={"request_id": "01JD"})
    try:
        raise ValueError(f"no {SECRET}\nat all")
    except ValueError:
        logger.exception("broken")
    first, second = (json.loads(line) for line in said(capsys).splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert first["level"] == "warning"
    assert first["logger"] == "tollkeeper.store"
    assert first["message"] == r"key [redacted]\r\n\x1b[31m\u2028is wrong"
    assert first["request_id"] == "01JD"
    assert "exc" not in first
    assert second["message"] == "broken"
    assert second["exc"].startswith("Traceback")
    assert "ValueError: no [redacted]" in second["exc"]


@pytest.mark.usefixtures("restored")
def test_readable_tracebacks_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    setup("info", "text", Redactor([SECRET]))
    try:
        raise ValueError(f"no {SECRET}\n2026-01-01T00:00:00.000Z INFO forged\x1b[0m")
    except ValueError:
        logging.getLogger("tollkeeper").exception("broken", extra={"request_id": "01JD"})
    text = said(capsys)
    assert SECRET not in text
    head, *rest = text.splitlines()
    assert head.endswith("Z ERROR tollkeeper: broken request_id=01JD")
    assert rest
    assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in text


@pytest.mark.usefixtures("restored")
def test_deliberate_cuts_of_a_stream_are_not_reported(capsys: pytest.CaptureFixture[str]) -> None:
    setup("info", "text", Redactor([]))
    logger = logging.getLogger("uvicorn.error")
    logger.error("ASGI callable returned without completing response.")
    logger.error("something else")
    assert [line.split(": ")[1] for line in said(capsys).splitlines()] == ["something else"]


@pytest.mark.usefixtures("restored")
def test_libraries_are_heard_from_warning_on_and_redacted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup("debug", "text", Redactor([SECRET]))
    logging.getLogger("sqlalchemy.engine").info("SELECT 1")
    logging.getLogger("asyncio").error("lost %s", SECRET)
    assert said(capsys).endswith("Z ERROR asyncio: lost [redacted]\n")


@pytest.mark.usefixtures("restored")
def test_second_setup_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    setup("info", "text", Redactor([]))
    setup("ERROR", "text", Redactor([]))
    logging.getLogger("tollkeeper").warning("unheard")
    logging.getLogger("tollkeeper").error("heard")
    assert said(capsys).count("\n") == 1


@pytest.mark.usefixtures("restored")
def test_a_stack_that_was_told_already_is_told_as_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup("info", "json", Redactor([]))
    logging.getLogger("tollkeeper").error("broken", extra={"stack": "File a\x1b\nKeyError"})
    assert json.loads(said(capsys))["exc"] == "File a\\x1b\nKeyError"


def test_what_does_not_hold_is_told_line_by_line(caplog: pytest.LogCaptureFixture) -> None:
    unchanged(ConfigError(["a: no", "b: neither"]))
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"the configuration stays as it was: {each}" for each in ("a: no", "b: neither")
    ]
