"""The serving half that both transports share: bytes in, bytes out, and nothing refused with but `MusterError`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any, Protocol, cast
from weakref import WeakValueDictionary

from google.protobuf.message import DecodeError, Message

from muster.errors import DeadlineError, MusterError, NotAllowedError, TransferError, UsageError
from muster.transport._counts import Counts
from muster.transport._entrance import Entrance
from muster.transport._pace import Pace
from muster.transport._turns import Turn, Turns
from muster.transport.base import CallContext, Encoded, Method, Route, StreamHandler, UnaryHandler
from muster.transport.errors import as_muster_error
from muster.transport.handshake import refuse_version
from muster.transport.identity import ANONYMOUS, Identity
from muster.transport.limits import Limits


class ServerCall(Protocol):
    """One call as a transport carries it."""

    context: CallContext
    bodies: AsyncGenerator[bytes, None]  # nothing is read before it is asked for

    async def write(self, body: bytes) -> bool:
        """Returns when flow control has let it out; False if the caller has gone."""
        ...

    async def refuse(self, error: MusterError) -> None:
        """May wait for a caller that reads nothing."""
        ...


class Dispatcher:
    """Carries each call to its route's handler, within the limits.

    What a call may take grows with what is known of it. At first it has a place at the entrance, where it says what it
    wants; a bulk call then is told apart by its caller (`Route.identify`), waits for one of that caller's turns and for
    one of all turns, unread, so that flow control holds its sender, and loses it if it falls below the least pace, or
    below a fair one while others wait. Bulk calls of who is not at work here have turns of their own, by connection.
    """

    def __init__(self, routes: Sequence[Route], *, protocol: int, limits: Limits) -> None:
        self.routes = {route.method.path: route for route in routes}
        self._protocol = protocol
        self._limits = limits
        self._counts = Counts(limits)
        self._entrance = Entrance(limits)
        self._turns = Turns(limits.bulk_calls_max, limits)
        self._turns_of_strangers = Turns(max(1, limits.bulk_calls_max // 4), limits)
        self._turns_of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def serve(self, route: Route, call: ServerCall) -> None:
        async with AsyncExitStack() as kept:  # until the call has left, which one that reads nothing puts off
            if (refusal := await self._refused(route, call, kept)) is not None:
                await call.refuse(refusal)

    async def _refused(self, route: Route, call: ServerCall, kept: AsyncExitStack) -> MusterError | None:
        """Without the frames that the error came through, which hold the request: an exception refers to itself by
        them, so all that they hold would stay until the next full garbage collection."""
        try:
            await self._answered(route, call, kept)
        except Exception as error:
            refusal = as_muster_error(error, route.method.path)
            refusal.__cause__ = refusal.__context__ = None
            return refusal.with_traceback(None)
        return None

    async def _answered(self, route: Route, call: ServerCall, kept: AsyncExitStack) -> None:
        method = route.method
        if not method.any_caller and (refusal := refuse_version(call.context.headers, self._protocol)):
            raise refusal
        async with self._entrance.place(call.context.address):
            body = await anext(call.bodies, None)
        if body is None and not method.client_streams:
            raise UsageError("transport.no_request", f"{method.path} was called without a request")
        first = None if body is None else decode(method, body)
        identity = _identified(route, first)
        context = replace(call.context, identity=identity)
        caller, connection = identity.name, call.context.address
        size = 0 if body is None else len(body)
        place = kept.enter_context(
            self._counts.one(method, known=bool(caller), connection=connection, size=size)
        )
        if not method.bulk:
            async with place.held():
                await self._carry_out(route, call, context, first, None)
            return
        at_work = bool(caller) and (route.present is None or route.present(caller))
        await kept.enter_async_context(self._own_turns(caller if at_work else connection))
        async with (self._turns if at_work else self._turns_of_strangers).one() as turn:
            await self._carry_out(route, call, context, first, turn)

    def _own_turns(self, caller: str) -> asyncio.Semaphore:
        turns = self._turns_of.get(caller)
        if turns is None:
            turns = self._turns_of[caller] = asyncio.Semaphore(self._limits.bulk_calls_of_caller_max)
        return turns

    async def _carry_out(
        self, route: Route, call: ServerCall, context: CallContext, first: Any | None, turn: Turn | None
    ) -> None:
        method = route.method
        pace = Pace(self._limits, "reads", whole=not method.bulk, turn=turn)
        if not (method.client_streams or method.server_streams):
            await self._write(call, encode(method.response, await self._answer(route, context, first)), pace)
            return
        count = 0
        async with aclosing(self._requests(method, first, call.bodies, turn)) as requests:
            answers = cast("StreamHandler", route.handle)(requests, context)
            async with aclosing(cast("AsyncGenerator[Any, None]", answers)) as responses:
                async for response in responses:
                    count += 1
                    if not await self._write(call, encode(method.response, response), pace):
                        return
        if not method.server_streams and count != 1:
            raise RuntimeError(f"the handler of {method.path} gave {count} answers instead of one")

    async def _answer(self, route: Route, context: CallContext, first: Any) -> Any:
        timeout = asyncio.timeout(self._limits.answer_seconds_max)
        try:
            async with timeout:
                return await cast("UnaryHandler", route.handle)(first, context)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise DeadlineError(
                "transport.deadline",
                f"{route.method.name} was not done within {self._limits.answer_seconds_max:.0f} s and was given up",
            ) from None

    async def _write(self, call: ServerCall, body: bytes, pace: Pace) -> bool:
        pace.count(len(body))
        return await pace.wait(call.write(body))

    async def _requests(
        self, method: Method[Any, Any], first: Any | None, bodies: AsyncIterator[bytes], turn: Turn | None
    ) -> AsyncGenerator[Any, None]:
        if first is None:
            return
        yield first
        if not method.client_streams:
            return
        pace = Pace(self._limits, "sends", turn=turn)
        while True:
            step = anext(bodies, None)
            body = await (pace.wait(step) if method.bulk else step)  # a session may have nothing to say
            if body is None:
                return
            pace.count(len(body))
            yield decode(method, body)


def _identified(route: Route, first: Any | None) -> Identity:
    """Who calls. Raises `NotAllowedError` "transport.not_allowed" if the route is not for such a caller."""
    identity = ANONYMOUS if route.identify is None or first is None else route.identify(first)
    if identity.role not in route.allows:
        allowed = " or ".join(sorted(route.allows)) or "nobody"
        raise NotAllowedError(
            "transport.not_allowed",
            f"{route.method.path} is not for a caller in the role {identity.role!s}",
            cause=f"it may be called by: {allowed}",
            fix="call it with the credentials of somebody who may",
        )
    return identity


def decode(method: Method[Any, Any], body: bytes) -> Any:
    """A request."""
    if len(body) > method.request_bytes_max:
        raise TransferError(
            "transport.message_too_large",
            f"a message to {method.path} has {len(body)} bytes",
            cause=f"at most {method.request_bytes_max} are taken there",
        )
    return parse(method.request, body)


def parse(kind: type[Message], body: bytes) -> Any:
    """Raises `UsageError` "transport.malformed_message" if the bytes are no message of this kind."""
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise UsageError(
            "transport.malformed_message",
            f"{len(body)} bytes are no {kind.DESCRIPTOR.full_name}",
            cause=str(error),
        ) from None


def encode(kind: type[Message], message: Any) -> bytes:
    """Raises `TypeError` if the message is of another kind, which is a defect of the service."""
    if not isinstance(message, (kind, Encoded)):
        raise TypeError(f"expected a {kind.DESCRIPTOR.full_name}, not {type(message).__name__}")
    return message.SerializeToString()
