"""What a value in the configuration may be: durations, sizes, names, addresses and secrets."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]i?)?B?", re.ASCII | re.IGNORECASE)
LONGEST_DRAIN = 600.0
"""Seconds that an answer is read on at most for a client that has left."""
_PASSWORD = re.compile(r"://[^/?#]*?:([^/?#]+)@|[?&]password=([^&#]+)")
_BYTES = {"k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


def _seconds(value: Any) -> Any:
    """``8s``, ``500ms``, ``2m``, or a number of seconds."""
    if isinstance(value, str):
        if match := _DURATION.fullmatch(value.strip()):
            return float(match[1]) * _SECONDS[match[2] or "s"]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise ValueError("must be a duration such as 8s, 500ms or 2m, or a number of seconds")


def _drain(value: Any) -> float:
    """``cancel``, ``drain`` or ``drain_for 5s``, as the seconds that are meant."""
    if isinstance(value, str):
        mode, _, span = value.strip().lower().replace(":", " ", 1).partition(" ")
        value = mode if not span.strip() else {mode: span}
    match value:
        case "cancel":
            return 0.0
        case "drain":
            return LONGEST_DRAIN
        case {"drain_for": span, **others} if not others:
            seconds = float(_seconds(span))
            if 0 <= seconds <= LONGEST_DRAIN:
                return seconds
            raise ValueError("drain_for must be between 0s and 10m")
    raise ValueError("must be cancel, drain, or drain_for and a duration such as drain_for 5s")


def _bytes(value: Any) -> Any:
    """``20MiB``, ``500kB``, or a number of bytes."""
    if isinstance(value, str):
        if match := _SIZE.fullmatch(value.strip()):
            return int(float(match[1]) * _BYTES.get((match[2] or "").lower(), 1))
    elif isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("must be a size such as 20MiB or 500kB, or a number of bytes")


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic would take true for 1
        raise ValueError("must be a number")
    return value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _secret(value: SecretStr) -> SecretStr:
    """Without the blanks and line ends that slip in by copying; "" stays for unset."""
    text = value.get_secret_value().strip()
    if re.search(r"[^\x21-\x7e]", text):
        raise ValueError("holds a blank or a character that no HTTP header can carry")
    return SecretStr(text)


def _web_address(value: str) -> str:
    """A base address without the slash at its end."""
    try:
        parts = urlsplit(value.strip())
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        whole = False
    if not whole or re.search(r"[^\x21-\x7e]", value.strip()):
        raise ValueError("must be an address such as http://127.0.0.1:9000/v1")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must hold neither a user nor a query; a secret belongs into keys")
    return value.strip().rstrip("/")


def _redis(value: str) -> str:
    """An address of Redis or Valkey; "" stays for unset."""
    try:
        parts = urlsplit(value)
        whole = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        whole = False
    if value and not whole:
        raise ValueError("must be an address such as redis://:PASSWORD@127.0.0.1:6379/0")
    return value


def passwords(address: str) -> list[str]:
    """The passwords that stand in an address, where its user or its query may hold one."""
    return [unquote(user or query) for user, query in _PASSWORD.findall(address)]


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", value):
        raise ValueError("must be at most 64 letters, digits and . _ @ -, no mark first")
    return value


def _provider_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", value):
        raise ValueError("must be named in at most 64 small letters, digits, _ and -")
    return value


def _account(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", value):
        raise ValueError("must be letters, digits, _ and -")
    return value


def target(value: str) -> str:
    """A target by its name; ValueError if it is none."""
    provider, slash, model = value.partition("/")
    if not (provider and slash and model):
        raise ValueError("must be PROVIDER/MODEL")
    return value


_Duration = Annotated[float, BeforeValidator(_seconds), Field(allow_inf_nan=False, le=86_400)]
Seconds = Annotated[_Duration, Field(ge=0)]
Positive = Annotated[_Duration, Field(gt=0)]
Drain = Annotated[float, BeforeValidator(_drain)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]
Whole = Annotated[int, BeforeValidator(_number)]
Weight = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
Name = Annotated[str, AfterValidator(_name)]
ProviderName = Annotated[str, AfterValidator(_provider_name)]
AccountId = Annotated[str, AfterValidator(_account)]
WebAddress = Annotated[str, AfterValidator(_web_address)]
RedisAddress = Annotated[str, AfterValidator(_redis)]
TargetName = Annotated[str, AfterValidator(target)]
Lower = BeforeValidator(_lower)
Usd = Annotated[Decimal, BeforeValidator(_number), Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class Part(BaseModel):
    """A section of the configuration. A section without content is one with its defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, data: Any) -> Any:
        return {} if data is None else data
