"""What an admin looks at: lists in pages, one round, one peer, events. Nothing here changes anything.

Rows may be of another version or damaged: what cannot be read of one is left out of its message, and no list fails
because of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from itertools import islice

from coordinator.engine.explain import explain
from coordinator.engine.state import RunStatus
from coordinator.intake.spool import Spool
from coordinator.membership.members import MemberBook
from coordinator.rpc.convert import admin as convert
from coordinator.rpc.pages import batches, key_of, newest, page
from coordinator.runs import Runs
from coordinator.store import Store, rows
from muster.errors import NotFoundError, UsageError
from muster.files.blobs import BlobStore
from muster.runtime import clock
from muster.transport.base import CallContext
from protos.v1 import admin_pb2 as pb

EVENTS_PER_LOOK = 100
RUN_ENDS = frozenset({"run.finished", "run.failed", "run.cancelled"})
RECENT_EVENTS = 10
WARNINGS_SHOWN_MAX = 128  # more than the engine keeps of a run
SEQUENCE_MAX = 2**63 - 1  # what the databases can compare with


class Listing:
    """`obstacle(run_id)` says why a run's aggregation waits, or ""."""

    def __init__(
        self,
        *,
        runs: Runs,
        members: MemberBook,
        store: Store,
        blobs: BlobStore,
        spool: Spool,
        obstacle: Callable[[str], str],
    ) -> None:
        self._runs = runs
        self._members = members
        self._store = store
        self._blobs = blobs
        self._spool = spool
        self._obstacle = obstacle

    # -- runs ---------------------------------------------------------------------------------------------------------

    async def list_runs(self, request: pb.ListRunsRequest, context: CallContext) -> pb.ListRunsResponse:
        got = await page(
            lambda after, limit: self._store.runs(after=after, limit=limit),
            self.run_message,
            lambda row: (float(row.created_at), row.run_id),
            after=key_of(request.page_token, float, str),
            page_size=request.page_size,
        )
        return pb.ListRunsResponse(runs=got.items, next_page_token=got.next_token)

    async def run(self, run_id: str) -> rows.RunRow:
        row = await self._store.run(run_id)
        if row is None:
            raise NotFoundError("run.not_found", f"no run {run_id!r}", fix="muster run list")
        return row

    def run_message(self, row: rows.RunRow) -> pb.Run:
        message = convert.run(row)
        reason = self._runs.unreadable.get(row.run_id)
        if reason is not None:
            message.state, message.reason = convert.UNREADABLE, reason
        return message

    async def whole_run(self, row: rows.RunRow) -> pb.Run:
        """With its warnings, the newest last, and whom it asks no more."""
        message = self.run_message(row)
        kept = await self._store.warnings(row.run_id)
        message.warnings.extend(map(convert.warning, kept[-WARNINGS_SHOWN_MAX:]))
        live = self._runs.get(row.run_id)
        if live is not None:
            message.set_aside.extend(convert.set_aside(live))
        return message

    async def get_run(self, request: pb.GetRunRequest, context: CallContext) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=await self.whole_run(await self.run(request.run_id)))

    async def explain_run(self, request: pb.ExplainRunRequest, context: CallContext) -> pb.ExplainRunResponse:
        row = await self.run(request.run_id)
        start = key_of(request.page_token, int)
        response = pb.ExplainRunResponse()
        if start is None:
            recent = await self._store.recent_events(run_id=row.run_id, limit=RECENT_EVENTS)
            response.recent.extend(newest([convert.event(each) for each in recent]))
        live = self._runs.get(row.run_id)
        if live is None:
            message = self.run_message(row)
            response.sentence = f"the run is {message.state}: {message.reason}"
            return response
        found = explain(live, self._members.views(), clock.now(), self._spool.bytes_held)
        told = self._obstacle(row.run_id) or found.sentence
        response.sentence = convert.text(f"the run is {row.state}: {told}")

        async def read(after: tuple[int] | None, limit: int) -> list[tuple[int, str]]:
            at = 0 if after is None else after[0]
            return list(enumerate(found.details[at : at + limit], at + 1))

        got = await page(
            read,
            lambda row: convert.text(row[1]),
            lambda row: (row[0],),
            after=start,
            page_size=request.page_size,
        )
        response.details.extend(got.items)
        response.next_page_token = got.next_token
        return response

    # -- rounds and models --------------------------------------------------------------------------------------------

    async def list_rounds(self, request: pb.ListRoundsRequest, context: CallContext) -> pb.ListRoundsResponse:
        recipe = convert.recipe(await self.run(request.run_id))
        got = await page(
            lambda after, limit: self._store.rounds(
                request.run_id, after=after[0] if after else 0, limit=limit
            ),
            lambda row: convert.round(row, recipe),
            lambda row: (row.number,),
            after=key_of(request.page_token, int),
            page_size=request.page_size,
        )
        return pb.ListRoundsResponse(rounds=got.items, next_page_token=got.next_token)

    async def get_round(self, request: pb.GetRoundRequest, context: CallContext) -> pb.GetRoundResponse:
        recipe = convert.recipe(await self.run(request.run_id))
        found = await self._store.bare_round(request.run_id, request.number)
        if found is None:
            raise NotFoundError(
                "round.not_found",
                f"run {request.run_id!r} has no round {request.number}",
                fix=f"muster round list {request.run_id}",
            )
        row, totals = found
        message = convert.round(row, recipe, totals)
        message.score_meaning = await asyncio.to_thread(_score_meaning, recipe.own_rule)
        base = await self._store.model(request.run_id, version=row.base_version)
        if base is not None:
            # Who delivered held the base; whether the others had come so far is not known.
            message.bytes_down_dense = convert.whole(base.size_bytes * totals.delivered)
        got = await page(
            lambda after, limit: self._store.assignments(
                request.run_id, request.number, after=after, limit=limit
            ),
            self._assignment,
            lambda row: (int(row.evaluation), row.peer_id, row.attempt),
            after=key_of(request.page_token, int, str, int),
            page_size=request.page_size,
        )
        message.assignments.extend(got.items)
        return pb.GetRoundResponse(round=message, next_page_token=got.next_token)

    def _assignment(self, row: rows.AssignmentRow) -> pb.RoundAssignment:
        held = self._spool.bytes_held(row.assignment_id) if row.state == "UPLOADING" else 0
        return convert.assignment(row, held)

    async def list_models(self, request: pb.ListModelsRequest, context: CallContext) -> pb.ListModelsResponse:
        await self.run(request.run_id)
        got = await page(
            lambda after, limit: self._store.models(
                request.run_id, after=after[0] if after else -1, limit=limit
            ),
            self._model,
            lambda row: (row.version,),
            after=key_of(request.page_token, int),
            page_size=request.page_size,
        )
        return pb.ListModelsResponse(models=got.items, next_page_token=got.next_token)

    def _model(self, row: rows.ModelRow) -> pb.Model:
        try:
            kept = self._blobs.has(row.digest)
        except UsageError:  # no digest at all
            kept = False
        return convert.model(row, kept=kept)

    # -- peers --------------------------------------------------------------------------------------------------------

    async def list_peers(self, request: pb.ListPeersRequest, context: CallContext) -> pb.ListPeersResponse:
        got = await page(
            lambda after, limit: self._store.peers(after=after[0] if after else "", limit=limit),
            self.peer_message,
            lambda row: (row.peer_id,),
            after=key_of(request.page_token, str),
            page_size=request.page_size,
        )
        return pb.ListPeersResponse(peers=got.items, next_page_token=got.next_token)

    async def get_peer(self, request: pb.GetPeerRequest, context: CallContext) -> pb.GetPeerResponse:
        recent = await self._store.recent_events(peer_id=request.peer_id, limit=RECENT_EVENTS)
        return pb.GetPeerResponse(
            peer=await self.peer(request.peer_id),
            recent=newest([convert.event(row) for row in recent]),
        )

    async def peer(self, peer_id: str) -> pb.Peer:
        row = await self._store.peer(peer_id)
        if row is None:
            raise NotFoundError("peer.not_found", f"no peer {peer_id!r}", fix="muster peer list")
        return self.peer_message(row)

    def peer_message(self, row: rows.PeerRow) -> pb.Peer:
        """Heartbeats write no row: when a live peer was last heard is known in memory only."""
        message = convert.peer(row)
        member = self._members.get(row.peer_id)
        if member is not None and member.connected:
            message.seen_at = self._members.seen_at(row.peer_id)
        for run in islice(self._runs.values(), convert.SET_ASIDE_MAX):
            message.set_aside.extend(convert.set_aside(run, row.peer_id))
        return message

    # -- events -------------------------------------------------------------------------------------------------------

    async def watch_events(
        self, requests: AsyncIterator[pb.WatchEventsRequest], context: CallContext
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        request = await anext(requests)
        # A run leaves memory before its last event is durable: whoever follows it waits for that event.
        told = await self._has_ended(request.run_id)

        def over() -> bool:
            stands_still = request.run_id in self._runs.unreadable
            return not request.follow or stands_still or (told and request.run_id not in self._runs)

        pages = self._store.tail(
            min(request.after_sequence, SEQUENCE_MAX),
            run_id=request.run_id or None,
            over=over,
            limit=EVENTS_PER_LOOK,
        )
        async with aclosing(pages):
            async for found in pages:
                told = told or any(row.kind in RUN_ENDS for row in found)
                for batch in batches(map(convert.event, found)):
                    yield pb.WatchEventsResponse(events=batch)

    async def _has_ended(self, run_id: str) -> bool:
        """Whether there will be no further event of the run; "" stands for all runs."""
        if not run_id:
            return False
        row = await self._store.run(run_id)
        return row is None or RunStatus(row.state).ended


def _score_meaning(rule: str) -> str:
    """In a thread: plug-ins import torch."""
    import aggregators

    try:
        return convert.text(aggregators.describe(rule).score)
    except aggregators.RuleError:  # its package is not installed any more
        return ""
