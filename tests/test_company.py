from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from proxy.company import Company
from proxy.election import Election
from proxy.errors import ConfigError
from proxy.schema import Settings
from proxy.sharing.member import Member


def given(folder: Path, **more: Any) -> Settings:
    telemetry = {"database_url": f"sqlite+aiosqlite:///{folder}/t.db"}
    return Settings(**{"telemetry": telemetry, **more})


def member() -> mock.Mock:
    return mock.Mock(spec=Member, offset_ms=0, available=True)


def test_who_is_alone_shares_with_nobody_and_leads(tmp_path: Path) -> None:
    alone = Company(given(tmp_path), None, dict)
    assert (alone.claims, alone.state, alone.loops) == (None, None, [])
    assert alone.leads()
    alone.begin()
    assert alone.reload(lambda: 7) == 7
    assert not list(tmp_path.iterdir())


async def test_one_of_several_workers_leads_until_it_ends(tmp_path: Path) -> None:
    settings = given(tmp_path)
    one, other = (Company(settings, member(), dict) for _ in range(2))
    async with AsyncExitStack() as stack:
        await one.open(stack, dict, {})
        assert one.leads()
        assert not other.leads()
    assert other.leads()
    assert one._election is not None
    for each in (one, other):
        assert each._election is not None
        each._election.close()


def test_where_nothing_is_kept_there_is_nothing_to_lead(tmp_path: Path) -> None:
    settings = given(tmp_path, telemetry={"enabled": False})
    assert Company(settings, member(), dict)._election is None


def test_where_no_file_can_be_made_nobody_leads_and_it_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    company = Company(given(tmp_path / "file"), member(), dict)
    assert [company.leads() for _ in range(2)] == [False, False]
    assert len(caplog.records) == 1


async def test_workers_share_through_their_supervisor_where_there_is_no_server(
    tmp_path: Path,
) -> None:
    worker = member()
    company = Company(given(tmp_path), worker, dict)
    assert company.state is worker
    async with AsyncExitStack() as stack:
        await company.open(stack, dict, {"a": bytes})
        worker.open.assert_awaited_once()
        assert worker.meet.call_args.kwargs["changed"] == company.claims.heard  # type: ignore[union-attr]
        company.begin()
        worker.begin.assert_called_once_with([], [])
        assert company.reload(lambda: 7) == 7
        worker.reloaded.assert_called_once_with()
    worker.close.assert_called_once_with()


async def test_what_was_known_before_there_was_a_line_is_told_once_there_is(
    tmp_path: Path,
) -> None:
    worker = member()
    worker.available = False
    company = Company(given(tmp_path), worker, dict)
    company.begin()
    worker.begin.assert_not_called()
    worker.available = True
    async with AsyncExitStack() as stack:
        await company.open(stack, dict, {})
    worker.begin.assert_called_once_with([], [])


async def test_where_there_is_a_server_that_is_it(tmp_path: Path) -> None:
    worker = member()
    company = Company(given(tmp_path, state={"url": "redis://127.0.0.1:1/0"}), worker, dict)
    assert company.state is company.shared is not None
    assert len(company.loops) == 2
    async with AsyncExitStack() as stack:
        await company.open(stack, dict, {})
        company.begin()
    worker.meet.assert_not_called()
    worker.begin.assert_not_called()
    worker.open.assert_awaited_once()


async def test_a_configuration_that_does_not_hold_is_told_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = member()
    company = Company(given(tmp_path), worker, dict)
    async with AsyncExitStack() as stack:
        reload = mock.Mock(side_effect=ConfigError(["what is this"]))
        await company.open(stack, reload, {})
        worker.serve.call_args.args[0]()
    assert "stays as it was: what is this" in caplog.text


def test_the_election_is_held_beside_the_database(tmp_path: Path) -> None:
    company = Company(given(tmp_path), member(), dict)
    assert company.leads()
    assert not Election(tmp_path / "t.db.state" / "elected").won()
    assert company._election is not None
    company._election.close()
