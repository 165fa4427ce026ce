"""A link that is slow and honest is not taken for a caller that holds others up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from muster.files.digests import CHUNK_BYTES, digest_file
from muster.runtime.backoff import Backoff
from muster.transfer import streams as transfer
from muster.transfer.partial import PartialBody
from muster.transfer.streams import fetch, read_chunks, upload
from muster.transport import GrpcTransport, MemoryTransport, Route
from muster.transport._turns import Turn
from muster.transport.identity import EVERYBODY, Identity
from muster.transport.limits import Limits
from muster.wire import BEGIN_UPDATE, COMMIT_UPDATE, FETCH_MODEL, UPLOAD_UPDATE
from protos.v1.models_pb2 import FetchModelRequest, FetchModelResponse
from protos.v1.tensors_pb2 import BlobHeader
from protos.v1.updates_pb2 import (
    BeginUpdateRequest,
    BeginUpdateResponse,
    CommitUpdateResponse,
    Receipt,
    UploadUpdateResponse,
)
from simulator.proxy import ChaosProxy, Link

SLOW = Link(bits_per_second=8 * 200_000)  # the body, one chunk, takes more than a second
LIMITS = Limits(window_seconds=0.8, bytes_per_second_min=16_384)


@pytest.fixture
def body(tmp_path: Path) -> Path:
    path = tmp_path / "body"
    path.write_bytes(os.urandom(250_000))
    return path


class Receiving:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "received"
        self.sizes: list[int] = []

    def routes(self) -> list[Route]:
        return [
            Route(allows=EVERYBODY, method=BEGIN_UPDATE, handle=self.begin),
            Route(
                allows=EVERYBODY,
                method=UPLOAD_UPDATE,
                handle=self.upload,
                identify=lambda _: Identity.peer("ward"),
            ),
            Route(allows=EVERYBODY, method=COMMIT_UPDATE, handle=self.commit),
        ]

    async def begin(self, request: Any, context: Any) -> BeginUpdateResponse:
        body = PartialBody.open(self.path, request.header)
        body.close()
        return BeginUpdateResponse(offset=body.offset)

    async def upload(self, requests: Any, context: Any) -> Any:
        body = PartialBody.open(self.path, (await anext(requests)).begin.header)
        try:
            async for message in requests:
                self.sizes.append(len(message.chunk.data))
                await body.write(message.chunk)
        finally:
            body.close()
        yield UploadUpdateResponse(offset=body.offset)

    async def commit(self, request: Any, context: Any) -> CommitUpdateResponse:
        return CommitUpdateResponse(receipt=Receipt(digest=request.digest))


async def test_an_upload_gets_over_a_link_that_takes_longer_for_a_chunk_than_anybody_waits(
    tmp_path: Path, body: Path
) -> None:
    receiving = Receiving(tmp_path)
    server = await GrpcTransport(limits=LIMITS).serve("127.0.0.1:0", receiving.routes())
    async with ChaosProxy(server.address, script=[SLOW]) as proxy:
        channel = GrpcTransport().connect(proxy.address)
        header = BlobHeader(
            size_bytes=body.stat().st_size, digest=digest_file(body), assignment_id="a.1.ward.1"
        )
        backoff = Backoff(delay_seconds_max=0.1)
        await upload(channel, BeginUpdateRequest(header=header), body, timeout_seconds=60, backoff=backoff)
        await channel.close()
    await server.stop(0)
    assert receiving.path.read_bytes() == body.read_bytes()
    assert max(receiving.sizes) < body.stat().st_size


async def test_a_fetch_does_too(tmp_path: Path, body: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CALL_SECONDS_MAX", 0.8)
    asked: list[int] = []

    async def serve_body(requests: Any, context: Any) -> Any:
        request = await anext(requests)
        asked.append(request.chunk_bytes_max)
        size, digest = body.stat().st_size, digest_file(body)
        yield FetchModelResponse(header=BlobHeader(size_bytes=size, digest=digest, offset=request.offset))
        async for chunk in read_chunks(body, request.offset, request.chunk_bytes_max):
            yield chunk

    route = Route(
        allows=EVERYBODY, method=FETCH_MODEL, handle=serve_body, identify=lambda _: Identity.peer("ward")
    )
    server = await GrpcTransport(limits=LIMITS).serve("127.0.0.1:0", [route])
    async with ChaosProxy(server.address, script=[SLOW]) as proxy:
        channel = GrpcTransport().connect(proxy.address)
        target = tmp_path / "target"
        await fetch(
            channel,
            FETCH_MODEL,
            lambda offset: FetchModelRequest(offset=offset),
            target,
            timeout_seconds=60,
            backoff=Backoff(delay_seconds_max=0.1),
        )
        await channel.close()
    await server.stop(0)
    assert target.read_bytes() == body.read_bytes()
    assert asked[0] == 0
    assert 0 < asked[-1] < CHUNK_BYTES


async def test_who_loses_its_turn_to_others_goes_on_where_it_stood(tmp_path: Path, body: Path) -> None:
    asked: list[int] = []

    async def serve_body(requests: Any, context: Any) -> Any:
        request = await anext(requests)
        asked.append(request.offset)
        size, digest = body.stat().st_size, digest_file(body)
        yield FetchModelResponse(header=BlobHeader(size_bytes=size, digest=digest, offset=request.offset))
        async for chunk in read_chunks(body, request.offset, size // 4):
            yield chunk
            if len(asked) == 1 and chunk.offset > 0:
                raise Turn().crowded(LIMITS, "reads")

    transport = MemoryTransport()
    server = await transport.serve("c:1", [Route(allows=EVERYBODY, method=FETCH_MODEL, handle=serve_body)])
    channel = transport.connect("c:1")
    await fetch(
        channel,
        FETCH_MODEL,
        lambda offset: FetchModelRequest(offset=offset),
        tmp_path / "target",
        timeout_seconds=60,
        backoff=Backoff(delay_seconds_max=0.1),
    )
    await channel.close()
    await server.stop(0)
    assert (tmp_path / "target").read_bytes() == body.read_bytes()
    assert asked == [0, 2 * (body.stat().st_size // 4)]
