"""One open session with the coordinator: heartbeats out, offers in, reports out.

Everything here lives on the event loop and nothing here ever waits for training, so a peer that computes with
all its cores still answers. Reports of a phase are told once a session and told again in the next; a report
that ends an assignment is *settled* only when a heartbeat sent after it is acknowledged, since the
coordinator acknowledges in order and only what is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from muster.errors import UnreachableError, UsageError
from muster.transport.base import Channel
from muster.wire import SESSION
from peer.connection import reports
from peer.connection.checks import heartbeat_seconds
from protos.v1 import membership_pb2 as pb

WELCOME_SECONDS_MAX = 10.0  # the coordinator answers a hello within this, or the session is given up
SILENT_HEARTBEATS_MAX = 4  # so many unanswered heartbeats and the line counts as dead
OUTBOX_MAX = 1024
REPORT_BYTES_MAX = 512 << 10  # half of what a session's message may have


Settled = Callable[[], Awaitable[None]]


class Handler(Protocol):
    """What is done with what the coordinator says. The calls come one at a time, in order."""

    async def offer(self, offer: pb.Assignment) -> None: ...

    async def cancel(self, assignment_id: str, reason: str) -> None: ...

    async def run_ended(self, run_id: str) -> None: ...

    def restore(self, wanted: pb.Restore) -> None: ...


@dataclass(frozen=True, kw_only=True)
class SessionEnd:
    """How a session ended: as the coordinator told it, or, with `reconnect`, where the stream just ended."""

    reason: str
    reconnect: bool


class Session:
    """`on_welcome` is called when the coordinator has taken the hello."""

    def __init__(
        self,
        channel: Channel,
        hello: pb.Hello,
        handler: Handler,
        *,
        on_welcome: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._handler = handler
        self._on_welcome = on_welcome
        self._outbox: asyncio.Queue[pb.SessionRequest | None] = asyncio.Queue(OUTBOX_MAX)
        self._outbox.put_nowait(pb.SessionRequest(hello=hello))
        self.heard = 0  # messages after the welcome
        self._sequence = 0
        self._unsettled: deque[tuple[int, Settled]] = deque()

    def report(self, report: pb.AssignmentReport, settled: Settled | None = None) -> None:
        """Sends a report. `settled` is called once the coordinator has it for good, if this session lives so
        long."""
        self._put(pb.SessionRequest(report=_sendable(report)))
        if settled is not None:
            self._unsettled.append((self._sequence + 1, settled))
            self._beat()

    def leave(self, reason: str) -> None:
        """Says goodbye and ends the stream from this side."""
        self._put(pb.SessionRequest(goodbye=pb.Goodbye(reason=reason)))
        self._put(None)

    async def run(self) -> SessionEnd:
        """Until the stream ends. Raises what the coordinator refuses with, or `UnreachableError`."""
        responses = self._channel.stream(SESSION, self._requests())
        beating: asyncio.Task[None] | None = None
        try:
            welcome = await _next(responses, WELCOME_SECONDS_MAX)
            if welcome is None or welcome.HasField("closing"):
                return _end(welcome)
            interval = heartbeat_seconds(welcome.welcome)
            beating = asyncio.create_task(self._beat_for_ever(interval))
            self._on_welcome()
            while True:
                response = await _next(responses, SILENT_HEARTBEATS_MAX * interval)
                if response is None or response.HasField("closing"):
                    return _end(response)
                self.heard += 1
                await self._dispatch(response)
        finally:
            if beating is not None:
                beating.cancel()
            await responses.aclose()

    def _put(self, request: pb.SessionRequest | None) -> None:
        # A full outbox is a line that takes nothing any more: it will be found silent, and all is told again
        # in the next session.
        with contextlib.suppress(asyncio.QueueFull):
            self._outbox.put_nowait(request)

    async def _requests(self) -> AsyncIterator[pb.SessionRequest]:
        while (request := await self._outbox.get()) is not None:
            yield request

    async def _dispatch(self, response: pb.SessionResponse) -> None:
        match response.WhichOneof("message"):
            case "heartbeat_ack":
                while self._unsettled and self._unsettled[0][0] <= response.heartbeat_ack.sequence:
                    await self._unsettled.popleft()[1]()
            case "offer":
                await self._handler.offer(response.offer)
            case "cancel":
                await self._handler.cancel(response.cancel.assignment_id, response.cancel.reason)
            case "run_ended":
                await self._handler.run_ended(response.run_ended.run_id)
            case "restore":
                self._handler.restore(response.restore)
            case _:  # of a newer coordinator, and nothing that this side needs to know
                pass

    async def _beat_for_ever(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            self._beat()

    def _beat(self) -> None:
        self._sequence += 1
        self._put(pb.SessionRequest(heartbeat=pb.Heartbeat(sequence=self._sequence)))


def _sendable(report: pb.AssignmentReport) -> pb.AssignmentReport:
    """A report that the coordinator would not take, and end the session for, becomes one of that."""
    size = report.ByteSize()
    if size <= REPORT_BYTES_MAX:
        return report
    error = UsageError(
        "peer.report_too_large",
        f"the report has {size} bytes; at most {REPORT_BYTES_MAX} are told",
        cause=f"it has {len(report.metrics)} metrics, or very long names",
        fix="return fewer metrics from the task",
    )
    return reports.failed(report.assignment_id, error, retry=False)


def _end(last: pb.SessionResponse | None) -> SessionEnd:
    if last is None:
        return SessionEnd(reason="the stream has ended", reconnect=True)
    return SessionEnd(reason=last.closing.reason, reconnect=last.closing.reconnect)


async def _next(responses: AsyncIterator[pb.SessionResponse], seconds: float) -> pb.SessionResponse | None:
    """The next message, or None at the end of the stream."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(responses, None)
    except TimeoutError as error:
        raise UnreachableError(
            "session.silent",
            f"the coordinator has said nothing for {seconds:.1f} s",
            cause="it has stopped, or the network between swallows everything",
            fix="nothing to do here: the peer connects again by itself",
        ) from error
