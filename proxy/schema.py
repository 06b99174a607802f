"""What may be configured: every setting, its default, its unit and what it may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from proxy.budgeting import Budgets
from proxy.content import MAX_BYTES
from proxy.fields import (
    AccountId,
    Bytes,
    Drain,
    Lower,
    Name,
    Part,
    Positive,
    ProviderName,
    RedisAddress,
    Seconds,
    Secret,
    Share,
    TargetName,
    Usd,
    WebAddress,
    Weight,
    Whole,
    passwords,
    target,
)
from proxy.limiting import Limits

ProviderType = Literal["groq", "gemini", "openrouter", "ollama", "cloudflare", "openai", "demo"]

KNOWN = ("groq", "gemini", "openrouter", "ollama", "cloudflare", "demo")
"""Providers known by name: their type need not be written."""

KeyStrategy = Literal[
    "fallback", "weighted", "round_robin", "least_busy", "lowest_latency", "sticky"
]
"""Which key of a provider is taken."""

Strategy = Literal[
    "fallback", "weighted", "round_robin", "least_busy", "lowest_latency", "lowest_cost", "sticky"
]
"""How the targets of an alias are ordered."""

NEEDS_KEYS = ("groq", "gemini", "openrouter", "cloudflare")
"""Types that serve nobody without a key."""

_DATABASES = ("sqlite+aiosqlite://", "postgresql+asyncpg://")


class ServerSettings(Part):
    """Where and how the gateway listens. Durations in seconds, sizes in bytes."""

    host: str = Field("127.0.0.1", min_length=1)
    port: Whole = Field(8000, ge=0, le=65535)
    workers: Whole = Field(1, ge=1)
    max_body: Bytes = 20 * 1024 * 1024
    drain: Seconds = 8.0
    """How long calls in flight may go on once the gateway is told to stop."""
    on_disconnect: Drain = 3.0
    """How long an answer is read on, to its usage, once its client has left; 0: not at all."""
    body_timeout: Positive = 30.0
    """A request whose body has not arrived by then is answered with 408."""
    peek: Seconds = 2.0
    """How long the head of a stream is held back for its first meaningful event."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Lower] = "info"
    log_format: Annotated[Literal["auto", "json", "text"], Lower] = "auto"
    """``auto`` is text on a terminal and JSON elsewhere."""


class AuthSettings(Part):
    """Who may come in. With neither member the gateway is open, and only on loopback."""

    master_key: Secret | None = None
    master_key_file: Path | None = None
    """Holds the key; made at the first start if it does not exist."""
    secret: Secret | None = None
    """What the hashes of the clients' keys are made with, if not with one that is made at the first
    start: several gateways with one database need the same."""

    @field_validator("master_key", "secret")
    @classmethod
    def _unset(cls, value: SecretStr | None) -> SecretStr | None:
        return value or None

    @field_validator("master_key_file", mode="before")
    @classmethod
    def _no_file(cls, value: Any) -> Any:
        return None if value == "" else value


class LimitSettings(Part):
    """How much may be used: requests and tokens a minute and a day, and calls at a time."""

    rpm: Whole | None = Field(None, gt=0)
    rpd: Whole | None = Field(None, gt=0)
    tpm: Whole | None = Field(None, gt=0)
    tpd: Whole | None = Field(None, gt=0)
    concurrency: Whole | None = Field(None, gt=0)


class SharedLimits(Part):
    """Limits of quota groups, over all their models, and of models, for each group by itself. A
    ``*`` in the name of a model stands for any part of it."""

    groups: dict[str, LimitSettings] = Field({})
    models: dict[str, LimitSettings] = Field({})


class KeySettings(Part):
    """One key of a provider. Keys of one ``quota_group`` share what the provider lets them use."""

    name: Name = ""
    value: Secret
    quota_group: str = Field("", min_length=1)
    weight: Weight = 1.0
    limits: LimitSettings = LimitSettings()
    free_tier: bool | None = None
    """Whether its calls cost nothing; None: as its provider says."""


class TimeoutSettings(Part):
    """Seconds to wait for an upstream. ``first_byte`` None: what suits the type of provider."""

    connect: Positive = 5.0
    first_byte: Positive | None = None
    idle: Positive = 120.0


class ProviderSettings(Part):
    """One upstream. ``base_url`` None: the one that the type is known by."""

    type: Annotated[ProviderType, Lower]
    base_url: WebAddress | None = None
    account_id: AccountId | None = None
    keys: list[KeySettings] = Field([])
    timeouts: TimeoutSettings = TimeoutSettings()
    strategy: KeyStrategy = "least_busy"
    """Which of its keys is taken."""
    limits: SharedLimits = SharedLimits()
    include_usage: bool | None = None
    """Whether to ask for usage at the end of streams; None: as the type of provider needs."""
    free_tier: bool = False
    """Whether calls cost nothing, as they do with keys of a free tier."""
    api: Annotated[Literal["openai", "native"], Lower] = "openai"
    """Which paths of an Ollama are asked: ``native`` translates to its own, which tell more."""

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
        if self.api == "native" and self.type != "ollama":
            raise ValueError("api: native is for type ollama; accepted here: openai")
        return self


class TargetSettings(Part):
    """A ``provider/model`` of an alias, or that text alone. The lowest tier that can serve does."""

    target: TargetName
    tier: Whole = 1
    weight: Weight = 1.0

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"target": target(data)}
        if data is None or isinstance(data, int | float | list):
            raise ValueError("must be PROVIDER/MODEL, or a mapping with target, tier and weight")
        return data


class Alias(Part):
    """A name for several ``provider/model``, and the strategy that orders them."""

    targets: list[TargetSettings] = Field(min_length=1)
    strategy: Strategy = "fallback"
    rewrite_model: bool = False
    context_window_fallbacks: list[TargetName] = Field([])
    """Who takes over when a prompt is too long for a target."""
    content_filter_fallbacks: list[TargetName] = Field([])
    """Who takes over when a target's filter refuses."""


class Price(Part):
    """US dollars per million tokens. A token that is cached, or of sound, costs what the others of
    its side cost if nothing is said."""

    input: Usd
    output: Usd
    cached_input: Usd | None = None
    cache_write: Usd | None = None
    input_audio: Usd | None = None
    output_audio: Usd | None = None


class RetryBudgetSettings(Part):
    """How many calls beyond a request's first may be made: a share of the requests of the last ten
    seconds, and never fewer than ``minimum``."""

    ratio: Share = 0.2
    minimum: Whole = Field(10, ge=0)


class BreakerSettings(Part):
    """When a model at a provider is left alone, and for how long. ``failures`` 0: never."""

    failures: Whole = Field(5, ge=0)
    rate: Share = 0.5
    minimum: Whole = Field(20, ge=1)
    window: Positive = 30.0
    open_for: Positive = 10.0
    longest: Positive = 300.0


class RoutingSettings(Part):
    """How failures are met. Durations in seconds."""

    max_wait: Seconds = 1.0
    """How long a request waits for a key that will be free by then."""
    max_cooldown: Positive = 86_400.0
    """Nothing rests for longer, whatever a provider says."""
    retry_budget: RetryBudgetSettings = RetryBudgetSettings()
    breaker: BreakerSettings = BreakerSettings()
    probe: Seconds = 0.0
    """Seconds between questions for the model list to providers with an open breaker; 0: none."""


class StateSettings(Part):
    """Where several gateways share what they learn; without ``url`` each is by itself."""

    url: RedisAddress | None = Field(None, repr=False)
    prefix: Name = "tollkeeper"

    @field_validator("url")
    @classmethod
    def _unset(cls, value: str | None) -> str | None:
        return value or None


class JournalSettings(Part):
    """What becomes of calls when the journal cannot be written, and how large it may get."""

    on_failure: Annotated[Literal["open", "strict"], Lower] = "open"
    max_bytes: Bytes = 1024**3


class TelemetrySettings(Part):
    """What is kept, where, and for how many days (0: for ever)."""

    enabled: bool = True
    database_url: str = Field("sqlite+aiosqlite:///./data/tollkeeper.db", repr=False)
    privacy_level: Literal["metadata", "full", "none"] = "metadata"
    retention_days: Whole = Field(30, ge=0)
    archive: Path | None = None
    """The folder where calls are written to before they are deleted."""
    content_days: Whole = Field(7, ge=1)
    """How long prompts and answers are kept where they are, and never longer than the calls."""
    content_max_bytes: Bytes = MAX_BYTES
    """How much of a prompt, and of an answer, before they are compressed."""
    tps_windows: list[Annotated[Whole, Field(ge=1, le=1440)]] = Field([1, 5, 15, 60], max_length=8)
    """Over how many minutes speeds are averaged, for ``tps_metrics``."""
    journal: JournalSettings = JournalSettings()

    @field_validator("archive", mode="before")
    @classmethod
    def _no_folder(cls, value: Any) -> Any:
        return None if value == "" else value

    @property
    def keeps(self) -> bool:
        """Whether anything is written to the database at all."""
        return self.enabled and self.privacy_level != "none"

    @property
    def content_limit(self) -> int | None:
        """Bytes that are kept of a prompt and of an answer; None: neither is kept."""
        return self.content_max_bytes if self.enabled and self.privacy_level == "full" else None

    @field_validator("database_url")
    @classmethod
    def _async_driver(cls, value: str) -> str:
        if not value.startswith(_DATABASES):
            raise ValueError(f"must start with {' or '.join(_DATABASES)}")
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
    budgets: Budgets = []
    limits: Limits = []
    routing: RoutingSettings = RoutingSettings()
    state: StateSettings = StateSettings()
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
        found = [each for each in (self.auth.master_key, self.auth.secret) if each]
        found += [key.value for provider in self.providers.values() for key in provider.keys]
        texts = [secret.get_secret_value() for secret in found]
        return texts + passwords(self.telemetry.database_url) + passwords(self.state.url or "")

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


def _typed(name: Any, provider: Any) -> Any:
    """A provider's data with the type that its name implies."""
    if name in KNOWN and (provider is None or isinstance(provider, dict)):
        return {"type": name, **(provider or {})}
    return provider
