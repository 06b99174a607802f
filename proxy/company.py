"""Who a gateway shares what it learns with: other gateways, the other workers of its host, or
nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import TypeVar

from proxy.election import Election
from proxy.errors import ConfigError
from proxy.log import unchanged
from proxy.places import state_folder
from proxy.relay.claims import Claims
from proxy.relay.gate import Gate
from proxy.routing.keypool import KeyPool
from proxy.schema import Settings
from proxy.sharing.member import Member
from proxy.sharing.shared import Shared
from proxy.sharing.types import State

_log = logging.getLogger("tollkeeper")

_T = TypeVar("_T")


class Company:
    """``claims`` is None for a gateway that is alone; ``gate`` counts what clients use.

    Workers that are told of a server share through that, like gateways of several hosts, and
    through each other only what they show.
    """

    def __init__(
        self, settings: Settings, member: Member | None, pools: Callable[[], Mapping[str, KeyPool]]
    ) -> None:
        self.member = member
        self.shared: Shared | None = None
        self.claims: Claims | None = None
        self._election: Election | None = None
        self._unelectable = False
        self._begun = False
        telemetry, state = settings.telemetry, settings.state
        if member is not None and telemetry.keeps:
            self._election = Election(state_folder(telemetry.database_url) / "elected")
        if state.url is not None:
            self.shared = Shared(
                state.url,
                prefix=state.prefix,
                changed=lambda rests: claims.heard(rests),
                away=self._away,
                back=self._back,
            )
        self.state: State | None = self.shared or member
        """Where what is limited is counted for all."""
        self.gate = Gate(self.state)
        if self.state is not None:
            claims = self.claims = Claims(self.state, pools)

    @property
    def loops(self) -> list[Callable[[], Awaitable[None]]]:
        """What it needs beside the requests."""
        return [] if self.shared is None else [self.shared.run, self.shared.listen]

    async def open(
        self,
        stack: AsyncExitStack,
        reload: Callable[[], object],
        answers: Mapping[str, Callable[[bytes], bytes]],
    ) -> None:
        """``reload`` is for when another worker was told to, ``answers`` are what others ask."""

        def again() -> None:
            try:
                reload()
            except ConfigError as error:
                unchanged(error)

        if self.shared is not None:
            stack.push_async_callback(self.shared.close)
            await self.shared.open()
        if self.member is not None:
            if self._election is not None:
                stack.callback(self._election.close)
            if self.shared is None and self.claims is not None:
                heard = self.claims.heard
                self.member.meet(changed=heard, away=self._away, back=self._back)
            self.member.serve(again, answers)
            stack.callback(self.member.close)
            await self.member.open()
            self._tell()

    def begin(self) -> None:
        """The pools know now what was learnt before: tell the other workers, who may not."""
        self._begun = True
        self._tell()

    def reload(self, reload: Callable[[], _T]) -> _T:
        """Read the configuration again, here and then in the other workers."""
        done = reload()
        if self.member is not None:
            self.member.reloaded()
        return done

    def leads(self) -> bool:
        """Whether it is for this process to do what one of all workers does. Once it is, it stays
        so until the process ends."""
        if self._election is None:
            return True
        try:
            return self._election.won()
        except OSError as error:
            if not self._unelectable:
                self._unelectable = True
                _log.error("no worker samples, and none lets old rows go: %s", error)
            return False

    def _tell(self) -> None:
        hub = self.member if self.shared is None else None
        if self._begun and hub is not None and hub.available and self.claims is not None:
            rests, uses = self.claims.known()
            hub.begin(rests, uses + self.gate.known())

    def _away(self, nodes: int) -> None:
        if self.claims is not None:
            self.claims.away(nodes)
        self.gate.away(nodes)

    def _back(self) -> None:
        if self.claims is not None:
            self.claims.back()
        self.gate.back()
