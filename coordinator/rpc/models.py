"""Model versions, coordinator to peer, and back where the coordinator has lost one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

from coordinator.journal import Journal
from coordinator.lookups import Assignments
from coordinator.membership.members import MemberBook
from coordinator.model_plans import ModelPlans
from coordinator.repairs import Repairs
from coordinator.rpc.convert import models as convert
from coordinator.store import ModelRow, Store
from muster.errors import NotFoundError, StorageError, TransferError
from muster.files.blobs import LOST, BlobStore
from muster.transfer.streams import read_chunks
from muster.transport.base import CallContext, Encoded, Route
from muster.transport.identity import PEERS, Identity
from muster.wire import FETCH_MODEL, PLAN_MODEL, RESTORE_MODEL
from protos.v1 import models_pb2 as pb
from protos.v1.tensors_pb2 import Chunk

HELD_MAX = 16  # versions that a peer may name


class ModelsServicer:
    """`muster.v1.ModelsService`."""

    def __init__(
        self,
        *,
        plans: ModelPlans,
        store: Store,
        blobs: BlobStore,
        members: MemberBook,
        assignments: Assignments,
        repairs: Repairs,
        journal: Journal,
    ) -> None:
        self._plans = plans
        self._store = store
        self._blobs = blobs
        self._members = members
        self._assignments = assignments
        self._repairs = repairs
        self._journal = journal

    def routes(self) -> list[Route]:
        present = self._assignments.is_at_work
        return [
            Route(method=PLAN_MODEL, handle=self.plan_model, allows=PEERS, identify=self._caller),
            Route(
                method=FETCH_MODEL,
                handle=self.fetch_model,
                allows=PEERS,
                identify=self._caller,
                present=present,
            ),
            Route(
                method=RESTORE_MODEL,
                handle=self.restore_model,
                allows=PEERS,
                identify=self._restorer,
                present=present,
            ),
        ]

    def _caller(self, first: pb.FetchModelRequest | pb.PlanModelRequest) -> Identity:
        credentials = first.credentials
        return Identity.peer(self._members.authenticate(credentials.peer_id, credentials.secret))

    def _restorer(self, first: pb.RestoreModelRequest) -> Identity:
        if first.WhichOneof("part") != "begin":
            raise _no_header()
        credentials = first.begin.credentials
        return Identity.peer(self._members.authenticate_sender(credentials.peer_id, credentials.secret))

    async def plan_model(self, request: pb.PlanModelRequest, context: CallContext) -> pb.PlanModelResponse:
        wanted = await self._store.model_by_digest(request.run_id, request.digest)
        if wanted is None:
            raise _not_found(request.run_id, request.digest)
        held = request.held_digests[:HELD_MAX]
        draws = request.draws_initial
        return convert.plan(await self._plans.plan(request.run_id, wanted, held, draws_initial=draws))

    async def fetch_model(
        self, requests: AsyncIterator[pb.FetchModelRequest], context: CallContext
    ) -> AsyncIterator[pb.FetchModelResponse | Encoded]:
        request = await anext(requests)
        peer_id = context.identity.name
        model, path = await self._found(request)
        yield pb.FetchModelResponse(
            header=convert.header(
                model, digest=request.digest, size_bytes=path.stat().st_size, offset=request.offset
            )
        )
        async with aclosing(
            read_chunks(path, request.offset, request.chunk_bytes_max, stop=request.stop)
        ) as chunks:
            async for chunk in chunks:
                self._journal.count_bytes(model.run_id, model.round + 1, peer_id, "down", chunk.size)
                yield chunk

    async def _found(self, request: pb.FetchModelRequest) -> tuple[ModelRow, Path]:
        """The version that is asked for, or the one that goes with what is asked for, and the file. Raises
        `NotFoundError` "model.not_found", "model.lost"."""
        run_id, digest = request.run_id, request.digest
        model = await self._store.model_by_digest(run_id, digest)
        beside = None
        if model is None:
            beside = await self._store.model_by_state(run_id, await self._plans.names_beside(run_id), digest)
        found = model or beside
        if found is None or not (self._blobs.has(digest) or (model and not model.blob_gone)):
            raise _not_found(run_id, digest)
        try:
            if model is not None:
                return found, await self._repairs.model(run_id, digest, model.size_bytes)
            return found, await self._blobs.verified(digest)
        except StorageError as error:
            if error.id not in LOST:
                raise
            raise NotFoundError(
                "model.lost",
                f"the coordinator has lost a file of version {found.version} of run {run_id!r}",
                cause=f"{error.message}; {error.cause}",
                fix=f"at the coordinator: {error.fix}",
            ) from error

    async def restore_model(
        self, requests: AsyncIterator[pb.RestoreModelRequest], context: CallContext
    ) -> AsyncIterator[pb.RestoreModelResponse]:
        first = await anext(requests, None)
        if first is None:
            raise _no_header()
        await self._repairs.receive(context.identity.name, first.begin.header, _chunks(requests))
        yield pb.RestoreModelResponse()


async def _chunks(requests: AsyncIterator[pb.RestoreModelRequest]) -> AsyncIterator[Chunk]:
    async for request in requests:
        yield request.chunk


def _not_found(run_id: str, digest: str) -> NotFoundError:
    return NotFoundError(
        "model.not_found",
        f"run {run_id!r} has no model version {digest[:12]!r}",
        cause="it was never committed or is kept no longer",
    )


def _no_header() -> TransferError:
    return TransferError("transfer.no_header", "a version that is given back starts with its header")
