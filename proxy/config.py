"""Where the settings come from: arguments > ``TOLLKEEPER_*`` variables > the file > defaults.

Without a file the providers come from well-known variables (``proxy.discovery``). This is the only
module that reads the process's environment.
"""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from proxy.discovery import discover
from proxy.document import Document, Location, line, read
from proxy.errors import ConfigError
from proxy.loopback import is_loopback
from proxy.mistakes import nearest, tell
from proxy.places import state_folder
from proxy.schema import KNOWN, NEEDS_KEYS, Alias, Settings

_log = logging.getLogger("tollkeeper")

DEFAULT_FILE = Path("config/tollkeeper.yaml")

_PREFIX = "TOLLKEEPER_"
_CONFIG = "TOLLKEEPER_CONFIG"
_MASTER_KEY = "TOLLKEEPER_MASTER_KEY"
_FALLBACKS = ("context_window_fallbacks", "content_filter_fallbacks")
_NAMED = ("providers", "models", "prices")  # sections whose members the user names


def load(
    config: Path | None = None,
    arguments: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings from every source; ``arguments`` has their shape: ``{"server": {"port": 1}}``.

    The file is ``config``, else ``$TOLLKEEPER_CONFIG``, else ``config/tollkeeper.yaml`` if there
    is one. Raises ConfigError with one line for each mistake. What is only left out, such as a key
    whose variable is not set, is told in ``Settings.warnings``.
    """
    environ = os.environ if environ is None else environ
    file = _file(config, environ)
    sources, mistakes, warnings = _sources(file, dict(arguments or {}), environ)
    data: dict[str, Any] = {}
    for layer in (sources.document.data, sources.environment, sources.arguments):
        data = _merge(data, layer)
    absent = {at: name for at, name in sources.document.unset.items() if sources.wins(at)}
    for at, name in absent.items():
        if not _is_key(at):
            words = f"{name} is not set; set it, or write ${{{name}:-default}}"
            mistakes.append(sources.blame(at, words))
    settings, found = _validate(data)
    mistakes += [sources.blame(at, words) for at, words in found if at not in absent]
    mistakes += [sources.blame(at, words) for at, words in _contradictions(settings, data, found)]
    if mistakes:
        raise ConfigError(mistakes)
    kept, left_out = _leave_out(settings, absent)
    warnings += [sources.blame(at, words) for at, words in left_out]
    return kept.read_from(file, warnings)


def master_key(settings: Settings) -> tuple[str | None, bool]:
    """The key that opens the gateway, and whether it was made just now; None: it is open.

    A key file that does not exist is made, readable by its owner alone. Raises ConfigError if the
    file can be neither read nor made, or is empty.
    """
    if settings.auth.master_key:
        return settings.auth.master_key.get_secret_value(), False
    path = settings.auth.master_key_file
    if path is None:
        return None, False
    try:
        key, made = path.read_text(encoding="ascii").strip(), False
    except FileNotFoundError:
        key, made = _make_key(path)
    except (OSError, ValueError):
        raise ConfigError([f"{path}: the master key cannot be read from it"]) from None
    if not key:
        raise ConfigError([f"{path}: holds no master key; delete it, and one is made"])
    return key, made


def client_secret(settings: Settings) -> bytes:
    """What the hashes of the clients' keys are made with. One that nobody configured is made beside
    the database, and readable by its owner alone; where there is neither a master key nor a
    database no client has a key, and it is kept nowhere.

    Raises ConfigError if it can be neither read nor made.
    """
    if settings.auth.secret:
        return settings.auth.secret.get_secret_value().encode()
    if not settings.telemetry.keeps:
        return secrets.token_bytes(32)
    path = state_folder(settings.telemetry.database_url) / "secret"
    try:
        return path.read_text(encoding="ascii").strip().encode()
    except FileNotFoundError:
        return _make_key(path)[0].encode()
    except (OSError, ValueError):
        raise ConfigError([f"{path}: the secret of the clients' keys cannot be read"]) from None


def served_secret(settings: Settings) -> bytes:
    """``client_secret`` for a gateway. An open one asks for no key, and serves although its secret
    cannot be read: until it is started again it knows none."""
    try:
        return client_secret(settings)
    except ConfigError as error:
        if settings.auth.master_key is not None:
            raise
        _log.error("no key of a client is known: %s", "; ".join(error.mistakes))
        return secrets.token_bytes(32)


def _make_key(path: Path) -> tuple[str, bool]:
    """A key of 256 random bits in a new file, which appears whole or not at all."""
    key = f"tk-{secrets.token_urlsafe(32)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:  # mkstemp made it 0600
                file.write(key + "\n")
            os.link(draft, path)  # unlike a rename it never replaces another process's key
        finally:
            os.unlink(draft)
    except FileExistsError:
        return path.read_text(encoding="ascii").strip(), False
    except OSError as error:
        raise ConfigError([f"{path}: the key cannot be kept: {error.strerror}"]) from None
    return key, True


def _file(config: Path | None, environ: Mapping[str, str]) -> Path | None:
    if config is not None:
        return config
    if named := environ.get(_CONFIG):
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


class _Sources(NamedTuple):
    """The layers, so that each mistake can be laid at the right door."""

    file: Path | None
    document: Document
    environment: dict[str, Any]
    arguments: dict[str, Any]
    variables: Mapping[str, str]

    def wins(self, at: Location) -> bool:
        """Whether what stands at ``at`` in the file is what counts."""
        depth = _depth(self.document.data, at)
        return depth > max(_depth(self.environment, at), _depth(self.arguments, at))

    def blame(self, at: Location, words: str) -> str:
        """One line that names the file, variable or argument, the key in it, and what is wrong."""
        depth = _depth(self.document.data, at)
        if at and _depth(self.arguments, at) >= max(1, depth, _depth(self.environment, at)):
            return line(f"--{at[-1]}".replace("_", "-"), (), words)
        if at and _depth(self.environment, at) >= max(1, depth):
            for end in range(len(at), 0, -1):
                name = _PREFIX + "__".join(str(part).upper() for part in at[:end])
                if name in self.variables:
                    return line(name, at[end:], words)
            if at == ("auth", "master_key"):
                return line(_MASTER_KEY, (), words)
        return line(str(self.file or "environment"), at, words)


def _sources(
    file: Path | None, arguments: dict[str, Any], environ: Mapping[str, str]
) -> tuple[_Sources, list[str], list[str]]:
    mistakes: list[str] = []
    warnings: list[str] = []
    document = Document({}, {})
    if file is None:
        providers, warnings = discover(environ)
        document = Document({"providers": providers}, {})
    else:
        try:
            document = read(file, environ)
        except ConfigError as error:
            mistakes += error.mistakes
    environment: dict[str, Any] = {}
    for found, mistake, warning in _variables(environ):
        environment = _merge(environment, found)
        mistakes += mistake
        warnings += warning
    if mistakes and not document.data:
        raise ConfigError(mistakes)  # what an unread file holds cannot be checked
    return _Sources(file, document, environment, arguments, environ), mistakes, warnings


def _variables(
    environ: Mapping[str, str],
) -> Iterator[tuple[dict[str, Any], list[str], list[str]]]:
    """What each ``TOLLKEEPER_*`` variable sets, its mistakes and warnings. An empty one is unset.

    A name without ``__`` that means nothing only warns: container platforms make such names up
    for a service called tollkeeper.
    """
    if key := environ.get(_MASTER_KEY):
        yield {"auth": {"master_key": key}}, [], []
    source = EnvSettingsSource(Settings)
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or name in (_CONFIG, _MASTER_KEY) or not environ[name]:
            continue
        source.env_vars = {name.lower(): environ[name]}
        try:
            found = source()
        except SettingsError:
            yield {}, [f"{name}: must be JSON"], []
            continue
        if found:
            yield found, [], []
        elif "__" in name:
            section = name.removeprefix(_PREFIX).split("__")[0].lower()
            words = f"is not a setting; {nearest(section, Settings.model_fields)}"
            yield {}, [f"{name}: {words}"], []
        else:
            yield {}, [], [f"{name}: is not a setting, and ignored"]


def _validate(data: dict[str, Any]) -> tuple[Settings, list[tuple[Location, str]]]:
    """The settings without the parts that are wrong, and what is wrong with those."""
    try:
        return Settings(**data), []
    except ValidationError as error:
        found = list(tell(error, Settings))
    sound = {name: dict(part) if isinstance(part, dict) else part for name, part in data.items()}
    for at, _ in found:
        section = sound.get(str(at[0]))
        if at[0] in _NAMED and isinstance(section, dict) and len(at) > 1:
            section.pop(at[1], None)
        else:
            sound.pop(str(at[0]), None)
    settings, more = _validate(sound)  # some rules are only asked once the parts are sound
    return settings, found + more


def _contradictions(
    settings: Settings, data: dict[str, Any], found: list[tuple[Location, str]]
) -> Iterator[tuple[Location, str]]:
    """What does not hold between two parts that are each sound."""
    configured = set(data.get("providers") or ())
    named: list[tuple[Location, str]] = [
        (("budgets", place, "value"), budget.value)
        for place, budget in enumerate(settings.budgets)
        if budget.scope == "provider"
    ]
    for name, alias in settings.models.items():
        if name.partition("/")[0] in configured:
            yield ("models", name), "can never be reached: its first part is a provider's name"
        named += [(at, target.partition("/")[0]) for at, target in _targets(name, alias)]
    for at, provider in named:
        if provider not in configured and provider not in KNOWN:
            yield at, f"{provider} is no configured provider; {nearest(provider, configured)}"
    for name, each in settings.providers.items():
        groups = {key.quota_group for key in each.keys} or {"none"}  # without keys there is one
        for group in each.limits.groups:
            if group not in groups:
                words = f"is no quota group of a key; {nearest(group, groups)}"
                yield ("providers", name, "limits", "groups", group), words
    if settings.budgets and not settings.telemetry.keeps:
        yield (
            ("budgets",),
            "need the database, which telemetry (enabled, privacy_level) has off",
        )
    auth = settings.auth
    unclear = any(at[0] == "auth" for at, _ in found)
    guarded = unclear or auth.master_key is not None or auth.master_key_file is not None
    if not guarded and not is_loopback(settings.server.host):
        words = "refuses to be open to other machines without a master key; set auth.master_key"
        yield ("server", "host"), f"{words} or TOLLKEEPER_MASTER_KEY, or use 127.0.0.1"


def _leave_out(
    settings: Settings, absent: Mapping[Location, str]
) -> tuple[Settings, list[tuple[Location, str]]]:
    """The settings without keys that have no value, and without what cannot work for that."""
    told: list[tuple[Location, str]] = []
    providers, models = dict(settings.providers), dict(settings.models)
    for name, provider in settings.providers.items():
        for place, key in enumerate(provider.keys):
            at: Location = ("providers", name, "keys", place)
            if not key.value:
                variable = absent.get((*at, "value"))
                why = f"{variable} is not set" if variable else "its value is empty"
                told.append((at, f"key {key.name} is left out: {why}"))
        keys = [key for key in provider.keys if key.value]
        providers[name] = provider.model_copy(update={"keys": keys})
        if provider.type in NEEDS_KEYS and not keys:
            told.append((("providers", name), "is left out: it has no key"))
            del providers[name]
    for name, alias in settings.models.items():
        for _, target in _targets(name, alias):
            if target.partition("/")[0] not in providers:
                told.append((("models", name), f"{target} is left out with its provider"))
        models[name] = kept = _without(alias, providers)
        if not kept.targets:
            told.append((("models", name), "is left out: it has no target"))
            del models[name]
    return settings.model_copy(update={"providers": providers, "models": models}), told


def _targets(name: str, alias: Alias) -> Iterator[tuple[Location, str]]:
    """Every target that an alias names, and where."""
    for place, each in enumerate(alias.targets):
        yield ("models", name, "targets", place), each.target
    for member in _FALLBACKS:
        for place, target in enumerate(getattr(alias, member)):
            yield ("models", name, member, place), target


def _without(alias: Alias, providers: Container[str]) -> Alias:
    """The alias without the targets whose provider is not there."""

    def there(target: str) -> bool:
        return target.partition("/")[0] in providers

    kept = {name: [each for each in getattr(alias, name) if there(each)] for name in _FALLBACKS}
    targets = [each for each in alias.targets if there(each.target)]
    return alias.model_copy(update={"targets": targets, **kept})


def _is_key(at: Location) -> bool:
    """Whether the value of a provider's key stands there."""
    return len(at) == 5 and at[0] == "providers" and at[2] == "keys" and at[4] == "value"


def _depth(data: Any, at: Location) -> int:
    """How far ``at`` leads into ``data``."""
    for depth, part in enumerate(at):
        try:
            data = data[part]
        except (LookupError, TypeError):
            return depth
    return len(at)


def _merge(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``under``; mappings meet member by member, all else is replaced."""
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[name] = _merge(below, value)
        else:
            merged[name] = value
    return merged
