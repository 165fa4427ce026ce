"""The one seam between Muster and a network.

A `Method` names a remote procedure and its two protobuf types; `METHODS` in `muster.wire` lists them all.
Every procedure, unary or streaming, is at heart "messages in, messages out", so a handler and a channel have
two forms each.

Implementations: `GrpcTransport` (production) and `MemoryTransport` (public, for users' own tests: real
protobuf bytes, no socket). Peer-to-peer calls go through the same seam: a peer serves and connects like
anybody else.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import Message

from muster.transport.identity import ANONYMOUS, Identity, Role

MESSAGE_BYTES_MAX = 4 << 20  # a chunk has 1 MiB; gRPC's own default, stated for both directions

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, kw_only=True)
class Method(Generic[Request, Response]):
    """One remote procedure. `bulk` ones carry chunks and go over a connection of their own, so that a slow
    upload never delays a heartbeat. A request has at most `request_bytes_max` bytes. `any_caller` is for what others
    than Muster call, which tell no version."""

    service: str  # "muster.v1.UpdatesService"
    name: str  # "UploadUpdate"
    request: type[Request]
    response: type[Response]
    client_streams: bool = False
    server_streams: bool = False
    bulk: bool = False
    request_bytes_max: int = MESSAGE_BYTES_MAX
    any_caller: bool = False

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"


class Encoded:
    """A message that is in its wire form already; a stream may give it in place of the message itself.

    For chunks: building 1 MiB of protobuf in Python and serialising it costs ten times what moving it does.
    """

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body = body

    def SerializeToString(self) -> bytes:  # noqa: N802  # as messages have it
        return self._body


@dataclass(frozen=True, kw_only=True)
class CallContext:
    """What a handler knows of its caller."""

    address: str  # as the network sees it, for logs and limits
    headers: dict[str, str]
    identity: Identity = ANONYMOUS


UnaryHandler = Callable[[Any, CallContext], Awaitable[Any]]
StreamHandler = Callable[[AsyncIterator[Any], CallContext], AsyncIterator[Any]]


@dataclass(frozen=True, kw_only=True)
class Route:
    """A method and what answers it.

    `handle` is a `UnaryHandler` for a method that streams neither way, else a `StreamHandler` (an async
    generator; where only one side streams it is given, or gives, exactly one message). It raises
    `MusterError` to refuse.

    `allows` are the roles that may call it; by default nobody. `identify` finds from the first request who calls, and
    raises what such a request is refused with; without it every caller is anonymous. Callers with a name have room that
    strangers cannot take from them; `present` tells of a name whether it is at work here, and only then has it turns of
    its own for bulk calls.
    """

    method: Method[Any, Any]
    handle: UnaryHandler | StreamHandler
    allows: frozenset[Role] = frozenset()
    identify: Callable[[Any], Identity] | None = None
    present: Callable[[str], bool] | None = None


class Channel(Protocol):
    """A connection to one other process; it connects on first use and again after a loss.

    Every call raises the `MusterError` that the handler raised, or `UnreachableError`, `DeadlineError` or
    `VersionError` of its own.
    """

    async def unary(
        self, method: Method[Request, Response], request: Request, *, timeout_seconds: float
    ) -> Response: ...

    def stream(
        self,
        method: Method[Request, Response],
        requests: AsyncIterator[Request | Encoded],
        *,
        timeout_seconds: float | None = None,
    ) -> AsyncGenerator[Response, None]:
        """For every method that streams on either side. Closing the iterator (`aclose`) cancels the call.

        The call starts with the first `anext`. `requests` is closed with it, and what it raises is raised
        here.
        """
        ...

    async def close(self) -> None: ...


class Server(Protocol):
    """A server that listens."""

    @property
    def address(self) -> str:
        """host:port that was bound (port 0 asks for a free one)."""
        ...

    async def stop(self, grace_seconds: float) -> None: ...


class Transport(Protocol):
    """How sides reach each other: gRPC, or memory."""

    async def serve(self, address: str, routes: Sequence[Route]) -> Server:
        """Raises `ConfigError` `transport.address_not_loopback`, `transport.port_in_use`."""
        ...

    def connect(self, address: str) -> Channel: ...
