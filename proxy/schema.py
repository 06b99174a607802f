"""What may be configured: every setting, its default, its unit and what it may hold."""

from __future__ import annotations

import ipaddress
import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

ProviderType = Literal["groq", "gemini", "openrouter", "ollama", "cloudflare", "openai", "demo"]

KNOWN = ("groq", "gemini", "openrouter", "ollama", "cloudflare", "demo")
"""Providers known by name: their type need not be written."""

NEEDS_KEYS = ("groq", "gemini", "openrouter", "cloudflare")
"""Types that serve nobody without a key."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]i?)?B?", re.ASCII | re.IGNORECASE)
_BYTES = {"k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}
_DATABASES = ("sqlite+aiosqlite://", "postgresql+asyncpg://")


def _seconds(value: Any) -> Any:
    """``8s``, ``500ms``, ``2m``, or a number of seconds."""
    if isinstance(value, str):
        if match := _DURATION.fullmatch(value.strip()):
            return float(match[1]) * _SECONDS[match[2] or "s"]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise ValueError("must be a duration such as 8s, 500ms or 2m, or a number of seconds")


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


def _target(value: str) -> str:
    provider, slash, model = value.partition("/")
    if not (provider and slash and model):
        raise ValueError("must be PROVIDER/MODEL")
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(allow_inf_nan=False, le=86_400)]
Positive = Annotated[Seconds, Field(gt=0)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
Name = Annotated[str, AfterValidator(_name)]
ProviderName = Annotated[str, AfterValidator(_provider_name)]
Usd = Annotated[Decimal, BeforeValidator(_number), Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class _Part(BaseModel):
    """A section of the configuration. A section without content is one with its defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, data: Any) -> Any:
        return {} if data is None else data


class ServerSettings(_Part):
    """Where and how the gateway listens. Durations in seconds, sizes in bytes."""

    host: str = Field("127.0.0.1", min_length=1)
    port: Annotated[int, BeforeValidator(_number)] = Field(8000, ge=0, le=65535)
    workers: Annotated[int, BeforeValidator(_number)] = Field(1, ge=1)
    max_body: Bytes = 20 * 1024 * 1024
    drain: Seconds = 8.0
    """How long calls in flight may go on once the gateway is told to stop."""
    body_timeout: Positive = 30.0
    """A request whose body has not arrived by then is answered with 408."""
    peek: Seconds = 2.0
    """How long the head of a stream is held back for its first meaningful event."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = (
        "info"
    )
    log_format: Annotated[Literal["auto", "json", "text"], BeforeValidator(_lower)] = "auto"
    """``auto`` is text on a terminal and JSON elsewhere."""

    @field_validator("workers")
    @classmethod
    def _one_worker(cls, value: int) -> int:
        if value > 1:
            raise ValueError("more than one worker comes with a later version; accepted: 1")
        return value


class AuthSettings(_Part):
    """Who may come in. With neither member the gateway is open, and only on loopback."""

    master_key: Secret | None = None
    master_key_file: Path | None = None
    """Holds the key; made at the first start if it does not exist."""

    @field_validator("master_key")
    @classmethod
    def _unset(cls, value: SecretStr | None) -> SecretStr | None:
        return value or None

    @field_validator("master_key_file", mode="before")
    @classmethod
    def _no_file(cls, value: Any) -> Any:
        return None if value == "" else value


class KeySettings(_Part):
    """One key of a provider. Keys of one ``quota_group`` share what the provider lets them use."""

    name: Name = ""
    value: Secret
    quota_group: str = Field("", min_length=1)
    weight: Annotated[float, BeforeValidator(_number)] = Field(1.0, gt=0, allow_inf_nan=False)


class TimeoutSettings(_Part):
    """Seconds to wait for an upstream. ``first_byte`` None: what suits the type of provider."""

    connect: Positive = 5.0
    first_byte: Positive | None = None
    idle: Positive = 120.0


class ProviderSettings(_Part):
    """One upstream. ``base_url`` None: the one that the type is known by."""

    type: Annotated[ProviderType, BeforeValidator(_lower)]
    base_url: Annotated[str, AfterValidator(_web_address)] | None = None
    account_id: Annotated[str, AfterValidator(_account)] | None = None
    keys: list[KeySettings] = []
    timeouts: TimeoutSettings = TimeoutSettings()
    include_usage: bool | None = None
    """Whether to ask for usage at the end of streams; None: as the type of provider needs."""

    @field_validator("keys", mode="before")
    @classmethod
    def _named(cls, keys: Any) -> Any:
        """A key without a name is called by its place; its quota group is named after itself."""
        if not isinstance(keys, list):
            return keys
        named = []
        for place, key in enumerate(keys, 1):
            if isinstance(key, dict):
                name = key.get("name", f"key-{place}")
                key = {"quota_group": name, **key, "name": name}
            named.append(key)
        return named

    @field_validator("keys")
    @classmethod
    def _distinct(cls, keys: list[KeySettings]) -> list[KeySettings]:
        names = [key.name for key in keys]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"each key needs a name of its own (twice: {', '.join(twice)})")
        return keys

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {
            "base_url": self.type == "openai" and not self.base_url,
            "account_id": self.type == "cloudflare" and not (self.account_id or self.base_url),
            "keys": self.type in NEEDS_KEYS and "keys" not in self.model_fields_set,
        }
        if missing := [name for name, lacks in needed.items() if lacks]:
            raise ValueError(f"type {self.type} needs {' and '.join(missing)}")
        return self


class Alias(_Part):
    """A name for a list of ``provider/model``, tried in order."""

    targets: list[Annotated[str, AfterValidator(_target)]] = Field(min_length=1)
    strategy: Literal["fallback"] = "fallback"
    rewrite_model: bool = False


class Price(_Part):
    """US dollars per million tokens. A cached token costs what input costs if nothing is said."""

    input: Usd
    output: Usd
    cached_input: Usd | None = None
    cache_write: Usd | None = None


class TelemetrySettings(_Part):
    """What is kept, where, and for how many days (0: for ever)."""

    enabled: bool = True
    database_url: str = Field("sqlite+aiosqlite:///./data/tollkeeper.db", repr=False)
    privacy_level: Literal["metadata", "full", "none"] = "metadata"
    retention_days: Annotated[int, BeforeValidator(_number)] = Field(30, ge=0)

    @property
    def keeps(self) -> bool:
        """Whether anything is written to the database at all."""
        return self.enabled and self.privacy_level != "none"

    @field_validator("database_url")
    @classmethod
    def _async_driver(cls, value: str) -> str:
        if not value.startswith(_DATABASES):
            raise ValueError(f"must start with {' or '.join(_DATABASES)}")
        return value

    @field_validator("privacy_level")
    @classmethod
    def _not_yet(cls, value: str) -> str:
        if value == "full":
            raise ValueError("full comes with a later version; accepted: metadata, none")
        return value


class Settings(BaseSettings):
    """The whole configuration, checked and frozen. ``proxy.config.load`` makes it."""

    model_config = SettingsConfigDict(
        env_prefix="TOLLKEEPER_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    server: ServerSettings = ServerSettings()
    auth: AuthSettings = AuthSettings()
    providers: dict[ProviderName, ProviderSettings] = {}
    models: dict[Annotated[str, Field(min_length=1)], Alias] = {}
    prices: dict[str, Price] = {}
    telemetry: TelemetrySettings = TelemetrySettings()

    _file: Path | None = PrivateAttr(None)
    _warnings: tuple[str, ...] = PrivateAttr(())

    @property
    def file(self) -> Path | None:
        """The file that was read. None: there is none, so a local Ollama may be looked for."""
        return self._file

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was left out, and why: one line each."""
        return self._warnings

    def secrets(self) -> list[str]:
        """Every secret that is configured, for whoever keeps them out of texts."""
        found = [self.auth.master_key] if self.auth.master_key else []
        found += [key.value for provider in self.providers.values() for key in provider.keys]
        texts = [secret.get_secret_value() for secret in found]
        password = urlsplit(self.telemetry.database_url).password
        return [*texts, unquote(password)] if password else texts

    def read_from(self, file: Path | None, warnings: list[str]) -> Self:
        """The same settings, knowing where they come from."""
        known = self.model_copy()
        known._file, known._warnings = file, tuple(warnings)
        return known

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *others: PydanticBaseSettingsSource,
        **more: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Nothing by itself: ``load`` lays the sources over each other and knows who said what."""
        return (init_settings,)

    @model_validator(mode="before")
    @classmethod
    def _known_by_name(cls, data: Any) -> Any:
        sections = {name: {} if value is None else value for name, value in data.items()}
        providers = sections.get("providers")
        if isinstance(providers, dict):
            sections["providers"] = {
                name: _typed(name, provider) for name, provider in providers.items()
            }
        return sections

    @field_validator("prices")
    @classmethod
    def _qualified(cls, prices: dict[str, Price]) -> dict[str, Price]:
        if wrong := [name for name in prices if not all(name.partition("/"))]:
            raise ValueError(f"must be named PROVIDER/MODEL (not so: {', '.join(wrong)})")
        return prices


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``: localhost, 127.0.0.0/8 or ::1."""
    name = host.removeprefix("[").removesuffix("]").rstrip(".").lower()
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback


def _typed(name: Any, provider: Any) -> Any:
    """A provider's data with the type that its name implies."""
    if name in KNOWN and (provider is None or isinstance(provider, dict)):
        return {"type": name, **(provider or {})}
    return provider
