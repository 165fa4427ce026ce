"""Model versions, coordinator to peer, and back where the coordinator has lost one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path

from coordinator.journal import Journal
from coordinator.lookups import Assignments
from coordinator.membership.members import MemberBook
from coordinator.repairs import Repairs
from coordinator.runs import Runs
from coordinator.store import ModelRow, Store
from exchange.names import DELTA, FACTOR, KEPT, SCALE
from muster.errors import NotFoundError, StorageError, TransferError
from muster.files.blobs import LOST, BlobStore
from muster.transfer.streams import read_chunks
from muster.transport.base import CallContext, Encoded, Route
from muster.wire import FETCH_MODEL, PLAN_MODEL, RESTORE_MODEL
from protos.v1 import models_pb2 as pb
from protos.v1.tensors_pb2 import BlobHeader, Chunk

HELD_MAX = 16  # versions that a peer may name


class ModelsServicer:
    def __init__(
        self,
        *,
        runs: Runs,
        store: Store,
        blobs: BlobStore,
        members: MemberBook,
        assignments: Assignments,
        repairs: Repairs,
        journal: Journal,
    ) -> None:
        self._runs = runs
        self._store = store
        self._blobs = blobs
        self._members = members
        self._assignments = assignments
        self._repairs = repairs
        self._journal = journal

    def routes(self) -> list[Route]:
        present = self._assignments.is_at_work
        return [
            Route(method=PLAN_MODEL, handle=self.plan_model, caller=self._caller),
            Route(method=FETCH_MODEL, handle=self.fetch_model, caller=self._caller, present=present),
            Route(method=RESTORE_MODEL, handle=self.restore_model, caller=self._restorer, present=present),
        ]

    def _caller(self, first: pb.FetchModelRequest | pb.PlanModelRequest) -> str:
        return self._members.authenticate(first.credentials.peer_id, first.credentials.secret)

    def _restorer(self, first: pb.RestoreModelRequest) -> str:
        if first.WhichOneof("part") != "begin":
            raise _no_header()
        credentials = first.begin.credentials
        return self._members.authenticate_sender(credentials.peer_id, credentials.secret)

    async def plan_model(self, request: pb.PlanModelRequest, context: CallContext) -> pb.PlanModelResponse:
        """The deltas from the newest version that is held, where all are here and shorter than the version; and the
        factor that goes with the wanted version, whatever is held."""
        self._members.authenticate(request.credentials.peer_id, request.credentials.secret)
        wanted = await self._store.model_by_digest(request.run_id, request.digest)
        if wanted is None:
            raise _not_found(request.run_id, request.digest)
        states = await self._store.optimizer_states(request.run_id, wanted.version)
        plan = pb.PlanModelResponse(factor_digest=states.get(FACTOR, ""), groups=self._groups(states))
        found = [
            await self._store.model_by_digest(request.run_id, digest)
            for digest in request.held_digests[:HELD_MAX]
        ]
        if request.draws_initial:
            found.append(await self._store.model(request.run_id, version=0))
        held = [model for model in found if model is not None and model.version < wanted.version]
        if not held:
            return plan
        base = max(held, key=lambda model: model.version)
        digests = await self._store.deltas(request.run_id, base.version, wanted.version)
        blobs = self._blobs
        if len(digests) < wanted.version - base.version or not all(map(blobs.has, digests)):
            return plan
        deltas = [
            pb.ModelDelta(digest=digest, size_bytes=blobs.path(digest).stat().st_size) for digest in digests
        ]
        if sum(delta.size_bytes for delta in deltas) >= wanted.size_bytes:
            return plan
        scale = states.get(SCALE, "")
        if scale and not blobs.has(scale):
            return plan
        plan.base_digest, plan.scale_digest = base.digest, scale
        plan.deltas.extend(deltas)
        return plan

    async def _names_beside(self, run_id: str) -> tuple[str, ...]:
        """Of what peers may fetch beside a version of the run."""
        run = self._runs.get(run_id)
        if run is None or run.model is None:
            return DELTA, SCALE, FACTOR
        # What is kept once is there with every later version.
        states = await self._store.optimizer_states(run_id, run.model.version)
        return DELTA, SCALE, FACTOR, *(name for name in states if name.startswith(KEPT))

    def _groups(self, states: Mapping[str, str]) -> list[pb.GroupFile]:
        """What is kept of groups among a version's states, as far as it is here."""
        blobs = self._blobs
        return [
            pb.GroupFile(
                name=name.removeprefix(KEPT), digest=digest, size_bytes=blobs.path(digest).stat().st_size
            )
            for name, digest in sorted(states.items())
            if name.startswith(KEPT) and blobs.has(digest)
        ]

    async def fetch_model(
        self, requests: AsyncIterator[pb.FetchModelRequest], context: CallContext
    ) -> AsyncIterator[pb.FetchModelResponse | Encoded]:
        request = await anext(requests)
        peer_id = self._members.authenticate(request.credentials.peer_id, request.credentials.secret)
        model, path = await self._found(request)
        yield pb.FetchModelResponse(
            header=BlobHeader(
                size_bytes=path.stat().st_size,
                digest=request.digest,
                layout_digest=model.layout_digest,
                run_id=model.run_id,
                round=model.round,
                offset=request.offset,
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
            beside = await self._store.model_by_state(run_id, await self._names_beside(run_id), digest)
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
        peer_id = self._restorer(first)
        await self._repairs.receive(peer_id, first.begin.header, _chunks(requests))
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
