"""A peer that does what a test says: for tests of the coordinator's side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import compressors
from exchange.payload import GroupSpec, Manifest, PayloadWriter
from muster.errors import MusterError
from muster.files.digests import checksum, digest_file
from muster.transport.base import Channel
from muster.wire import BEGIN_UPDATE, COMMIT_UPDATE, ENROL, SESSION, UPLOAD_UPDATE
from protos.v1 import membership_pb2, updates_pb2
from protos.v1.tensors_pb2 import BlobHeader, Chunk

if TYPE_CHECKING:
    from torch import Tensor

WAIT_SECONDS_MAX = 20.0


class FakePeer:
    """A peer that does exactly what a test says, over a channel to a coordinator.

    peer = FakePeer(channel, "ada", folder)
    await peer.enrol()
    await peer.connect()
    offer = await peer.offer()
    await peer.deliver(offer, peer.write(offer, torch.ones(5)))
    """

    def __init__(self, channel: Channel, name: str, folder: Path, secret: str = "") -> None:
        self.channel = channel
        self.name = name
        self.folder = folder
        self.credentials = membership_pb2.Credentials(peer_id=name, secret=secret or f"secret of {name} " * 2)
        self.outbox: asyncio.Queue[membership_pb2.SessionRequest | None] = asyncio.Queue()
        self.inbox: asyncio.Queue[membership_pb2.SessionResponse | None] = asyncio.Queue()
        self.reader: asyncio.Task[None] | None = None
        self.error: MusterError | None = None  # with which the session ended, if it did

    async def enrol(self) -> None:
        """Raises what the coordinator refuses with, as all calls do."""
        request = membership_pb2.EnrolRequest(name=self.name, secret=self.credentials.secret, device="cpu")
        await self.channel.unary(ENROL, request, timeout_seconds=10)

    async def connect(self, held: Sequence[str] = (), runs: Sequence[str] = ()) -> membership_pb2.Welcome:
        """Opens a session that says what is held; what the coordinator says in it is in the inbox."""
        hello = membership_pb2.Hello(
            credentials=self.credentials, held_assignment_ids=held, held_run_ids=runs
        )
        self.outbox.put_nowait(membership_pb2.SessionRequest(hello=hello))
        self.reader = asyncio.create_task(self._read())
        return (await self.hear("welcome")).welcome

    async def _read(self) -> None:
        async def out() -> AsyncIterator[membership_pb2.SessionRequest]:
            while (message := await self.outbox.get()) is not None:
                yield message

        try:
            async for message in self.channel.stream(SESSION, out()):
                self.inbox.put_nowait(message)
        except MusterError as error:
            self.error = error
        finally:
            self.inbox.put_nowait(None)

    async def hear(self, kind: str) -> membership_pb2.SessionResponse:
        """The next message of this kind; others before it are passed over."""
        while True:
            message = await asyncio.wait_for(self.inbox.get(), WAIT_SECONDS_MAX)
            assert message is not None, f"the session ended before a {kind}"
            if message.WhichOneof("message") == kind:
                return message

    async def offer(self) -> membership_pb2.Assignment:
        """The next offer, as soon as it comes."""
        return (await self.hear("offer")).offer

    def report(self, offer: membership_pb2.Assignment, phase: Any, **more: Any) -> None:
        """Sends a report of the phase."""
        report = membership_pb2.AssignmentReport(assignment_id=offer.assignment_id, phase=phase, **more)
        self.outbox.put_nowait(membership_pb2.SessionRequest(report=report))

    def heartbeat(self) -> None:
        """Sends one; none is sent by itself."""
        self.outbox.put_nowait(membership_pb2.SessionRequest(heartbeat=membership_pb2.Heartbeat(sequence=1)))

    async def leave(self) -> None:
        """Ends the session from this side."""
        self.outbox.put_nowait(None)
        if self.reader is not None:
            await asyncio.wait({self.reader}, timeout=10)

    # -- updates -------------------------------------------------------------------------------------------

    def write(self, offer: membership_pb2.Assignment, vector: Tensor, **manifest: Any) -> Path:
        """An update file with this vector, uncompressed; `manifest` replaces fields of what it says of itself."""
        codec = compressors.build("identity")
        facts: dict[str, Any] = {
            "run_id": offer.run_id,
            "round": offer.round,
            "assignment_id": offer.assignment_id,
            "base_digest": offer.work.base.digest,
            "layout_digest": offer.work.base.layout_digest,
            "groups": (GroupSpec(name="params", codec="identity", size=len(vector)),),
            "scalars": {"examples": 10.0},
            **manifest,
        }
        path = self.folder / f"{offer.assignment_id}.update"
        writer = PayloadWriter(path, Manifest(**facts))
        writer.append("params", codec.encode(vector, seed=0))
        writer.finish()
        return path

    def begin(
        self, offer: membership_pb2.Assignment, path: Path, **header: Any
    ) -> updates_pb2.BeginUpdateRequest:
        """The request that begins the upload of the file; `header` replaces fields of its header."""
        facts: dict[str, Any] = {
            "size_bytes": path.stat().st_size,
            "digest": digest_file(path),
            "layout_digest": offer.work.base.layout_digest,
            "run_id": offer.run_id,
            "round": offer.round,
            "assignment_id": offer.assignment_id,
            **header,
        }
        return updates_pb2.BeginUpdateRequest(credentials=self.credentials, header=BlobHeader(**facts))

    async def send(self, begin: updates_pb2.BeginUpdateRequest, *chunks: Chunk) -> int:
        """One upload stream; gives the offset that is held then."""

        async def out() -> AsyncIterator[updates_pb2.UploadUpdateRequest]:
            yield updates_pb2.UploadUpdateRequest(begin=begin)
            for chunk in chunks:
                yield updates_pb2.UploadUpdateRequest(chunk=chunk)

        answers = [each async for each in self.channel.stream(UPLOAD_UPDATE, out(), timeout_seconds=10)]
        return int(answers[-1].offset)

    async def commit(self, begin: updates_pb2.BeginUpdateRequest) -> updates_pb2.Receipt:
        """Asks for the receipt of what was sent."""
        request = updates_pb2.CommitUpdateRequest(
            credentials=begin.credentials,
            assignment_id=begin.header.assignment_id,
            digest=begin.header.digest,
        )
        return (await self.channel.unary(COMMIT_UPDATE, request, timeout_seconds=10)).receipt

    async def deliver(
        self, offer: membership_pb2.Assignment, path: Path, **header: Any
    ) -> updates_pb2.Receipt:
        """The whole road: begin, send, commit."""
        begin = self.begin(offer, path, **header)
        await self.channel.unary(BEGIN_UPDATE, begin, timeout_seconds=10)
        await self.send(begin, *chunks_of(path))
        return await self.commit(begin)


def chunks_of(path: Path, size: int = 64) -> list[Chunk]:
    """The file, cut into messages of so many bytes."""
    body = path.read_bytes()
    return [
        Chunk(offset=at, data=body[at : at + size], crc32c=checksum(body[at : at + size]))
        for at in range(0, len(body), size)
    ]
