"""The line to the coordinator: a session whenever one can be had, and calls as the peer that it is."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Protocol

import structlog

from muster.errors import (
    DeadlineError,
    InternalError,
    MusterError,
    NotAllowedError,
    StorageError,
    TransferError,
    UnreachableError,
)
from muster.runtime.backoff import Backoff
from muster.runtime.randomness import hex_id
from muster.runtime.version import muster_version
from muster.transport.base import Channel
from muster.wire import ENROL
from peer.connection.session import Handler, Session, Settled
from protos.v1 import membership_pb2 as pb

log = structlog.get_logger()

ENROL_SECONDS_MAX = 10.0
RECONNECT_SECONDS_MIN = 0.5
STEADY_SECONDS = (
    15.0  # a session that ends sooner may be one of many: the wait before the next one goes on growing
)

# What may pass by itself. Anything else (another version, a name that is taken, a wrong address) needs a
# person.
PASSING = (UnreachableError, DeadlineError, InternalError, StorageError, TransferError)


class Caller(Handler, Protocol):
    """Who holds the line."""

    async def hello(self, credentials: pb.Credentials) -> pb.Hello: ...

    def welcomed(self) -> None: ...


class CoordinatorConnection:
    """Keeps a session with the coordinator open, and opens another when it ends."""

    def __init__(self, channel: Channel, credentials: pb.Credentials, *, device: str, random: Random) -> None:
        self.channel = channel
        self.credentials = credentials
        self.online = asyncio.Event()  # set while there is a session
        self.random = random
        self._device = device
        self._instance = hex_id(random, 8)
        self._session: Session | None = None
        self._leaving = False
        # A thousand peers that lose one coordinator come back over this time, not at once.
        self._backoff = Backoff(random, delay_seconds_min=RECONNECT_SECONDS_MIN)
        self._trouble = ""  # what keeps a session from coming about, as told last

    def tell(self, report: pb.AssignmentReport, settled: Settled | None = None) -> None:
        """Sends a report if there is a session; without one it is not kept."""
        if self._session is not None and self.online.is_set():
            self._session.report(report, settled)

    async def hold(self, caller: Caller) -> None:
        """Keeps up a session, until `leave`.

        Raises `NotAllowedError` `peer.sent_away` when the coordinator closes it for good, and every refusal
        that does not pass by itself.
        """
        while not self._leaving:
            try:
                await self._enrol()
                await self._one_session(caller)
            except PASSING as error:
                self._tell_trouble(error)
            if not self._leaving:
                await asyncio.sleep(self._backoff.next_delay())

    def _tell_trouble(self, error: MusterError) -> None:
        """Once, until it is another or there was a session: attempts go on for as long as it takes."""
        tell = log.debug if error.id == self._trouble else log.warning
        self._trouble = error.id
        if isinstance(error, UnreachableError):
            reason = f"{error.message}; waiting for a coordinator there, and going on by itself when it comes"
            tell("session.awaited", reason=reason, cause=error.cause)
        else:
            tell("session.broken", error_id=error.id, error=error.message)

    async def _enrol(self) -> None:
        """Before each session, since a coordinator with a new database knows nobody."""
        request = pb.EnrolRequest(
            name=self.credentials.peer_id,
            secret=self.credentials.secret,
            muster_version=muster_version(),
            device=self._device,
            instance=self._instance,
        )
        await self.channel.unary(ENROL, request, timeout_seconds=ENROL_SECONDS_MAX)

    async def _one_session(self, caller: Caller) -> None:
        hello = await caller.hello(self.credentials)
        session = Session(self.channel, hello, caller, on_welcome=lambda: self._welcomed(caller))
        self._session = session
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            end = await session.run()
        finally:
            self.online.clear()
            self._session = None
            if loop.time() - began >= STEADY_SECONDS:
                self._backoff.reset()
            elif session.heard:
                self._backoff.ease()
        log.info("session.ended", reason=end.reason, reconnect=end.reconnect)
        if not end.reconnect and not self._leaving:
            raise NotAllowedError(
                "peer.sent_away",
                f"the coordinator has closed the session of {self.credentials.peer_id!r} for good: {end.reason}",
                cause="the peer was removed or quarantined, or another process took over its name",
                fix="ask the coordinator's admin: muster peer show " + self.credentials.peer_id,
            )

    def _welcomed(self, caller: Caller) -> None:
        log.info("session.opened", peer_id=self.credentials.peer_id)
        self._trouble = ""
        self.online.set()
        caller.welcomed()

    def leave(self, reason: str) -> None:
        """Says goodbye, if there is a session to say it in; `hold` then returns when the session has
        ended."""
        self._leaving = True
        if self._session is not None:
            self._session.leave(reason)
