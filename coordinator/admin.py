"""The admin service: what the command line asks of a coordinator."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from coordinator import convert, membership
from coordinator.engine.state import Event, PauseRequested, ResumeRequested, RunSubmitted, StopRequested
from coordinator.explain import explain
from coordinator.store import rows
from muster.errors import ConfigError, MusterError, NotFoundError, StateError
from muster.spec.model import RunSpec
from muster.transfer import read_chunks
from muster.transport.base import CallContext, Encoded, Route
from muster.version import muster_version
from muster.wire import METHODS, PROTOCOL_VERSION
from protos.v1 import admin_pb2 as pb
from protos.v1.tensors_pb2 import BlobHeader

if TYPE_CHECKING:
    from coordinator.service import Coordinator

EVENTS_PER_MESSAGE = 200
RECENT_EVENTS = 10


class AdminServicer:
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._store = coordinator.store
        self._submitting = asyncio.Lock()

    def routes(self) -> list[Route]:
        handlers: dict[str, Any] = {
            "GetStatus": self.get_status,
            "SubmitRun": self.submit_run,
            "ListRuns": self.list_runs,
            "GetRun": self.get_run,
            "PauseRun": self.pause_run,
            "ResumeRun": self.resume_run,
            "StopRun": self.stop_run,
            "RemoveRun": self.remove_run,
            "ExplainRun": self.explain_run,
            "ListRounds": self.list_rounds,
            "GetRound": self.get_round,
            "ReplayRound": self.replay_round,
            "ListPeers": self.list_peers,
            "GetPeer": self.get_peer,
            "DrainPeer": self.drain_peer,
            "QuarantinePeer": self.quarantine_peer,
            "ReleasePeer": self.release_peer,
            "RemovePeer": self.remove_peer,
            "ListModels": self.list_models,
            "PullModel": self.pull_model,
            "WatchEvents": self.watch_events,
        }
        return [Route(method=METHODS[name], handle=handle) for name, handle in handlers.items()]

    async def get_status(self, request: pb.GetStatusRequest, context: CallContext) -> pb.GetStatusResponse:
        coordinator = self._coordinator
        return pb.GetStatusResponse(
            coordinator_version=muster_version(),
            protocol=PROTOCOL_VERSION,
            address=coordinator.address,
            started_at=coordinator.started_at,
            peers=Counter(peer.state for peer in await self._store.peers()),
            runs=Counter(run.state for run in await self._store.runs()),
            store=coordinator.config.database_url.split("://")[0],
            disk_free_bytes=shutil.disk_usage(coordinator.config.data_dir).free,
        )

    # -- runs ---------------------------------------------------------------------------------------------------------

    async def submit_run(self, request: pb.SubmitRunRequest, context: CallContext) -> pb.SubmitRunResponse:
        spec = _spec(request.spec_json)
        request_id = request.request_id or secrets.token_hex(8)
        async with self._submitting:  # so that a request that comes twice at once finds what it made
            known = await self._store.run_by_request(request_id)
            if known is None:
                run_id = f"{_slug(spec.name or spec.task.split(':')[1])}-{secrets.token_hex(3)}"
                event = RunSubmitted(
                    run_id=run_id, spec=spec, spec_toml=request.spec_toml, request_id=request_id
                )
                await self._coordinator.submit_run(event)
                known = await self._run(run_id)
        run = await self._whole(known)
        return pb.SubmitRunResponse(run=run, warnings=[each.reason for each in run.warnings])

    async def list_runs(self, request: pb.ListRunsRequest, context: CallContext) -> pb.ListRunsResponse:
        return pb.ListRunsResponse(runs=[_message(row) for row in await self._store.runs()])

    async def get_run(self, request: pb.GetRunRequest, context: CallContext) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=await self._whole(await self._run(request.run_id)))

    async def pause_run(self, request: pb.PauseRunRequest, context: CallContext) -> pb.PauseRunResponse:
        row = await self._change(PauseRequested(run_id=request.run_id), "PAUSED")
        return pb.PauseRunResponse(run=_message(row))

    async def resume_run(self, request: pb.ResumeRunRequest, context: CallContext) -> pb.ResumeRunResponse:
        row = await self._change(ResumeRequested(run_id=request.run_id), "RUNNING")
        return pb.ResumeRunResponse(run=_message(row))

    async def stop_run(self, request: pb.StopRunRequest, context: CallContext) -> pb.StopRunResponse:
        reason = request.reason or "stopped by the admin"
        row = await self._change(StopRequested(run_id=request.run_id, reason=reason), "CANCELLED")
        return pb.StopRunResponse(run=_message(row))

    async def remove_run(self, request: pb.RemoveRunRequest, context: CallContext) -> pb.RemoveRunResponse:
        run = _message(await self._run(request.run_id))
        await self._coordinator.effects.remove_run(run.run_id)
        return pb.RemoveRunResponse(run=run)

    async def _change(self, event: Event, wanted: str) -> rows.RunRow:
        """Idempotent: a run that is as wanted already is an answer, not an error."""
        row = await self._run(event.run_id)
        if row.state == wanted:
            return row
        if event.run_id not in self._coordinator.runs:
            raise StateError("run.ended", f"run {event.run_id!r} has ended ({row.state}): {row.reason}")
        committed = await self._coordinator.post(event)
        row = await self._run(event.run_id)
        if row.state != wanted:
            raise StateError(
                "run.wrong_state", f"run {event.run_id!r} is {row.state}: {committed.outcome.reason}"
            )
        return row

    async def explain_run(self, request: pb.ExplainRunRequest, context: CallContext) -> pb.ExplainRunResponse:
        row = await self._run(request.run_id)
        recent = await self._store.recent_events(run_id=row.run_id, limit=RECENT_EVENTS)
        events = [convert.event(each) for each in recent]
        live = self._coordinator.runs.get(row.run_id)
        if live is None:
            return pb.ExplainRunResponse(sentence=f"the run is {row.state}: {row.reason}", recent=events)
        explanation = explain(
            live, self._coordinator.peer_views(), self._coordinator.clock.now(), self._coordinator.bytes_held
        )
        obstacle = self._coordinator.effects.obstacle(row.run_id)
        return pb.ExplainRunResponse(
            sentence=f"the run is {row.state}: {obstacle or explanation.sentence}",
            details=explanation.details,
            recent=events,
        )

    async def _whole(self, row: rows.RunRow) -> pb.Run:
        """With its warnings, the newest last."""
        message = _message(row)
        message.warnings.extend(map(convert.warning, await self._store.warnings(row.run_id)))
        return message

    async def _run(self, run_id: str) -> rows.RunRow:
        row = await self._store.run(run_id)
        if row is None:
            raise NotFoundError("run.not_found", f"no run {run_id!r}", fix="muster run list")
        return row

    # -- rounds and models --------------------------------------------------------------------------------------------

    async def list_rounds(self, request: pb.ListRoundsRequest, context: CallContext) -> pb.ListRoundsResponse:
        spec = RunSpec.model_validate_json((await self._run(request.run_id)).spec_json)
        found = await self._store.rounds(request.run_id)
        return pb.ListRoundsResponse(rounds=[_round(row, spec) for row in found])

    async def get_round(self, request: pb.GetRoundRequest, context: CallContext) -> pb.GetRoundResponse:
        spec = RunSpec.model_validate_json((await self._run(request.run_id)).spec_json)
        row = await self._store.round(request.run_id, request.number)
        if row is None:
            raise NotFoundError(
                "round.not_found",
                f"run {request.run_id!r} has no round {request.number}",
                fix=f"muster round list {request.run_id}",
            )
        message = _round(row, spec)
        message.score_meaning = await asyncio.to_thread(_score_meaning, spec)
        base = await self._store.model(request.run_id, version=row.base_version)
        if base is not None:
            # Who delivered held the base; whether the others had come so far is not known.
            trained = [each for each in row.assignments if each.role == "train" and each.state == "DELIVERED"]
            message.bytes_down_dense = base.size_bytes * len(trained)
        for each in message.assignments:
            if each.state == "UPLOADING":
                each.bytes_held = self._coordinator.bytes_held(each.assignment_id)
        return pb.GetRoundResponse(round=message)

    async def replay_round(
        self, request: pb.ReplayRoundRequest, context: CallContext
    ) -> pb.ReplayRoundResponse:
        from coordinator.replay import replay

        try:
            changes = json.loads(request.aggregation_json or "{}")
        except ValueError as error:
            raise ConfigError("replay.bad_rule", f"aggregation_json is no JSON: {error}") from error
        if not isinstance(changes, dict):
            raise ConfigError("replay.bad_rule", "aggregation_json is no JSON object")
        row = await self._store.round(request.run_id, request.number)
        replayed = await replay(self._coordinator, request.run_id, request.number, changes)
        before = {each.assignment_id: each for each in row.assignments} if row else {}
        return convert.replayed(replayed, before)

    async def list_models(self, request: pb.ListModelsRequest, context: CallContext) -> pb.ListModelsResponse:
        await self._run(request.run_id)
        models = await self._store.models(request.run_id)
        return pb.ListModelsResponse(models=[convert.model(row) for row in models])

    async def pull_model(
        self, requests: AsyncIterator[pb.PullModelRequest], context: CallContext
    ) -> AsyncIterator[pb.PullModelResponse | Encoded]:
        request = await anext(requests)
        await self._run(request.run_id)
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

    async def list_peers(self, request: pb.ListPeersRequest, context: CallContext) -> pb.ListPeersResponse:
        return pb.ListPeersResponse(peers=[self._peer_message(row) for row in await self._store.peers()])

    async def get_peer(self, request: pb.GetPeerRequest, context: CallContext) -> pb.GetPeerResponse:
        recent = await self._store.recent_events(peer_id=request.peer_id, limit=RECENT_EVENTS)
        return pb.GetPeerResponse(
            peer=self._peer_message(await self._peer(request.peer_id)),
            recent=[convert.event(row) for row in recent],
        )

    async def drain_peer(self, request: pb.DrainPeerRequest, context: CallContext) -> pb.DrainPeerResponse:
        await self._coordinator.members.command(
            membership.Drain(peer_id=request.peer_id, reason=request.reason)
        )
        return pb.DrainPeerResponse(peer=self._peer_message(await self._peer(request.peer_id)))

    async def quarantine_peer(
        self, request: pb.QuarantinePeerRequest, context: CallContext
    ) -> pb.QuarantinePeerResponse:
        await self._coordinator.members.command(
            membership.Quarantine(peer_id=request.peer_id, reason=request.reason)
        )
        return pb.QuarantinePeerResponse(peer=self._peer_message(await self._peer(request.peer_id)))

    async def release_peer(
        self, request: pb.ReleasePeerRequest, context: CallContext
    ) -> pb.ReleasePeerResponse:
        await self._coordinator.members.command(membership.Release(peer_id=request.peer_id))
        return pb.ReleasePeerResponse(peer=self._peer_message(await self._peer(request.peer_id)))

    async def remove_peer(self, request: pb.RemovePeerRequest, context: CallContext) -> pb.RemovePeerResponse:
        told = await self._coordinator.members.command(
            membership.Remove(peer_id=request.peer_id, reason=request.reason)
        )
        session = self._coordinator.sessions.get(request.peer_id)
        if session is not None:
            session.close(told, reconnect=False)
        return pb.RemovePeerResponse(peer=self._peer_message(await self._peer(request.peer_id)))

    def _peer_message(self, row: rows.PeerRow) -> pb.Peer:
        """Heartbeats write no row: when a live peer was last heard is known in memory only."""
        message = convert.peer(row)
        member = self._coordinator.members.get(row.peer_id)
        if member is not None and member.connected:
            message.seen_at = member.seen_at
        return message

    async def _peer(self, peer_id: str) -> rows.PeerRow:
        row = await self._store.peer(peer_id)
        if row is None:
            raise NotFoundError("peer.not_found", f"no peer {peer_id!r}", fix="muster peer list")
        return row

    # -- events -------------------------------------------------------------------------------------------------------

    async def watch_events(
        self, requests: AsyncIterator[pb.WatchEventsRequest], context: CallContext
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        request = await anext(requests)
        after = request.after_sequence
        while True:
            # The order matters: an event committed after the look is seen by the wait, so none is missed.
            ended = request.run_id != "" and request.run_id not in self._coordinator.runs
            found = await self._store.events(
                after=after, run_id=request.run_id or None, limit=EVENTS_PER_MESSAGE
            )
            if found:
                after = found[-1].sequence
                yield pb.WatchEventsResponse(events=[convert.event(row) for row in found])
            elif not request.follow or ended:
                return
            else:
                await self._store.wait_for_events(after)


def _spec(text: str) -> RunSpec:
    try:
        return RunSpec.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError(
            "spec.invalid", f"the run spec is not valid: {problems}", fix="muster config validate SPEC"
        ) from error
    except MusterError:
        raise
    except ValueError as error:
        raise ConfigError("spec.invalid", f"the run spec is not JSON: {error}") from error


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"


def _message(row: rows.RunRow) -> pb.Run:
    return convert.run(row, RunSpec.model_validate_json(row.spec_json).rounds)


def _round(row: rows.RoundRow, spec: RunSpec) -> pb.Round:
    rule = "+".join((*spec.aggregation.pre, spec.aggregation.rule))
    return convert.round(row, codec=spec.compression.up, codec_down=spec.compression.down, rule=rule)


def _score_meaning(spec: RunSpec) -> str:
    """In a thread: plug-ins import torch."""
    import aggregators

    try:
        return aggregators.describe(spec.aggregation.rule).score
    except aggregators.RuleError:  # its package is not installed any more
        return ""
