"""One call of the in-memory transport: a pipe each way and the task that serves it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from google.protobuf.message import Message

from muster.errors import MusterError, TransferError, UnreachableError
from muster.transport._dispatch import Dispatcher
from muster.transport._pipe import Pipe, PipeCutError
from muster.transport.base import MESSAGE_BYTES_MAX, CallContext, Encoded, Route
from muster.transport.errors import pack_error, unpack_error
from muster.transport.faults import FaultHook, Passage
from protos.v1.errors_pb2 import ErrorDetail

Calls = dict["MemoryCall", None]  # in the order in which they began

_PIPE_MESSAGES = 2  # in flight each way; enough that both sides work at once, few enough to bound memory


class MemoryCall:
    """`members` are the calls under way (of a connection, of a server...) that it enters and leaves. The
    first is its connection: a fault that drops it breaks off all of its calls."""

    def __init__(
        self,
        *,
        address: str,
        connection: str,
        caller: str,
        callee: str,
        route: Route,
        dispatcher: Dispatcher,
        headers: dict[str, str],
        faults: FaultHook,
        members: tuple[Calls, ...],
    ) -> None:
        self.requests = Pipe(_PIPE_MESSAGES)
        self._responses = Pipe(_PIPE_MESSAGES)
        self.bodies = self.requests.messages()
        self._address = address
        self.caller, self.callee = caller, callee
        self._route = route
        self._dispatcher = dispatcher
        self.context = CallContext(address=connection, headers=headers)
        self._faults = faults
        self._members = members
        self._written = 0
        self._failure: Exception | None = None  # what the requests raised
        for calls in members:
            calls[self] = None
        self.task = asyncio.create_task(self._serve())

    # -- the caller's side -----------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """A call that has ended is no error here: its receiver learns why."""
        with contextlib.suppress(PipeCutError):
            await self._carry(message.SerializeToString(), to_server=True, index=0)

    async def send_all(self, requests: AsyncIterator[Message | Encoded]) -> None:
        """Sends, then half-closes. What `requests` raises is raised by `receive`."""
        try:
            index = 0
            async for request in requests:
                await self._carry(request.SerializeToString(), to_server=True, index=index)
                index += 1
            self.requests.end()
        except PipeCutError:
            pass
        except Exception as error:
            self._failure = error
            self.break_off("its requests failed")
        finally:
            if close := getattr(requests, "aclose", None):
                with contextlib.suppress(RuntimeError):  # it is running: another task closes it
                    await close()

    async def receive(self) -> bytes | None:
        try:
            return await self._responses.receive()
        except MusterError:
            if self._failure is not None:
                raise self._failure from None
            raise

    async def leave(self) -> None:
        """Cancels what is still under way and waits until the handler has let go."""
        if not self.task.done():
            self.requests.cut()
            self.task.cancel()
            await asyncio.wait([self.task])

    # -- both sides ------------------------------------------------------------------------------------------

    def break_off(self, cause: str) -> None:
        """As a lost connection: the caller gets an error; the handler sees its requests end as if all had
        come, and is cancelled at its next await."""
        self._responses.cut(self.broken(cause))
        self.requests.cut()
        asyncio.get_running_loop().call_soon(self.task.cancel)

    def broken(self, cause: str) -> UnreachableError:
        return UnreachableError(
            "transport.broken", f"{self._route.method.name} at {self._address} was broken off", cause=cause
        )

    async def _carry(self, body: bytes, *, to_server: bool, index: int) -> None:
        passage = Passage(
            address=self._address,
            caller=self.caller,
            callee=self.callee,
            method=self._route.method,
            to_server=to_server,
            index=index,
        )
        if fault := self._faults(passage):
            if fault.delay_seconds > 0:
                await asyncio.sleep(fault.delay_seconds)
            if fault.drop:
                for call in list(self._members[0]):
                    call.break_off("the connection was lost")
                raise PipeCutError
        if len(body) > MESSAGE_BYTES_MAX:
            error = TransferError(
                "transport.message_too_large",
                f"{self._route.method.name} at {self._address} was refused by the transport's limits",
                cause=f"a message has {len(body)} bytes, at most {MESSAGE_BYTES_MAX} may be sent",
            )
            self._responses.cut(error)
            self.requests.cut()
            raise PipeCutError
        await (self.requests if to_server else self._responses).send(body)

    # -- the server's side -----------------------------------------------------------------------------------

    async def _serve(self) -> None:
        try:
            await self._dispatcher.serve(self._route, self)
            self._responses.end()
        finally:
            self._responses.cut(self.broken("its handler was cancelled"))
            self.requests.cut()
            for calls in self._members:
                calls.pop(self, None)
            with contextlib.suppress(RuntimeError):  # a reader of the handler's is at it, and ends it
                await self.bodies.aclose()  # here and not whenever memory is cleaned up

    async def write(self, body: bytes) -> bool:
        try:
            await self._carry(body, to_server=False, index=self._written)
        except PipeCutError:
            return False
        self._written += 1
        return True

    async def refuse(self, error: MusterError) -> None:
        detail = ErrorDetail.FromString(pack_error(error).SerializeToString())
        self._responses.end(unpack_error(detail))
