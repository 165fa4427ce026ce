"""An admin service with a small federation made up for the tests of the command; a process of its own.

    python tests/cli/fake_coordinator.py FOLDER      writes its address to standard output, ends with its standard input

Real gRPC through the real transport; what the runs do is fixed by their names:

    digits   FINISHED, three rounds, a model each; round 2 has a failed assignment with a traceback
    text     RUNNING for ever, no round yet
    NAME     as submitted: FINISHED at once, but FAILED if the name begins with "doomed"; with a warning if it is risky
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from muster.errors import InternalError, NotFoundError, StateError
from muster.files.digests import CHUNK_BYTES, checksum
from muster.model.modelfile import layout_of, write_initial
from muster.transport.base import CallContext, Route
from muster.transport.grpc_ import GrpcTransport
from muster.transport.identity import EVERYBODY
from muster.wire import ADMIN, PROTOCOL_VERSION
from protos.v1 import admin_pb2 as pb
from protos.v1.tensors_pb2 import BlobHeader, Chunk

T0 = 1_790_000_000.0
TRACEBACK = 'Traceback (most recent call last):\n  File "task.py", line 7, in loss\nZeroDivisionError: division by zero'


class Model(nn.Module):
    """A little over two chunks, with a narrow dtype and an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(768, 700)
        self.narrow = nn.Parameter(torch.linspace(-1, 1, 1000, dtype=torch.bfloat16))
        self.norm = nn.BatchNorm1d(8)


class Fake:
    def __init__(self, folder: Path) -> None:
        torch.manual_seed(5)
        self.model_path = folder / "version"
        module = Model()
        self.model = write_initial(self.model_path, layout_of(module), module)
        torch.save(module.state_dict(), folder / "expected.pt")
        self.runs: dict[str, pb.Run] = {}
        self.events: list[pb.Event] = []
        self.requests: dict[str, str] = {}
        self.pulls = 0
        self.peers = {
            name: pb.Peer(
                peer_id=name, state=state, device="cpu", muster_version="0.1.0", seen_at=T0, epoch=2
            )
            for name, state in (("ward-0", "ACTIVE"), ("ward-1", "ACTIVE"), ("lab", "SUSPECT"))
        }
        self.rounds: dict[str, list[pb.Round]] = {}
        self.models: dict[str, list[pb.Model]] = {}
        self._digits()
        self._add("text-99", "text", "RUNNING", "waiting for 2 of 4 peers")

    def _add(
        self, run_id: str, name: str, state: str, reason: str, spec: Mapping[str, Any] | None = None
    ) -> pb.Run:
        run = pb.Run(
            run_id=run_id,
            name=name,
            state=state,
            reason=reason,
            task="examples.digits:Digits",
            rounds_total=3,
            spec_json=json.dumps(spec or {"task": "examples.digits:Digits", "rounds": 3}),
            created_at=T0 + len(self.runs),
            started_at=T0 + 1,
        )
        self.runs[run_id] = run
        self.rounds.setdefault(run_id, [])
        self.models.setdefault(run_id, [])
        self._event("run.submitted", run_id, "submitted")
        return run

    def _digits(self) -> None:
        run = self._add("digits-1a2b", "digits", "FINISHED", "all 3 rounds are committed")
        run.ended_at, run.rounds_committed, run.bytes_up, run.bytes_up_dense = T0 + 9, 3, 1000, 4000
        run.metrics["accuracy"] = 0.9625
        run.model_digest = self.model.digest
        for number in (1, 2, 3):
            one = pb.RoundAssignment(
                assignment_id=f"a.{number}",
                peer_id="ward-0",
                state="DELIVERED",
                example_count=100,
                norm=1.5,
                score=0.25,
                weight=1.0,
                selected=True,
                treatment="taken whole",
                update_bytes=2048,
                attempt=1,
                role="train",
            )
            bad = pb.RoundAssignment(
                assignment_id=f"b.{number}",
                peer_id="ward-1",
                state="REJECTED",
                reason="the task failed",
                traceback=TRACEBACK,
                attempt=1,
                role="train",
            )
            self.rounds[run.run_id].append(
                pb.Round(
                    run_id=run.run_id,
                    number=number,
                    state="COMMITTED",
                    reason="quorum reached",
                    opened_at=T0 + number,
                    ended_at=T0 + number + 0.5,
                    rule="arc+nnm+trimmed-mean",
                    codec="int8",
                    assignments=[one, bad] if number == 2 else [one],
                    metrics={"accuracy": 0.9 + number / 100},
                )
            )
            self._event("round.opened", run.run_id, f"round {number} asks 2 peers", round=number)
            if number == 2:
                self._event(
                    "assignment.rejected",
                    run.run_id,
                    "the task failed",
                    round=2,
                    assignment_id="b.2",
                    peer_id="ward-1",
                    data_json=json.dumps({"error_id": "worker.failed"}),
                )
            self._event("round.committed", run.run_id, "quorum reached", round=number)
            self.models[run.run_id].append(
                pb.Model(
                    run_id=run.run_id,
                    version=number,
                    round=number,
                    digest=self.model.digest,
                    size_bytes=self.model.size_bytes,
                    created_at=T0 + number,
                    metrics={"accuracy": 0.9 + number / 100},
                    pruned=number == 1,
                )
            )
        self._event("run.finished", run.run_id, "all 3 rounds are committed")

    def _event(self, kind: str, run_id: str, reason: str, **fields: Any) -> None:
        sequence = len(self.events) + 1
        self.events.append(
            pb.Event(
                sequence=sequence,
                at=T0 + sequence,
                kind=kind,
                run_id=run_id,
                reason=reason,
                actor="engine",
                **fields,
            )
        )

    def run(self, run_id: str) -> pb.Run:
        if run_id not in self.runs:
            raise NotFoundError("run.not_found", f"no run {run_id!r}")
        return self.runs[run_id]

    # -- handlers, named as their procedures ---------------------------------------------------------------

    async def get_status(self, request: Any, context: CallContext) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(
            coordinator_version="0.1.0",
            protocol=PROTOCOL_VERSION,
            address="127.0.0.1:1",
            started_at=T0,
            store="sqlite",
            peers={"ACTIVE": 2, "SUSPECT": 1},
            runs={"RUNNING": 1},
            disk_free_bytes=5 << 30,
        )

    async def submit_run(self, request: pb.SubmitRunRequest, context: CallContext) -> pb.SubmitRunResponse:
        if request.request_id not in self.requests:
            spec = json.loads(request.spec_json)
            name = spec["name"]
            run = self._add(f"{name}-{len(self.runs):04d}", name, "FINISHED", "done", spec)
            if name.startswith("doomed"):
                run.state, run.reason = "FAILED", "5 rounds in a row were skipped"
            if name == "stuck":
                run.state, run.reason, run.needs_resume = "PAUSED", "ward-1: no such file; mend that", True
                run.set_aside.add(run_id=run.run_id, peer_id="ward-1", round=4, cause="no such file")
            if name == "risky":
                run.warnings.add(cause="compression.up", reason="it is risky", times=3, last_round=2)
                self._event("run.warned", run.run_id, "it is risky", data_json='{"cause": "compression.up"}')
            self._event(f"run.{run.state.lower()}", run.run_id, run.reason)
            run.ended_at = T0 + 5
            self.requests[request.request_id] = run.run_id
        run = self.runs[self.requests[request.request_id]]
        return pb.SubmitRunResponse(run=run, warnings=[each.reason for each in run.warnings])

    async def list_runs(self, request: Any, context: CallContext) -> pb.ListRunsResponse:
        return pb.ListRunsResponse(runs=self.runs.values())

    async def get_run(self, request: pb.GetRunRequest, context: CallContext) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=self.run(request.run_id))

    async def pause_run(self, request: pb.PauseRunRequest, context: CallContext) -> pb.PauseRunResponse:
        return pb.PauseRunResponse(run=self._steer(request.run_id, "PAUSED"))

    async def resume_run(self, request: pb.ResumeRunRequest, context: CallContext) -> pb.ResumeRunResponse:
        return pb.ResumeRunResponse(run=self._steer(request.run_id, "RUNNING"))

    async def stop_run(self, request: pb.StopRunRequest, context: CallContext) -> pb.StopRunResponse:
        return pb.StopRunResponse(run=self._steer(request.run_id, "CANCELLED", request.reason))

    async def remove_run(self, request: pb.RemoveRunRequest, context: CallContext) -> pb.RemoveRunResponse:
        run = self.run(request.run_id)
        if run.state != "FINISHED":
            raise StateError("run.live", f"run {run.run_id!r} is {run.state} and is not removed")
        return pb.RemoveRunResponse(run=run)  # only seen: the federation of the tests stays as it is

    def _steer(self, run_id: str, state: str, reason: str = "as asked") -> pb.Run:
        run = self.run(run_id)
        if run.state == "FINISHED":
            raise StateError("run.ended", f"run {run_id!r} has ended")
        if state == "CANCELLED":  # only seen: the federation of the tests stays as it is
            return pb.Run(run_id=run_id, state=state, reason=reason)
        run.state, run.reason = state, reason
        return run

    async def explain_run(self, request: pb.ExplainRunRequest, context: CallContext) -> pb.ExplainRunResponse:
        run = self.run(request.run_id)
        recent = [event for event in self.events if event.run_id == run.run_id][-3:]
        return pb.ExplainRunResponse(
            sentence=f"the run is {run.state}: {run.reason}",
            details=["ward-0 is training since 4 s"],
            recent=recent,
        )

    async def list_rounds(self, request: pb.ListRoundsRequest, context: CallContext) -> pb.ListRoundsResponse:
        return pb.ListRoundsResponse(rounds=self.rounds[self.run(request.run_id).run_id])

    async def get_round(self, request: pb.GetRoundRequest, context: CallContext) -> pb.GetRoundResponse:
        for each in self.rounds[request.run_id]:
            if each.number == request.number:
                return pb.GetRoundResponse(round=each)
        raise NotFoundError("round.not_found", f"run {request.run_id!r} has no round {request.number}")

    async def replay_round(
        self, request: pb.ReplayRoundRequest, context: CallContext
    ) -> pb.ReplayRoundResponse:
        return pb.ReplayRoundResponse(
            rule="krum",
            model_digest="1a",
            committed_digest="2b",
            norm=2.0,
            norm_committed=4.0,
            cosine=0.5,
            distance=0.25,
            reason=f"round {request.number} with {json.dumps(json.loads(request.aggregation_json), sort_keys=True)}",
            updates=[
                pb.ReplayedUpdate(
                    assignment_id="x", peer_id="ward-0", weight=1.0, weight_committed=0.25, score=3.5,
                    selected=True, selected_committed=True, treatment="taken",
                )
            ],
        )  # fmt: skip

    async def list_peers(self, request: Any, context: CallContext) -> pb.ListPeersResponse:
        return pb.ListPeersResponse(peers=self.peers.values())

    async def get_peer(self, request: pb.GetPeerRequest, context: CallContext) -> pb.GetPeerResponse:
        recent = [event for event in self.events if event.peer_id == request.peer_id]
        return pb.GetPeerResponse(peer=self.peers[request.peer_id], recent=recent)

    async def drain_peer(self, request: pb.DrainPeerRequest, context: CallContext) -> pb.DrainPeerResponse:
        return pb.DrainPeerResponse(peer=self._move(request.peer_id, "DRAINING", request.reason))

    async def quarantine_peer(self, request: Any, context: CallContext) -> pb.QuarantinePeerResponse:
        return pb.QuarantinePeerResponse(peer=self._move(request.peer_id, "QUARANTINED", request.reason))

    async def release_peer(
        self, request: pb.ReleasePeerRequest, context: CallContext
    ) -> pb.ReleasePeerResponse:
        return pb.ReleasePeerResponse(peer=self._move(request.peer_id, "ACTIVE", ""))

    async def remove_peer(self, request: pb.RemovePeerRequest, context: CallContext) -> pb.RemovePeerResponse:
        return pb.RemovePeerResponse(peer=self._move(request.peer_id, "REVOKED", request.reason))

    def _move(self, peer_id: str, state: str, reason: str) -> pb.Peer:
        self.peers[peer_id].state, self.peers[peer_id].reason = state, reason
        return self.peers[peer_id]

    async def list_models(self, request: pb.ListModelsRequest, context: CallContext) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=self.models[self.run(request.run_id).run_id])

    async def pull_model(
        self, requests: AsyncIterator[pb.PullModelRequest], context: CallContext
    ) -> AsyncIterator[pb.PullModelResponse]:
        """Every other download is cut off after its first chunk."""
        request = await anext(requests)
        self.pulls += 1
        with self.model_path.with_name("pulls").open("a") as log:
            log.write(f"{request.offset}\n")
        yield pb.PullModelResponse(
            header=BlobHeader(
                size_bytes=self.model.size_bytes,
                digest=self.model.digest,
                run_id=request.run_id,
                round=request.round,
                offset=request.offset,
            )
        )
        body = self.model_path.read_bytes()
        for offset in range(request.offset, len(body), CHUNK_BYTES):
            data = body[offset : offset + CHUNK_BYTES]
            yield pb.PullModelResponse(chunk=Chunk(offset=offset, data=data, crc32c=checksum(data)))
            if self.pulls % 2:
                return

    async def watch_events(
        self, requests: AsyncIterator[pb.WatchEventsRequest], context: CallContext
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        request = await anext(requests)
        if request.run_id == "broken":
            raise InternalError("internal.error", "broken")
        found = [
            event
            for event in self.events
            if event.sequence > request.after_sequence and request.run_id in ("", event.run_id)
        ]
        # In halves, and the stream ends after each: a reader has to come back for the rest.
        if found:
            yield pb.WatchEventsResponse(events=found[: max(1, len(found) // 2)] if request.follow else found)
        elif request.follow and request.run_id and self.run(request.run_id).state == "RUNNING":
            await asyncio.Event().wait()

    def routes(self) -> list[Route]:
        return [
            Route(allows=EVERYBODY, method=method, handle=getattr(self, snake_case(name)))
            for name, method in ADMIN.items()
        ]


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


async def main(folder: Path) -> None:
    server = await GrpcTransport().serve("127.0.0.1:0", Fake(folder).routes())
    print(server.address, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
