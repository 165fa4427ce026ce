"""Bodies of any size over a `Channel`: in chunks, resumable, never complete before their digest says so.

The receiving side of both directions is `PartialBody`, the sending side `read_chunks`. `fetch` and `upload`
are the two loops around them: they resume where the other side stands, after a break of either side, until
all is there or their time is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message

from muster.errors import (
    DeadlineError,
    MusterError,
    OffsetError,
    TransferError,
    UnreachableError,
)
from muster.files.digests import CHUNK_BYTES
from muster.files.disk import disk_threads, replace_durably, storage_error
from muster.runtime.backoff import Backoff
from muster.transfer.chunks import CHUNK_BYTES_MIN, read_chunks
from muster.transfer.partial import PartialBody
from muster.transport.base import Channel, Encoded, Method
from muster.wire import BEGIN_UPDATE, COMMIT_UPDATE, UPLOAD_UPDATE
from protos.v1.models_pb2 import FetchModelResponse
from protos.v1.tensors_pb2 import BlobHeader
from protos.v1.updates_pb2 import (
    BeginUpdateRequest,
    CommitUpdateRequest,
    Receipt,
    UploadUpdateRequest,
)

__all__ = ["PartialBody", "Tail", "fetch", "read_chunks", "upload"]

Request = TypeVar("Request", bound=Message)
Result = TypeVar("Result")
OnProgress = Callable[[int, int], None]  # bytes that are there, bytes in all

CALL_SECONDS_MAX = 30.0  # one unary call, and the longest silence within a stream; less if less time is left
_DIGEST_ATTEMPTS = 2  # a body that was damaged twice is wrong at its source

# What the next attempt can mend; any other error is for the caller.
_TRANSIENT = frozenset({
    "transfer.offset", "transfer.checksum", "transfer.truncated", "transfer.stalled", "transfer.nothing_held",
    "transfer.digest", "transfer.unanswered", "transfer.crowded", "transport.silent",
})  # fmt: skip
# The other side's disk or spool; a full one here is reported at once.
_TRANSIENT_THERE = _TRANSIENT | {"storage.disk_full", "storage.spool_full"}


class Stride:
    """How large the chunks are. Over a line so slow that a whole one does not come in the time that a receiver waits
    for a message, smaller ones do."""

    def __init__(self) -> None:
        self.chunk_bytes = CHUNK_BYTES

    def shrink(self) -> None:
        self.chunk_bytes = max(self.chunk_bytes // 4, CHUNK_BYTES_MIN)

    def ask(self, request: Message) -> None:
        """For the sender to keep to, where the request has a field for it."""
        if self.chunk_bytes < CHUNK_BYTES and "chunk_bytes_max" in request.DESCRIPTOR.fields_by_name:
            setattr(request, "chunk_bytes_max", self.chunk_bytes)  # noqa: B010  # a field of some messages


async def fetch(
    channel: Channel,
    method: Method[Request, Any],
    request_at: Callable[[int], Request],
    target: Path,
    *,
    timeout_seconds: float,
    digest: str | None = None,
    size: range | None = None,
    durable: bool = True,
    backoff: Backoff | None = None,
    on_progress: OnProgress | None = None,
    tail: Tail | None = None,
) -> BlobHeader:
    """Brings a body to `target`: whole, verified and durable, or not at all.

    Without `durable` nothing is synced, for what can be fetched again: a caller that finds such a file after a
    restart verifies its digest before use.

    `method` streams messages with a `header`, then `chunk`s; `request_at` asks for them from an offset. What
    has come lies in `target.partial` meanwhile, and a later call goes on from there. `digest` is the body
    that is wanted and `size` has the bytes that it may have, where the caller knows them: another one is refused
    ("transfer.unexpected_body"). No more than the header announces is ever written. `tail` is how the body ends if
    it is as long as another that is here: the first attempt takes that from there; the digest tells if it was so.

    Raises `DeadlineError` "transfer.deadline" (its cause is the last attempt's error), `StorageError`, and
    whatever the other side refuses with.
    """
    partial = target.with_name(target.name + ".partial")
    stride = Stride()
    tails = [] if tail is None else [tail]

    async def attempt(progress: Callable[[int, int], None], seconds_left: float) -> BlobHeader:
        known = tails.pop() if tails else None
        held = await _on_disk(_held, partial)
        request = request_at(held)
        stride.ask(request)
        if known is not None:
            known.ask(request)
        async with aclosing(channel.stream(method, _only(request), timeout_seconds=seconds_left)) as stream:
            header: BlobHeader = (await _next_within(stream, CALL_SECONDS_MAX, waits=True)).header
            _check_wanted(header, digest, size)
            body = await _on_disk(lambda: PartialBody.open(partial, header, durable=durable))
            try:
                if header.offset != body.offset:
                    body.remove()  # of another body, or the other side cannot start there: from nothing then
                    raise OffsetError("transfer.offset", f"asked for offset {held}, got {header.offset}")
                starts = header.size_bytes if known is None else known.start(header.size_bytes)
                while (message := await _next_within(stream, CALL_SECONDS_MAX)) is not None:
                    await body.write(message.chunk)
                    progress(body.offset, header.size_bytes)
                    if starts < header.size_bytes and body.offset >= starts:
                        break
                if known is not None and starts <= body.offset < header.size_bytes:
                    await _append(body, known.path)
                await body.complete()
            finally:
                body.close()
        await _on_disk(_take_over, body, target, durable)
        return header

    return await _until_done(
        attempt,
        timeout_seconds,
        backoff=backoff,
        on_progress=on_progress,
        what=f"fetching {target.name}",
        transient=_TRANSIENT,
        stride=stride,
    )


@dataclass(frozen=True)
class Tail:
    """The last `size` bytes of a file that is here."""

    path: Path
    size: int

    def ask(self, request: Message) -> None:
        """That no more is sent than what they do not have, where the request has a field for it."""
        if "stop" in request.DESCRIPTOR.fields_by_name:
            setattr(request, "stop", self.start(self.path.stat().st_size))  # noqa: B010  # a field of some messages

    def start(self, whole: int) -> int:
        """Where they begin in a body of so many bytes, which is another length's end if the file is not as long."""
        return whole - self.size if self.path.stat().st_size == whole else whole


async def _append(body: PartialBody, path: Path) -> None:
    """What the body still lacks, as it stands in the file."""
    async with aclosing(read_chunks(path, body.offset)) as chunks:
        async for chunk in chunks:
            await body.write(FetchModelResponse.FromString(chunk.SerializeToString()).chunk)


async def upload(
    channel: Channel,
    begin: BeginUpdateRequest,
    path: Path,
    *,
    timeout_seconds: float,
    backoff: Backoff | None = None,
    on_progress: OnProgress | None = None,
) -> Receipt:
    """Brings the update in `path`, which `begin.header` describes, to the coordinator and returns its
    receipt.

    Called again after any interruption it goes on where the coordinator stands; an update that was committed
    before gets the same receipt.

    Raises `DeadlineError` "transfer.deadline" (its cause is the last attempt's error), `StorageError` if
    `path` cannot be read, and whatever the coordinator refuses with (`UpdateRejected`, `StateError`...).
    """
    header = begin.header
    stride = Stride()

    async def attempt(progress: Callable[[int, int], None], seconds_left: float) -> Receipt:
        call_seconds = min(CALL_SECONDS_MAX, seconds_left)
        answer = await channel.unary(BEGIN_UPDATE, begin, timeout_seconds=call_seconds)
        if answer.HasField("receipt"):
            return answer.receipt
        offset = answer.offset
        progress(offset, header.size_bytes)
        if offset < header.size_bytes:
            requests = _upload_requests(begin, path, offset, progress, stride.chunk_bytes)
            async with aclosing(
                channel.stream(UPLOAD_UPDATE, requests, timeout_seconds=seconds_left)
            ) as stream:
                offset = (await _next_within(stream, seconds_left, waits=True)).offset
        progress(offset, header.size_bytes)
        if offset < header.size_bytes:
            raise TransferError("transfer.truncated", f"{offset} of {header.size_bytes} bytes have come")
        commit = CommitUpdateRequest(
            credentials=begin.credentials, assignment_id=header.assignment_id, digest=header.digest
        )
        committed = await channel.unary(COMMIT_UPDATE, commit, timeout_seconds=seconds_left)
        return committed.receipt

    return await _until_done(
        attempt,
        timeout_seconds,
        backoff=backoff,
        on_progress=on_progress,
        what=f"uploading {path.name}",
        transient=_TRANSIENT_THERE,
        stride=stride,
    )


async def _until_done(
    attempt: Callable[[OnProgress, float], Awaitable[Result]],
    timeout_seconds: float,
    *,
    backoff: Backoff | None,
    on_progress: OnProgress | None,
    what: str,
    transient: frozenset[str],
    stride: Stride,
) -> Result:
    """Attempts until one succeeds, time is over or an error is none that another attempt can mend."""
    backoff = backoff or Backoff()
    clock = asyncio.get_running_loop().time
    due = clock() + timeout_seconds
    there, in_all, damaged = 0, 0, 0
    last: MusterError | None = None

    def progress(count: int, total: int) -> None:
        nonlocal there, in_all
        if count > there:
            backoff.reset()
        there, in_all = count, total
        if on_progress is not None:
            on_progress(count, total)

    while (left := due - clock()) > 0:
        try:
            async with asyncio.timeout(left):
                return await attempt(progress, left)
        except TimeoutError:
            break
        except MusterError as error:
            damaged += error.id == "transfer.digest"
            if not _is_transient(error, transient) or damaged >= _DIGEST_ATTEMPTS:
                raise
            if error.id == "transfer.stalled":
                stride.shrink()
            last = error
        await asyncio.sleep(min(backoff.next_delay(), max(0.0, due - clock())))
    raise DeadlineError(
        "transfer.deadline",
        f"{what} was not done within {timeout_seconds:.0f} s: {there} of {in_all} bytes are there",
        cause=str(last) if last else "the connection is too slow",
        fix="try again: it goes on from there",
    )


def _is_transient(error: MusterError, transient: frozenset[str]) -> bool:
    if error.id == "transport.closed":
        return False
    return isinstance(error, UnreachableError | DeadlineError) or error.id in transient


async def _upload_requests(
    begin: BeginUpdateRequest, path: Path, offset: int, progress: OnProgress, chunk_bytes: int
) -> AsyncGenerator[UploadUpdateRequest | Encoded, None]:
    yield UploadUpdateRequest(begin=begin)
    async with aclosing(read_chunks(path, offset, chunk_bytes)) as chunks:
        async for chunk in chunks:
            yield chunk
            progress(chunk.offset + chunk.size, begin.header.size_bytes)


async def _only(request: Request) -> AsyncGenerator[Request, None]:
    yield request


async def _next_within(stream: AsyncGenerator[Any, None], seconds: float, *, waits: bool = False) -> Any:
    """The next message, or None at the end. One that `waits`, perhaps for its turn, has to come, and its silence says
    nothing of the line."""
    try:
        async with asyncio.timeout(seconds):
            message = await anext(stream, None)
    except TimeoutError:
        error_id = "transfer.unanswered" if waits else "transfer.stalled"
        raise TransferError(error_id, f"nothing came for {seconds:.0f} s") from None
    if message is None and waits:
        raise TransferError("transfer.truncated", "the stream ended without a message")
    return message


async def _on_disk(work: Callable[..., Result], *arguments: Any) -> Result:
    return await asyncio.get_running_loop().run_in_executor(disk_threads(), work, *arguments)


def _held(partial: Path) -> int:
    try:
        body = PartialBody.reopen(partial)
    except FileNotFoundError:
        return 0
    body.close()
    return body.offset


def _check_wanted(header: BlobHeader, digest: str | None, size: range | None) -> None:
    if digest is not None and header.digest != digest:
        asked, offered = f"the body {digest[:16]}…", f"{header.digest[:16]}…"
    elif size is not None and header.size_bytes not in size:
        asked = f"{size[0]} to {size[-1]} bytes" if len(size) > 1 else f"{size[0]} bytes"
        offered = f"{header.size_bytes}"
    else:
        return
    raise TransferError(
        "transfer.unexpected_body",
        f"asked for {asked}, was offered {offered}",
        cause="the other side does not keep what it announced",
    )


def _take_over(body: PartialBody, target: Path, durable: bool) -> None:
    try:
        if durable:
            replace_durably(body.path, target)
        else:
            body.path.replace(target)
    except OSError as error:
        raise storage_error(target, error) from error
    body.remove()  # what is left of it: the header
