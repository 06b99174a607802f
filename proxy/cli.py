"""The command line: ``tollkeeper [COMMAND] [--config FILE] ...``."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from proxy import __version__, clientele
from proxy.budgeting import MOST_BUDGETS, KeyBudget, of_client, parsed
from proxy.clients import ClientLimits
from proxy.clock import now_ms
from proxy.config import load
from proxy.errors import ConfigError, GatewayError
from proxy.explain import explain
from proxy.export import FORMATS, TABLES, export
from proxy.keys import new_client
from proxy.prune import prune
from proxy.reprice import RepriceError, reprice
from proxy.schema import Settings
from proxy.serve import serve
from proxy.store.address import StoreError
from proxy.store.formats import ExportError
from proxy.supervisor import supervise
from proxy.tags import whole
from proxy.when import span, when

_SERVER = {
    "host": "the address to listen on (127.0.0.1)",
    "port": "the port to listen on (8000); 0: any free one",
    "workers": "how many processes serve (1)",
    "log_level": "debug, info, warning or error",
    "log_format": "json, text, or auto: text on a terminal",
}


_DAY_MS = 86_400_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 1, with one line each, for mistakes."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
        words.insert(0, "serve")
    parser = _parser()
    options = parser.parse_args(words)
    if options.command in ("export", "reprice") and options.since > options.until:
        parser.error("argument --since: must not be after --until, which is now if not given")

    read = partial(load, options.config, _arguments(options))
    try:
        settings = read()
        if options.command not in ("keys", "export", "prune", "reprice"):  # about keys, providers
            for warning in settings.warnings:
                print(f"warning: {warning}", file=sys.stderr)
        if options.command == "check":
            print(_checked(settings))
            return 0
        if options.command == "explain":
            print(asyncio.run(explain(settings, options.model)))
            return 0
        if options.command == "keys":
            print(asyncio.run(_keys(settings, options)))
            return 0
        if options.command == "export":
            return _export(settings, options)
        if options.command == "prune":
            print(asyncio.run(prune(settings, options.older_than, options.dry_run)))
            return 0
        if options.command == "reprice":
            print(asyncio.run(reprice(settings, options.since, options.until, options.dry_run)))
            return 0
        start = serve if settings.server.workers == 1 else supervise
        return start(settings, lambda text: print(text, flush=True), read)
    except GatewayError as error:
        print(error.message, file=sys.stderr)
        return 1
    except (StoreError, ExportError, RepriceError) as error:
        print(error, file=sys.stderr)
        return 1
    except ConfigError as error:
        for mistake in error.mistakes:
            print(mistake, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tollkeeper",
        description="An OpenAI-compatible reverse proxy with the meter built in.",
        epilog="Without a command it serves.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tollkeeper {__version__}")
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shared.add_argument("--config", type=Path, metavar="FILE", help="the configuration, YAML")
    for name, meaning in _SERVER.items():
        option = name.replace("_", "-")
        shared.add_argument(f"--{option}", metavar=option.upper(), help=meaning)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, meaning in {
        "serve": "start the gateway",
        "check": "check the configuration, and start nothing",
        "explain": "say who would serve a model and who not, and send nothing",
        "keys": "let clients in with keys of their own",
        "export": "write the rows of a table to a file",
        "prune": "delete old rows now, as the gateway does by itself",
        "reprice": "price calls anew, by today's prices",
    }.items():
        command = commands.add_parser(
            name, parents=[shared], help=meaning, description=meaning, allow_abbrev=False
        )
        if name == "explain":
            command.add_argument("model", metavar="MODEL", help="as a client would ask for it")
        if name == "keys":
            _add_keys(command)
        if name == "export":
            _add_export(command)
        if name == "prune":
            _add_prune(command)
        if name == "reprice":
            _add_reprice(command)
    return parser


def _add_keys(command: argparse.ArgumentParser) -> None:
    orders = command.add_subparsers(dest="order", required=True, metavar="ORDER")
    config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config.add_argument("--config", type=Path, metavar="FILE", default=argparse.SUPPRESS)
    made = {
        order: orders.add_parser(order, parents=[config], help=meaning, description=meaning)
        for order, meaning in {
            "create": "let a client in, and show its key once",
            "list": "say who has a key, and what it opens",
            "revoke": "let a client's keys open nothing any more",
            "rotate": "show another key for a client, once",
        }.items()
    }
    create = made["create"]
    create.add_argument("name", type=_name, metavar="NAME")
    create.add_argument("--owner", metavar="WHO")
    for option, meaning in {
        "--model": "what it may ask for, such as fast or 'groq/*'; may come again (all)",
        "--provider": "whom it may reach; may come again (all)",
        "--tag": "may come again",
    }.items():
        create.add_argument(option, action="append", default=[], metavar="TEXT", help=meaning)
    create.add_argument(
        "--limit",
        action="append",
        type=_limit,
        default=[],
        metavar="NAME=NUMBER",
        help="such as rpm=60 or parallel=4; may come again (none)",
    )
    create.add_argument(
        "--budget",
        action="append",
        type=_budget,
        default=[],
        metavar="USD/PERIOD",
        help="such as 20/month or 5/24h/soft; may come again (none)",
    )
    create.add_argument("--expires-in", type=_span, metavar="TIME", help="such as 30d (never)")
    for order in ("revoke", "rotate"):
        made[order].add_argument("id", metavar="ID", help="as list shows it")
    made["rotate"].add_argument(
        "--grace",
        type=_span,
        default=_DAY_MS,
        metavar="TIME",
        help="the old key opens so long (1d)",
    )


async def _keys(settings: Settings, options: argparse.Namespace) -> str:
    if options.order == "create":
        if len(options.budget) > MOST_BUDGETS:
            raise ConfigError([f"a client has {MOST_BUDGETS} budgets at most"])
        try:
            tags = whole(options.tag)
        except ValueError as error:
            raise ConfigError([f"--tag: {error}"]) from None
        ends = None if options.expires_in is None else now_ms() + options.expires_in
        client = new_client(
            options.name,
            owner=options.owner,
            models=options.model,
            providers=options.provider,
            tags=tags,
            expires_at=ends,
            limits={name: amount for limit in options.limit for name, amount in limit.items()},
        )
        budgets = of_client(options.budget, client.id, client.name)
        return await clientele.create(settings, msgspec.structs.replace(client, budgets=budgets))
    if options.order == "list":
        return await clientele.listed(settings)
    if options.order == "revoke":
        return await clientele.revoke(settings, options.id)
    return await clientele.rotate(settings, options.id, options.grace)


def _add_export(command: argparse.ArgumentParser) -> None:
    ago = "RFC 3339, a date, or a time ago such as 7d"
    command.add_argument(
        "--since", type=_when, default=0, metavar="WHEN", help=f"the first moment: {ago} (all)"
    )
    command.add_argument(
        "--until",
        type=_when,
        default=now_ms() + 1,
        metavar="WHEN",
        help="the moment before which it ends (now)",
    )
    command.add_argument(
        "--format", choices=FORMATS, default=FORMATS[0], help=f"({FORMATS[0]}); parquet: an extra"
    )
    command.add_argument(
        "--table", choices=TABLES, default="api_calls", metavar="TABLE", help="(api_calls)"
    )
    command.add_argument("--output", default="-", metavar="FILE", help="(-: standard output)")


def _add_prune(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--older-than", type=_span, metavar="TIME", help="such as 30d (telemetry.retention_days)"
    )
    command.add_argument("--dry-run", action="store_true", help="only say what would be deleted")


def _add_reprice(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--since",
        type=_when,
        required=True,
        metavar="WHEN",
        help="the first moment: RFC 3339, a date, or a time ago such as 7d",
    )
    command.add_argument(
        "--until",
        type=_when,
        default=now_ms() + 1,
        metavar="WHEN",
        help="the moment before which it ends (now)",
    )
    command.add_argument("--dry-run", action="store_true", help="only say what would change")


def _when(text: str) -> int:
    try:
        return when(text, now_ms())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _span(text: str) -> int:
    try:
        return span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _name(text: str) -> str:
    if not 0 < len(text) <= 200 or "\0" in text:
        raise argparse.ArgumentTypeError("must be a text of 1 to 200 characters")
    return text


def _limit(text: str) -> dict[str, int]:
    name, _, amount = text.partition("=")
    try:
        limits = msgspec.convert({name: int(amount)}, ClientLimits)
    except (ValueError, msgspec.ValidationError):
        names = ", ".join(ClientLimits.__struct_fields__)
        message = f"must be NAME=NUMBER, from 1, of {names} (got {text})"
        raise argparse.ArgumentTypeError(message) from None
    told: dict[str, int] = msgspec.to_builtins(limits)
    return told


def _budget(text: str) -> KeyBudget:
    try:
        return parsed(text)
    except ValueError:
        message = f"must be dollars per day, week, month or hours such as 24h (got {text})"
        raise argparse.ArgumentTypeError(message) from None


def _export(settings: Settings, options: argparse.Namespace) -> int:
    window = options.since, options.until
    rows = asyncio.run(export(settings, options.table, *window, options.format, options.output))
    print(_count(rows, "row"), file=sys.stderr)
    return 0


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, in the shape of the settings."""
    given = {name: getattr(options, name) for name in _SERVER}
    return {"server": {name: value for name, value in given.items() if value is not None}}


def _checked(settings: Settings) -> str:
    keys = sum(len(provider.keys) for provider in settings.providers.values())
    counts = [
        _count(len(settings.providers), "provider"),
        _count(keys, "key"),
        _count(len(settings.models), "alias", "aliases"),
        _count(len(settings.prices), "price"),
    ]
    return f"{settings.file or 'environment, no file'}: in order: {', '.join(counts)}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
