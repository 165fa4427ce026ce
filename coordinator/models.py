"""Model versions, coordinator to peer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from muster.errors import NotFoundError
from muster.transfer import read_chunks
from muster.transport.base import CallContext, Encoded, Route
from muster.wire import FETCH_MODEL
from protos.v1 import models_pb2 as pb
from protos.v1.tensors_pb2 import BlobHeader

if TYPE_CHECKING:
    from coordinator.service import Coordinator


class ModelsServicer:
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def routes(self) -> list[Route]:
        return [Route(method=FETCH_MODEL, handle=self.fetch_model)]

    async def fetch_model(
        self, requests: AsyncIterator[pb.FetchModelRequest], context: CallContext
    ) -> AsyncIterator[pb.FetchModelResponse | Encoded]:
        request = await anext(requests)
        coordinator = self._coordinator
        peer_id = coordinator.members.authenticate(request.credentials.peer_id, request.credentials.secret)
        model = await coordinator.store.model_by_digest(request.run_id, request.digest)
        path = coordinator.blobs.path(request.digest)
        if model is None or not coordinator.blobs.has(request.digest):
            raise NotFoundError(
                "model.not_found",
                f"run {request.run_id!r} has no model version {request.digest[:12]!r}",
                cause="it was never committed or is kept no longer",
            )
        yield pb.FetchModelResponse(
            header=BlobHeader(
                size_bytes=model.size_bytes,
                digest=model.digest,
                layout_digest=model.layout_digest,
                run_id=model.run_id,
                round=model.round,
                offset=request.offset,
            )
        )
        async for chunk in read_chunks(path, request.offset):
            coordinator.journal.count_bytes(model.run_id, model.round + 1, peer_id, "down", chunk.size)
            yield chunk
