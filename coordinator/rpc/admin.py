"""The admin service: what the command line asks of a coordinator."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from pydantic import ValidationError

from coordinator.engine.state import (
    Event,
    PauseRequested,
    ResumeRequested,
    RunStatus,
    RunSubmitted,
    StopRequested,
)
from coordinator.membership import detector
from coordinator.rpc import convert
from coordinator.rpc.listing import Listing
from coordinator.store import rows
from muster.errors import ConfigError, MusterError, NotFoundError, StateError, UnreachableError, UsageError
from muster.runtime.randomness import hex_id
from muster.runtime.version import muster_version
from muster.spec.model import RunSpec
from muster.texts import one_line
from muster.transfer.streams import read_chunks
from muster.transport.base import CallContext, Encoded, Route
from muster.wire import METHODS, PROTOCOL_VERSION
from protos.v1 import admin_pb2 as pb
from protos.v1.tensors_pb2 import BlobHeader

if TYPE_CHECKING:
    from coordinator.service import Coordinator

SPEC_BYTES_MAX = 1 << 19  # a spec is a page; it goes out with every offer and stands in every list
REQUEST_ID_CHARS_MAX = 200
SUBMISSIONS_MAX = 8  # that wait for their check, each with its spec in memory


class AdminServicer:
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._store = coordinator.store
        self._listing = Listing(coordinator)
        # By request id: one that comes twice at once finds what it made, and none waits for another's task.
        self._submitting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._submissions = 0

    def routes(self) -> list[Route]:
        handlers: dict[str, Any] = {
            "GetStatus": self.get_status,
            "SubmitRun": self.submit_run,
            "ListRuns": self._listing.list_runs,
            "GetRun": self.get_run,
            "PauseRun": self.pause_run,
            "ResumeRun": self.resume_run,
            "StopRun": self.stop_run,
            "RemoveRun": self.remove_run,
            "ExplainRun": self._listing.explain_run,
            "ListRounds": self._listing.list_rounds,
            "GetRound": self._listing.get_round,
            "ReplayRound": self.replay_round,
            "ListPeers": self._listing.list_peers,
            "GetPeer": self._listing.get_peer,
            "DrainPeer": self.drain_peer,
            "QuarantinePeer": self.quarantine_peer,
            "ReleasePeer": self.release_peer,
            "RemovePeer": self.remove_peer,
            "ListModels": self._listing.list_models,
            "PullModel": self.pull_model,
            "WatchEvents": self._listing.watch_events,
        }
        return [Route(method=METHODS[name], handle=handle) for name, handle in handlers.items()]

    async def get_status(self, request: pb.GetStatusRequest, context: CallContext) -> pb.GetStatusResponse:
        coordinator = self._coordinator
        peers, runs = await self._store.counts()
        return pb.GetStatusResponse(
            coordinator_version=muster_version(),
            protocol=PROTOCOL_VERSION,
            address=coordinator.address,
            started_at=coordinator.started_at,
            peers=peers,
            runs=runs,
            store=coordinator.config.database_url.split("://")[0],
            disk_free_bytes=shutil.disk_usage(coordinator.config.data_dir).free,
        )

    # -- runs ---------------------------------------------------------------------------------------------------------

    async def submit_run(self, request: pb.SubmitRunRequest, context: CallContext) -> pb.SubmitRunResponse:
        if self._submissions >= SUBMISSIONS_MAX:
            raise UnreachableError(
                "transport.busy",
                f"the coordinator has {self._submissions} submissions to check, its limit",
                cause="each has its task loaded and tried, which takes time and memory",
                fix="submit again in a minute",
            )
        self._submissions += 1
        try:
            return await self._submit_run(request)
        finally:
            self._submissions -= 1

    async def _submit_run(self, request: pb.SubmitRunRequest) -> pb.SubmitRunResponse:
        spec = _spec(request.spec_json, request.spec_toml)
        request_id = request.request_id or hex_id(self._coordinator.random, 8)
        if request_id != one_line(request_id, REQUEST_ID_CHARS_MAX):
            raise UsageError(
                "run.bad_request_id",
                f"a request id is one line of at most {REQUEST_ID_CHARS_MAX} characters",
                fix="a UUID will do",
            )
        async with self._submitting.setdefault(request_id, asyncio.Lock()):
            known = await self._store.run_by_request(request_id)
            if known is None:
                run_id = (
                    f"{_slug(spec.name or spec.task.split(':')[1])}-{hex_id(self._coordinator.random, 3)}"
                )
                event = RunSubmitted(
                    run_id=run_id, spec=spec, spec_toml=request.spec_toml, request_id=request_id
                )
                await self._coordinator.submit_run(event)
                known = await self._listing.run(run_id)
        run = await self._listing.whole_run(known)
        return pb.SubmitRunResponse(run=run, warnings=[each.reason for each in run.warnings])

    async def get_run(self, request: pb.GetRunRequest, context: CallContext) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=await self._listing.whole_run(await self._listing.run(request.run_id)))

    async def pause_run(self, request: pb.PauseRunRequest, context: CallContext) -> pb.PauseRunResponse:
        row = await self._change(PauseRequested(run_id=request.run_id), "PAUSED")
        return pb.PauseRunResponse(run=self._listing.run_message(row))

    async def resume_run(self, request: pb.ResumeRunRequest, context: CallContext) -> pb.ResumeRunResponse:
        live = self._coordinator.runs.get(request.run_id)
        event = ResumeRequested(run_id=request.run_id)
        if live is not None and live.status is RunStatus.RUNNING:
            await self._coordinator.post(event)  # whoever is set aside in it is asked again
        row = await self._change(event, "RUNNING")
        return pb.ResumeRunResponse(run=self._listing.run_message(row))

    async def stop_run(self, request: pb.StopRunRequest, context: CallContext) -> pb.StopRunResponse:
        reason = one_line(request.reason) or "stopped by the admin"
        if request.run_id in self._coordinator.unreadable:
            await self._coordinator.stop_unreadable(request.run_id, reason)
        row = await self._change(StopRequested(run_id=request.run_id, reason=reason), "CANCELLED")
        return pb.StopRunResponse(run=self._listing.run_message(row))

    async def remove_run(self, request: pb.RemoveRunRequest, context: CallContext) -> pb.RemoveRunResponse:
        run = self._listing.run_message(await self._listing.run(request.run_id))
        await self._coordinator.effects.remove_run(run.run_id)
        return pb.RemoveRunResponse(run=run)

    async def _change(self, event: Event, wanted: str) -> rows.RunRow:
        """Idempotent: a run that is as wanted already is an answer, not an error."""
        row = await self._listing.run(event.run_id)
        if row.state == wanted:
            return row
        if (reason := self._coordinator.unreadable.get(event.run_id)) is not None:
            raise StateError(
                "run.unreadable",
                f"run {event.run_id!r} cannot go on at this coordinator",
                cause=reason,
                fix=f"start the coordinator again once that is mended, or end the run: muster run stop {event.run_id}",
            )
        if event.run_id not in self._coordinator.runs:
            raise StateError("run.ended", f"run {event.run_id!r} has ended ({row.state}): {row.reason}")
        committed = await self._coordinator.post(event)
        row = await self._listing.run(event.run_id)
        if row.state != wanted:
            raise StateError(
                "run.wrong_state", f"run {event.run_id!r} is {row.state}: {committed.outcome.reason}"
            )
        return row

    # -- rounds and models --------------------------------------------------------------------------------------------

    async def replay_round(
        self, request: pb.ReplayRoundRequest, context: CallContext
    ) -> pb.ReplayRoundResponse:
        from coordinator.replay import replay

        try:
            changes = json.loads(request.aggregation_json or "{}")
        except (ValueError, RecursionError) as error:
            raise ConfigError("replay.bad_rule", f"aggregation_json is no JSON: {error}") from error
        if not isinstance(changes, dict):
            raise ConfigError("replay.bad_rule", "aggregation_json is no JSON object")
        row = await self._store.round(request.run_id, request.number)
        replayed = await replay(self._coordinator, request.run_id, request.number, changes)
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
        if model.blob_gone and not self._coordinator.blobs.has(model.digest):
            raise NotFoundError(
                "model.pruned",
                f"version {model.version} of run {request.run_id!r} is kept no longer",
                cause=f"the coordinator keeps the newest {self._coordinator.config.models_keep} versions",
                fix="pull a newer one, or raise coordinator.models_keep",
            )
        path = await self._coordinator.repairs.model(model.run_id, model.digest, model.size_bytes)
        yield pb.PullModelResponse(
            header=BlobHeader(
                size_bytes=model.size_bytes,
                digest=model.digest,
                layout_digest=model.layout_digest,
                run_id=model.run_id,
                round=model.round,
                offset=request.offset,
            )
        )
        async for chunk in read_chunks(path, request.offset, request.chunk_bytes_max):
            yield chunk

    # -- peers --------------------------------------------------------------------------------------------------------

    async def drain_peer(self, request: pb.DrainPeerRequest, context: CallContext) -> pb.DrainPeerResponse:
        await self._coordinator.members.command(
            detector.Drain(peer_id=request.peer_id, reason=one_line(request.reason))
        )
        return pb.DrainPeerResponse(peer=await self._listing.peer(request.peer_id))

    async def quarantine_peer(
        self, request: pb.QuarantinePeerRequest, context: CallContext
    ) -> pb.QuarantinePeerResponse:
        await self._coordinator.members.command(
            detector.Quarantine(peer_id=request.peer_id, reason=one_line(request.reason))
        )
        return pb.QuarantinePeerResponse(peer=await self._listing.peer(request.peer_id))

    async def release_peer(
        self, request: pb.ReleasePeerRequest, context: CallContext
    ) -> pb.ReleasePeerResponse:
        await self._coordinator.members.command(detector.Release(peer_id=request.peer_id))
        return pb.ReleasePeerResponse(peer=await self._listing.peer(request.peer_id))

    async def remove_peer(self, request: pb.RemovePeerRequest, context: CallContext) -> pb.RemovePeerResponse:
        told = await self._coordinator.members.command(
            detector.Remove(peer_id=request.peer_id, reason=one_line(request.reason))
        )
        session = self._coordinator.sessions.get(request.peer_id)
        if session is not None:
            session.close(told, reconnect=False)
        return pb.RemovePeerResponse(peer=await self._listing.peer(request.peer_id))


def _spec(text: str, toml: str) -> RunSpec:
    for name, given in (("spec_json", text), ("spec_toml", toml)):
        if len(given.encode()) > SPEC_BYTES_MAX:
            raise ConfigError(
                "spec.too_long",
                f"{name} has more than {SPEC_BYTES_MAX} bytes",
                cause="it is probably another file",
            )
    try:
        spec = RunSpec.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError(
            "spec.invalid", f"the run spec is not valid: {problems}", fix="muster config validate SPEC"
        ) from error
    except MusterError:
        raise
    except ValueError as error:
        raise ConfigError("spec.invalid", f"the run spec is not JSON: {error}") from error
    if spec.name != one_line(spec.name):
        raise ConfigError("spec.invalid", "name: holds line breaks or characters that cannot be shown")
    return spec


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"
