"""Fetch and upload against a small coordinator: over both transports, through breaks, damage and lies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest

from muster.errors import (
    DeadlineError,
    MusterError,
    NotFoundError,
    OffsetError,
    StorageError,
    TransferError,
    UnreachableError,
    UpdateRejected,
)
from muster.files.digests import CHUNK_BYTES, checksum, digest_bytes
from muster.files.disk import storage_error
from muster.runtime.backoff import Backoff
from muster.seeds import derive_random
from muster.transfer.partial import PartialBody
from muster.transfer.streams import Tail, fetch, read_chunks, upload
from muster.transport import Channel, GrpcTransport, MemoryTransport, Route
from muster.transport.faults import SeededFaults
from muster.transport.identity import EVERYBODY
from muster.transport.memory import MemoryHub
from muster.wire import BEGIN_UPDATE, COMMIT_UPDATE, FETCH_MODEL, UPLOAD_UPDATE
from protos.v1 import admin_pb2, models_pb2, updates_pb2
from protos.v1.tensors_pb2 import BlobHeader, Chunk
from simulator.proxy import ChaosProxy, Link

BODY = derive_random("transfer").randbytes(6 * CHUNK_BYTES + 4321)
DIGEST = digest_bytes(BODY)


class Coordinator:
    """Serves one model and takes one update, as plainly as can be. `meddle` changes what goes out or comes in."""

    def __init__(self, folder: Path) -> None:
        self.model = folder / "model"
        self.model.write_bytes(BODY)
        self.held = folder / "held"
        self.asked: list[int] = []  # offsets that were asked for, or uploaded from
        self.stops: list[int] = []
        self.commits = 0
        self.receipt: updates_pb2.Receipt | None = None
        self.refusals: list[MusterError] = []  # raised by the next calls, first of all

    def meddle(self, chunk: Chunk) -> Chunk:
        return chunk

    def routes(self) -> list[Route]:
        return [
            Route(allows=EVERYBODY, method=FETCH_MODEL, handle=self.fetch_model),
            Route(allows=EVERYBODY, method=BEGIN_UPDATE, handle=self.begin),
            Route(allows=EVERYBODY, method=UPLOAD_UPDATE, handle=self.upload),
            Route(allows=EVERYBODY, method=COMMIT_UPDATE, handle=self.commit),
        ]

    def refuse(self) -> None:
        if self.refusals:
            raise self.refusals.pop(0)

    async def fetch_model(self, requests: Any, context: Any) -> AsyncGenerator[models_pb2.FetchModelResponse]:
        request = await anext(requests)
        self.asked.append(request.offset)
        self.stops.append(request.stop)
        self.refuse()
        header = BlobHeader(size_bytes=len(BODY), digest=DIGEST, offset=request.offset)
        yield models_pb2.FetchModelResponse(header=header)
        async for chunk in read_chunks(self.model, request.offset):
            message = models_pb2.FetchModelResponse.FromString(chunk.SerializeToString())
            yield models_pb2.FetchModelResponse(chunk=self.meddle(message.chunk))

    async def begin(self, request: Any, context: Any) -> updates_pb2.BeginUpdateResponse:
        self.refuse()
        body = PartialBody.open(self.held, request.header)
        body.close()
        return updates_pb2.BeginUpdateResponse(offset=body.offset, receipt=self.receipt)

    async def upload(self, requests: Any, context: Any) -> AsyncGenerator[updates_pb2.UploadUpdateResponse]:
        self.refuse()
        body = PartialBody.open(self.held, (await anext(requests)).begin.header)
        self.asked.append(body.offset)
        try:
            async for request in requests:
                await body.write(self.meddle(request.chunk))
            await body.sync()
            yield updates_pb2.UploadUpdateResponse(offset=body.offset)
        finally:
            body.close()

    async def commit(self, request: Any, context: Any) -> updates_pb2.CommitUpdateResponse:
        self.refuse()
        self.commits += 1
        body = PartialBody.reopen(self.held)
        try:
            await body.complete()
        finally:
            body.close()
        self.receipt = updates_pb2.Receipt(assignment_id=request.assignment_id, digest=request.digest)
        return updates_pb2.CommitUpdateResponse(receipt=self.receipt)


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    (tmp_path / "coordinator").mkdir()
    return Coordinator(tmp_path / "coordinator")


@pytest.fixture(params=["grpc", "memory"])
async def channel(request: pytest.FixtureRequest, coordinator: Coordinator) -> AsyncGenerator[Channel]:
    transport = GrpcTransport() if request.param == "grpc" else MemoryTransport()
    server = await transport.serve("127.0.0.1:0", coordinator.routes())
    channel = transport.connect(server.address)
    yield channel
    await channel.close()
    await server.stop(0)


@pytest.fixture
def body_path(tmp_path: Path) -> Path:
    path = tmp_path / "update"
    path.write_bytes(BODY)
    return path


@pytest.fixture
def begin() -> updates_pb2.BeginUpdateRequest:
    header = BlobHeader(size_bytes=len(BODY), digest=DIGEST, assignment_id="a1")
    return updates_pb2.BeginUpdateRequest(header=header)


def quickly(seed: int = 1) -> Backoff:
    return Backoff(Random(seed), delay_seconds_min=0.001, delay_seconds_max=0.01)


def request_at(offset: int) -> models_pb2.FetchModelRequest:
    return models_pb2.FetchModelRequest(digest=DIGEST, offset=offset)


async def fetch_to(channel: Channel, target: Path, **options: Any) -> BlobHeader:
    options = {"timeout_seconds": 30.0, "digest": DIGEST, "backoff": quickly()} | options
    return await fetch(channel, FETCH_MODEL, request_at, target, **options)


# -- the file that is sent -----------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, CHUNK_BYTES, len(BODY) - 1, len(BODY)])
@pytest.mark.parametrize(
    "kind", [models_pb2.FetchModelResponse, admin_pb2.PullModelResponse, updates_pb2.UploadUpdateRequest]
)
async def test_chunks_cover_the_file_from_the_offset(body_path, offset, kind):
    position = offset
    async for encoded in read_chunks(body_path, offset):
        chunk = kind.FromString(encoded.SerializeToString()).chunk
        assert (chunk.offset, len(chunk.data)) == (encoded.offset, encoded.size)
        assert chunk.offset == position
        assert 0 < len(chunk.data) <= CHUNK_BYTES
        assert chunk.crc32c == checksum(chunk.data)
        assert chunk.data == BODY[position : position + len(chunk.data)]
        position += len(chunk.data)
    assert position == len(BODY)


async def test_a_file_that_does_not_reach_so_far_or_is_not_there(body_path):
    with pytest.raises(OffsetError) as caught:
        await anext(read_chunks(body_path, len(BODY) + 1))
    assert caught.value.fields["offset"] == str(len(BODY))
    with pytest.raises(StorageError) as missing:
        await anext(read_chunks(body_path.with_name("nothing"), 0))
    assert missing.value.id == "storage.failed"


async def test_a_file_that_shrinks_while_it_is_read_is_an_error(body_path):
    chunks = read_chunks(body_path, 0)
    await anext(chunks)
    with body_path.open("r+b") as file:
        file.truncate(CHUNK_BYTES)
    with pytest.raises(StorageError, match="shorter"):
        async for _ in chunks:
            pass


# -- undisturbed ---------------------------------------------------------------------------------------------


async def test_fetch(channel, coordinator, tmp_path):
    progress: list[tuple[int, int]] = []
    target = tmp_path / "model"
    header = await fetch_to(channel, target, on_progress=lambda *there: progress.append(there))
    assert target.read_bytes() == BODY
    assert (header.digest, coordinator.asked) == (DIGEST, [0])
    assert progress == sorted(progress)
    assert progress[-1] == (len(BODY), len(BODY))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model"]


async def test_upload_and_again(channel, coordinator, begin, body_path):
    progress: list[tuple[int, int]] = []
    receipt = await upload(
        channel, begin, body_path, timeout_seconds=30, on_progress=lambda *there: progress.append(there)
    )
    assert receipt.digest == DIGEST
    assert coordinator.held.read_bytes() == BODY
    assert progress[-1] == (len(BODY), len(BODY))
    assert await upload(channel, begin, body_path, timeout_seconds=30) == receipt
    assert coordinator.commits == 1


# -- resumed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [0, 1], ids=["as here", "otherwise"])
async def test_fetch_takes_from_here_what_is_here(channel, coordinator, tmp_path, damage):
    """All but two chunks; where it proves another, they are fetched after all."""
    here = tmp_path / "older"
    here.write_bytes(bytes(len(BODY)) if damage else BODY)
    target = tmp_path / "target"
    await fetch_to(channel, target, tail=Tail(here, len(BODY) - 2 * CHUNK_BYTES))
    assert target.read_bytes() == BODY
    assert coordinator.asked == [0] * (1 + damage)
    assert coordinator.stops == [2 * CHUNK_BYTES] + [0] * damage


async def test_fetch_leaves_a_tail_of_another_length_alone(channel, coordinator, tmp_path):
    here = tmp_path / "older"
    here.write_bytes(bytes(len(BODY) - 1))
    await fetch_to(channel, tmp_path / "target", tail=Tail(here, len(BODY) - 1))
    assert (tmp_path / "target").read_bytes() == BODY


async def test_fetch_goes_on_after_a_restart(channel, coordinator, tmp_path):
    held = 2 * CHUNK_BYTES + 17
    body = PartialBody.open(tmp_path / "model.partial", BlobHeader(size_bytes=len(BODY), digest=DIGEST))
    while body.offset < held:
        data = BODY[body.offset : min(held, body.offset + CHUNK_BYTES)]
        await body.write(Chunk(offset=body.offset, data=data, crc32c=checksum(data)))
    body.close()
    await fetch_to(channel, tmp_path / "model")
    assert coordinator.asked == [held]
    assert (tmp_path / "model").read_bytes() == BODY


async def test_fetch_drops_what_is_left_of_another_body(channel, coordinator, tmp_path):
    body = PartialBody.open(tmp_path / "model.partial", BlobHeader(size_bytes=9, digest=digest_bytes(b"x")))
    await body.write(Chunk(offset=0, data=b"abc", crc32c=checksum(b"abc")))
    body.close()
    await fetch_to(channel, tmp_path / "model")
    assert coordinator.asked == [3, 0]
    assert (tmp_path / "model").read_bytes() == BODY


@pytest.mark.parametrize("seed", range(3))
async def test_upload_through_a_line_that_is_cut_again_and_again(coordinator, begin, body_path, seed):
    random = derive_random(seed, "cuts")
    cuts = [Link(cut_up_bytes=random.randrange(20_000, 2 * CHUNK_BYTES)) for _ in range(6)]
    async with AsyncExitStack() as stack:
        address = await served(stack, coordinator)
        proxy = await stack.enter_async_context(ChaosProxy(address, script=[*cuts, Link()], seed=seed))
        channel = GrpcTransport().connect(proxy.address)
        stack.push_async_callback(channel.close)
        receipt = await upload(channel, begin, body_path, timeout_seconds=60, backoff=quickly(seed))
        assert receipt.digest == DIGEST
        assert coordinator.held.read_bytes() == BODY
        assert proxy.accepted > 3
        assert coordinator.asked == sorted(coordinator.asked)  # each attempt began where the last had come to
        assert coordinator.asked[-1] > 0


@pytest.mark.parametrize("seed", range(3))
async def test_fetch_through_a_line_that_is_cut_again_and_again(coordinator, tmp_path, seed):
    random = derive_random(seed, "cuts")
    cuts = [Link(cut_down_bytes=random.randrange(20_000, 2 * CHUNK_BYTES)) for _ in range(6)]
    async with AsyncExitStack() as stack:
        address = await served(stack, coordinator)
        proxy = await stack.enter_async_context(ChaosProxy(address, script=[*cuts, Link()], seed=seed))
        channel = GrpcTransport().connect(proxy.address)
        stack.push_async_callback(channel.close)
        await fetch_to(channel, tmp_path / "model", timeout_seconds=60)
        assert (tmp_path / "model").read_bytes() == BODY
        assert proxy.accepted == 7
        assert coordinator.asked == sorted(coordinator.asked)
        assert coordinator.asked[-1] > 0


async def served(stack: AsyncExitStack, coordinator: Coordinator) -> str:
    server = await GrpcTransport().serve("127.0.0.1:0", coordinator.routes())
    stack.push_async_callback(server.stop, 0)
    return server.address


@pytest.mark.parametrize("seed", range(20))
async def test_both_ways_on_a_network_that_drops_connections(coordinator, begin, body_path, tmp_path, seed):
    hub = MemoryHub(faults=SeededFaults(seed, drop_probability=0.15))
    transport = MemoryTransport(hub)
    server = await transport.serve("c", coordinator.routes())
    channel = transport.connect("c")
    await fetch_to(channel, tmp_path / "model", timeout_seconds=60)
    assert (tmp_path / "model").read_bytes() == BODY
    receipt = await upload(channel, begin, body_path, timeout_seconds=60, backoff=quickly(seed))
    assert receipt.digest == DIGEST
    assert coordinator.held.read_bytes() == BODY
    await server.stop(0)


async def test_upload_survives_a_restart_of_the_coordinator(coordinator, begin, body_path):
    hub = MemoryHub()
    first = await MemoryTransport(hub).serve("c", coordinator.routes())
    halfway = asyncio.Event()

    def stop_halfway(chunk: Chunk) -> Chunk:
        if chunk.offset >= 3 * CHUNK_BYTES:
            halfway.set()
        return chunk

    coordinator.meddle = stop_halfway  # type: ignore[method-assign]
    channel = MemoryTransport(hub).connect("c")
    task = asyncio.create_task(upload(channel, begin, body_path, timeout_seconds=60, backoff=quickly()))
    await halfway.wait()
    await first.stop(0)
    second = await MemoryTransport(hub).serve("c", coordinator.routes())
    assert (await task).digest == DIGEST
    assert coordinator.held.read_bytes() == BODY
    assert coordinator.asked[0] == 0
    assert coordinator.asked[-1] >= 3 * CHUNK_BYTES
    await second.stop(0)


# -- damaged and refused -------------------------------------------------------------------------------------


async def test_a_flipped_bit_is_sent_again(channel, coordinator, begin, body_path, tmp_path):
    damaged: list[int] = []

    def flip_once(chunk: Chunk) -> Chunk:
        if chunk.offset == 2 * CHUNK_BYTES and len(damaged) < 1:
            damaged.append(chunk.offset)
            changed = bytes([chunk.data[0] ^ 1]) + chunk.data[1:]
            return Chunk(offset=chunk.offset, data=changed, crc32c=chunk.crc32c)
        return chunk

    coordinator.meddle = flip_once  # type: ignore[method-assign]
    await fetch_to(channel, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == BODY
    assert coordinator.asked == [0, 2 * CHUNK_BYTES]
    damaged.clear()
    coordinator.asked.clear()
    await upload(channel, begin, body_path, timeout_seconds=30, backoff=quickly())
    assert coordinator.held.read_bytes() == BODY
    assert coordinator.asked == [0, 2 * CHUNK_BYTES]


async def test_a_sender_that_lies_is_given_up_on(channel, coordinator, tmp_path):
    def another(chunk: Chunk) -> Chunk:
        data = bytes(len(chunk.data))
        return Chunk(offset=chunk.offset, data=data, crc32c=checksum(data))

    coordinator.meddle = another  # type: ignore[method-assign]
    with pytest.raises(TransferError) as caught:
        await fetch_to(channel, tmp_path / "model")
    assert caught.value.id == "transfer.digest"
    assert coordinator.asked == [0, 0]
    assert not (tmp_path / "model").exists()


async def test_a_body_that_was_not_asked_for_is_refused(channel, tmp_path):
    with pytest.raises(TransferError) as caught:
        await fetch_to(channel, tmp_path / "model", digest="0" * 64)
    assert caught.value.id == "transfer.unexpected_body"
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("direction", ["fetch", "upload"])
async def test_a_refusal_is_not_tried_again(channel, coordinator, begin, body_path, direction):
    refusal: MusterError = NotFoundError("model.not_found", "no such model")
    if direction == "upload":
        refusal = UpdateRejected("update.oversize", "too much")
    coordinator.refusals = [refusal, refusal]
    with pytest.raises(type(refusal)):
        if direction == "fetch":
            await fetch_to(channel, body_path.with_name("model"))
        else:
            await upload(channel, begin, body_path, timeout_seconds=30, backoff=quickly())
    assert len(coordinator.refusals) == 1


async def test_a_full_disk_on_the_other_side_is_waited_out(channel, coordinator, begin, body_path):
    full = storage_error(Path("/spool/a1"), OSError(28, "No space left on device"))
    coordinator.refusals = [full, full, full]
    assert (await upload(channel, begin, body_path, timeout_seconds=30, backoff=quickly())).digest == DIGEST


async def test_a_full_disk_on_this_side_is_told_at_once(channel, coordinator, tmp_path):
    PartialBody.open(tmp_path / "model.partial", BlobHeader(size_bytes=len(BODY), digest=DIGEST)).close()
    (tmp_path / "model.partial").unlink()
    (tmp_path / "model.partial").symlink_to("/dev/full")
    with pytest.raises(StorageError) as caught:
        await fetch_to(channel, tmp_path / "model")
    assert caught.value.id == "storage.disk_full"
    assert coordinator.asked == [0]


async def test_time_runs_out(begin, body_path, tmp_path):
    transport = MemoryTransport()  # nobody serves
    channel = transport.connect("c")
    with pytest.raises(DeadlineError) as caught:
        await upload(channel, begin, body_path, timeout_seconds=0.05, backoff=quickly())
    assert caught.value.id == "transfer.deadline"
    assert "transport.unreachable" in caught.value.cause
    with pytest.raises(DeadlineError):
        await fetch_to(channel, tmp_path / "model", timeout_seconds=0.05)


async def test_a_channel_that_was_closed_here_ends_it_at_once(begin, body_path):
    channel = MemoryTransport().connect("c")
    await channel.close()
    with pytest.raises(UnreachableError) as caught:
        await upload(channel, begin, body_path, timeout_seconds=30)
    assert caught.value.id == "transport.closed"


def test_backoff_grows_to_its_ceiling_and_starts_again():
    backoff = Backoff(Random(3), delay_seconds_min=0.1, delay_seconds_max=10.0)
    delays = [backoff.next_delay() for _ in range(1000)]
    assert all(delay <= min(10.0, 0.1 * 2.0**attempt) for attempt, delay in enumerate(delays))
    assert max(delays) > 9.0
    assert min(delays[100:]) < 1.0  # full jitter: from nothing up
    backoff.reset()
    assert backoff.next_delay() <= 0.1
