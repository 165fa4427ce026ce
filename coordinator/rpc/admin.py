"""The admin service: what the command line asks of a coordinator."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from coordinator.repairs import Repairs
from coordinator.replay import Replays
from coordinator.rpc.convert import admin as convert
from coordinator.rpc.convert.models import header
from coordinator.rpc.listing import Listing
from coordinator.rpc.peer_commands import PeerCommands
from coordinator.rpc.run_commands import RunCommands
from coordinator.store import Store
from muster.errors import ConfigError, NotFoundError
from muster.files.blobs import BlobStore
from muster.runtime.version import muster_version
from muster.transfer.streams import read_chunks
from muster.transport.base import CallContext, Encoded, Route
from muster.transport.identity import ADMIN as LOCAL_ADMIN
from muster.transport.identity import ADMINS, Identity
from muster.wire import ADMIN, PROTOCOL_VERSION
from protos.v1 import admin_pb2 as pb


class AdminServicer:
    """`address()` is where the coordinator serves; `started_at` when it started; `database_kind` the kind of its store;
    `models_keep` what its settings say."""

    def __init__(
        self,
        *,
        runs: RunCommands,
        peers: PeerCommands,
        listing: Listing,
        replays: Replays,
        repairs: Repairs,
        store: Store,
        blobs: BlobStore,
        address: Callable[[], str],
        started_at: float,
        database_kind: str,
        data_dir: Path,
        models_keep: int | None,
    ) -> None:
        self._runs = runs
        self._peers = peers
        self._listing = listing
        self._replays = replays
        self._repairs = repairs
        self._store = store
        self._blobs = blobs
        self._address = address
        self._started_at = started_at
        self._database_kind = database_kind
        self._data_dir = data_dir
        self._models_keep = models_keep

    def routes(self) -> list[Route]:
        handlers: dict[str, Any] = {
            "GetStatus": self.get_status,
            "SubmitRun": self._runs.submit_run,
            "ListRuns": self._listing.list_runs,
            "GetRun": self._listing.get_run,
            "PauseRun": self._runs.pause_run,
            "ResumeRun": self._runs.resume_run,
            "StopRun": self._runs.stop_run,
            "RemoveRun": self._runs.remove_run,
            "ExplainRun": self._listing.explain_run,
            "ListRounds": self._listing.list_rounds,
            "GetRound": self._listing.get_round,
            "ReplayRound": self.replay_round,
            "ListPeers": self._listing.list_peers,
            "GetPeer": self._listing.get_peer,
            "DrainPeer": self._peers.drain_peer,
            "QuarantinePeer": self._peers.quarantine_peer,
            "ReleasePeer": self._peers.release_peer,
            "RemovePeer": self._peers.remove_peer,
            "ListModels": self._listing.list_models,
            "PullModel": self.pull_model,
            "WatchEvents": self._listing.watch_events,
        }
        return [
            Route(method=ADMIN[name], handle=handle, allows=ADMINS, identify=_admin)
            for name, handle in handlers.items()
        ]

    async def get_status(self, request: pb.GetStatusRequest, context: CallContext) -> pb.GetStatusResponse:
        peers, runs = await self._store.counts()
        return pb.GetStatusResponse(
            coordinator_version=muster_version(),
            protocol=PROTOCOL_VERSION,
            address=self._address(),
            started_at=self._started_at,
            peers=peers,
            runs=runs,
            store=self._database_kind,
            disk_free_bytes=shutil.disk_usage(self._data_dir).free,
        )

    async def replay_round(
        self, request: pb.ReplayRoundRequest, context: CallContext
    ) -> pb.ReplayRoundResponse:
        try:
            changes = json.loads(request.aggregation_json or "{}")
        except (ValueError, RecursionError) as error:
            raise ConfigError("replay.bad_rule", f"aggregation_json is no JSON: {error}") from error
        if not isinstance(changes, dict):
            raise ConfigError("replay.bad_rule", "aggregation_json is no JSON object")
        row = await self._store.round(request.run_id, request.number)
        replayed = await self._replays.replay(request.run_id, request.number, changes)
        before = {each.assignment_id: each for each in row.assignments} if row else {}
        return convert.replayed(replayed, before)

    async def pull_model(
        self, requests: AsyncIterator[pb.PullModelRequest], context: CallContext
    ) -> AsyncIterator[pb.PullModelResponse | Encoded]:
        request = await anext(requests)
        await self._listing.run(request.run_id)
        number = request.round if request.HasField("round") else None
        model = await self._store.model(request.run_id, round=number)
        if model is None:
            what = "no model yet" if number is None else f"no model of round {number}"
            raise NotFoundError(
                "model.not_found",
                f"run {request.run_id!r} has {what}",
                cause="a skipped round makes none" if number else "the initial model is still being made",
                fix=f"muster model list {request.run_id}",
            )
        if model.blob_gone and not self._blobs.has(model.digest):
            raise NotFoundError(
                "model.pruned",
                f"version {model.version} of run {request.run_id!r} is kept no longer",
                cause=f"the coordinator keeps the newest {self._models_keep} versions",
                fix="pull a newer one, or raise coordinator.models_keep",
            )
        path = await self._repairs.model(model.run_id, model.digest, model.size_bytes)
        yield pb.PullModelResponse(
            header=header(model, digest=model.digest, size_bytes=model.size_bytes, offset=request.offset)
        )
        async for chunk in read_chunks(path, request.offset, request.chunk_bytes_max):
            yield chunk


def _admin(_request: Any) -> Identity:
    """Admins prove nothing yet: a coordinator serves its own machine's addresses only, and whoever reaches it there may
    do what its admin may."""
    return LOCAL_ADMIN
