"""The coordinator: an asyncio shell around pure decisions.

It feeds events to the engine and to the membership detector through the journal, and carries out the effects of what
was committed. State lives in memory and in the store alike; after a restart it is read back and every run goes on.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import shutil
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import structlog

from coordinator.effects import EffectRunner
from coordinator.engine import decide as engine
from coordinator.engine.assignments import live_offers
from coordinator.engine.schedule import Schedule
from coordinator.engine.state import (
    AssignmentState,
    AssignmentStatus,
    Cancel,
    Decision,
    Effect,
    Event,
    Offer,
    PeerGone,
    PeerView,
    Restored,
    RunBroken,
    RunState,
    RunSubmitted,
    Tick,
    WakeAt,
)
from coordinator.journal import STORE_RETRY_SECONDS, Committed, Journal, Outcome, is_fenced
from coordinator.membership import detector
from coordinator.membership.members import MemberBook
from coordinator.repairs import Repairs
from coordinator.rpc.offers import SessionBook
from coordinator.store import AssignmentRow, Store
from coordinator.submission.checks import cautions, check_spec
from exchange.facts import UpdateFacts
from muster.config.settings import CoordinatorConfig
from muster.errors import InternalError, MusterError, NotFoundError, StorageError
from muster.files.blobs import BlobStore
from muster.runtime import clock
from muster.runtime.randomness import MACHINE
from muster.spec.model import RunSpec
from muster.texts import one_line
from muster.worker.base import Worker

log = structlog.get_logger()

TICK_SECONDS = 0.5  # how often heartbeats are looked at
PEER_EVENTS_KEEP = 200  # of each peer, beside those of runs
EVENTS_PRUNE_SECONDS = 3600.0
PRUNE_SECONDS = 60.0  # how often names are looked for that nobody came for


class Coordinator:
    """`make_worker` gives what runs tasks' code, worker processes by default; `random` draws the ids."""

    def __init__(
        self,
        config: CoordinatorConfig,
        store: Store,
        blobs: BlobStore,
        *,
        make_worker: Callable[[], Worker] | None = None,
        random: Random = MACHINE,
    ) -> None:
        self.config = config
        self.store = store
        self.blobs = blobs
        self.make_worker = make_worker
        self.random = random
        self.started_at = clock.now()
        self.journal = Journal(store)
        self.sessions = SessionBook()
        self.runs: dict[str, RunState] = {}
        self.unreadable: dict[str, str] = {}  # runs that cannot go on here, with the reason
        self.address = ""  # as bound; set when it serves
        self._schedules: dict[str, Schedule] = {}
        self.members = MemberBook(self.journal, config, self._members_changed)
        # Apart, so that no peer's update, however slow to decode, holds up a round.
        self.admissions = ThreadPoolExecutor(2, thread_name_prefix="admission")
        self.aggregations = ThreadPoolExecutor(2, thread_name_prefix="aggregation")
        # A thread of its own, one replay after the other: rounds never wait for what somebody is curious about.
        self.replays = ThreadPoolExecutor(1, thread_name_prefix="replay")
        self.repairs = Repairs(self)
        self.effects = EffectRunner(self)
        self._wakes: list[tuple[float, str]] = []
        self._wake_changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.failed: asyncio.Future[MusterError] = asyncio.get_running_loop().create_future()

    @property
    def spool(self) -> Path:
        return Path(self.config.data_dir) / "spool"

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Claims the store, reads back what is durable and takes up every run where it stands."""
        holder = f"the coordinator with the data folder {self.config.data_dir} on {socket.gethostname()}"
        self.journal.fence = await self.store.take_fence(holder, clock.now())
        self.members.restore(await self.store.load_peers())
        unread: dict[str, str] = {}
        for run in await self.store.load_runs(unread):
            try:
                self._schedules[run.run_id] = await _schedule(run.spec)
                self.runs[run.run_id] = run
            except Exception as error:  # of Muster's own checks, or of a plug-in that they import
                told = error.message if isinstance(error, MusterError) else repr(error)
                unread[run.run_id] = f"it was accepted by another version, or with other plug-ins: {told}"
        for run_id, reason in unread.items():
            self._leave(run_id, reason)
        await self.effects.open()
        await self.effects.sweep()
        for loop in (self.journal.run, self._wake_loop, self._membership_loop):
            self.spawn(loop()).add_done_callback(self._vital_ended)
        for run_id in list(self.runs):
            await self.post_surely(Restored(run_id=run_id))

    async def stop(self) -> None:
        self.sessions.close_all("the coordinator is stopping", reconnect=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.effects.close()
        for pool in (self.admissions, self.aggregations, self.replays):
            pool.shutdown(wait=True, cancel_futures=True)
        await self.store.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A background task that is kept until done; a failure in it is a defect and is logged as one."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task.failed", exc_info=error)

    def _vital_ended(self, task: asyncio.Task[None]) -> None:
        """Without one of its loops a coordinator would only seem to work: better that its supervisor starts it anew."""
        if task.cancelled() or self.failed.done():
            return
        error = task.exception()
        if isinstance(error, MusterError) and is_fenced(error):
            self.failed.set_result(error)
            return
        self.failed.set_result(
            InternalError(
                "coordinator.failed",
                f"a loop of the coordinator ended: {error!r}",
                fix="start it again: every run goes on",
            )
        )

    # -- the engine ---------------------------------------------------------------------------------------------------

    async def post(self, event: Event) -> Committed:
        """Feeds one event to its run; returns when the consequences are durable. Raises `NotFoundError` for a run
        that is unknown or has ended, `StorageError` with nothing changed."""
        return await self.journal.submit(lambda: self._decide(event))

    async def post_surely(self, event: Event) -> None:
        """For what happened inside and cannot be asked again: tries until the store takes it."""
        while True:
            try:
                await self.post(event)
            except NotFoundError:
                return
            except StorageError as error:
                log.warning("event.retried", event_kind=type(event).__name__, error_id=error.id)
                await asyncio.sleep(STORE_RETRY_SECONDS)
            except Exception as error:  # no retry mends it, and no other run has to do with it
                log.exception("run.broken", run_id=event.run_id, event_kind=type(event).__name__)
                if isinstance(event, RunBroken):
                    self._leave(event.run_id, event.reason)
                    return
                event = RunBroken(run_id=event.run_id, reason=_broken(event, error))
            else:
                return

    def _leave(self, run_id: str, reason: str) -> None:
        """It stands still until the next start, or until an admin ends it; what is stored of it stays."""
        self.runs.pop(run_id, None)
        self._schedules.pop(run_id, None)
        self.effects.forget(run_id)
        self.unreadable[run_id] = one_line(reason)
        log.error(
            "run.unreadable",
            run_id=run_id,
            reason=self.unreadable[run_id],
            fix=f"start the coordinator again once that is mended, or end the run: muster run stop {run_id}",
        )

    async def stop_unreadable(self, run_id: str, reason: str) -> None:
        await self.store.end_unread(run_id, f"cancelled: {reason}", clock.now(), fence=self.journal.fence)
        self.unreadable.pop(run_id, None)
        self.sessions.run_ended(run_id)

    async def submit_run(self, event: RunSubmitted) -> Committed:
        """Raises `ConfigError` if the spec names what is not installed here or cannot be combined, `NotAllowedError`
        if its task may not be imported here, `TaskError` if importing it fails. What the spec is warned of is kept
        with the run. If the call is cancelled there is either the whole run or nothing of it."""
        run_id = event.run_id
        schedule = await _schedule(event.spec, event.spec_toml)
        await self.effects.check_task(run_id, event.spec)
        try:
            told = await asyncio.to_thread(cautions, event.spec)
            event = replace(event, warnings=(*event.warnings, *told))

            def decide() -> Outcome:
                decision = engine.new_run(event, run_id, clock.now())
                self._schedules[run_id] = schedule
                return self._outcome(run_id, None, decision)

            return await self.journal.submit(decide)
        finally:
            if run_id not in self.runs:
                self.effects.forget(run_id)

    def _decide(self, event: Event) -> Outcome:
        state = self.runs.get(event.run_id)
        if state is None:
            raise NotFoundError(
                "run.not_live",
                f"no live run {event.run_id!r}",
                cause="it is unknown or has ended",
                fix="muster run list",
            )
        decision = engine.decide(
            state, event, clock.now(), self.peer_views(), self._schedules.get(event.run_id)
        )
        return self._outcome(event.run_id, state, decision)

    def _outcome(self, run_id: str, before: RunState | None, decision: Decision) -> Outcome:
        self._place(run_id, decision.state)

        def undo() -> None:
            if before is None:
                self.runs.pop(run_id, None)
                self._schedules.pop(run_id, None)
            else:
                self.runs[run_id] = before

        def then() -> None:
            for transition in filter(lambda each: each.kind, decision.transitions):
                tell = log.warning if transition.kind == "run.warned" else log.info
                tell(
                    transition.kind,
                    run_id=transition.run_id,
                    round=transition.round,
                    peer_id=transition.peer_id,
                    reason=transition.reason,
                )
            for effect in decision.effects:
                self._carry_out(effect)
            if decision.state.status.ended and before is not None:
                self.sessions.run_ended(run_id)
            self.effects.observe(decision)

        return Outcome(transitions=decision.transitions, undo=undo, then=then, reason=decision.reason)

    def _place(self, run_id: str, state: RunState) -> None:
        if state.status.ended:
            self.runs.pop(run_id, None)
            self._schedules.pop(run_id, None)
        else:
            self.runs[run_id] = state

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, WakeAt):
            heapq.heappush(self._wakes, (effect.at, effect.run_id))
            self._wake_changed.set()
        elif isinstance(effect, Offer):
            run = self.runs.get(effect.run_id)
            if run is not None:
                self.sessions.offer(run, effect.assignment, effect.deadline_at - clock.now())
        elif isinstance(effect, Cancel):
            self.sessions.cancel(effect.peer_id, effect.assignment_id, effect.reason)
        else:
            self.effects.start(effect)

    async def _wake_loop(self) -> None:
        while True:
            self._wake_changed.clear()
            now = clock.now()
            due: set[str] = set()
            while self._wakes and self._wakes[0][0] <= now:
                due.add(heapq.heappop(self._wakes)[1])
            for run_id in due:
                await self.post_surely(Tick(run_id=run_id))
            timeout = max(0.0, self._wakes[0][0] - clock.now()) if self._wakes else None
            try:
                await asyncio.wait_for(self._wake_changed.wait(), timeout)
            except TimeoutError:
                continue

    async def tick_all(self) -> None:
        """Who is there has changed: lets every run look again."""
        for run_id in list(self.runs):
            await self.post_surely(Tick(run_id=run_id))

    async def _members_changed(self, lost: Sequence[tuple[str, str]]) -> None:
        """Runs hear of peers that are gone, and look again at who is there."""
        for peer_id, reason in lost:
            for run_id in list(self.runs):
                await self.post_surely(PeerGone(run_id=run_id, peer_id=peer_id, reason=reason))
        await self.tick_all()

    def peer_views(self) -> Mapping[str, PeerView]:
        return self.members.views()

    async def _membership_loop(self) -> None:
        pruned_at, events_pruned_at = clock.now(), -math.inf
        while True:
            await asyncio.sleep(min(TICK_SECONDS, self.config.heartbeat_seconds / 2))
            await self.members.submit_surely(detector.Tick())
            if clock.now() >= pruned_at + PRUNE_SECONDS:
                pruned_at = clock.now()
                await self._prune_names()
            if clock.now() >= events_pruned_at + EVENTS_PRUNE_SECONDS:
                events_pruned_at = clock.now()
                await self._prune_events()

    async def _prune_names(self) -> None:
        try:
            named = await self.store.named_peers() if self.members.crowded() else frozenset[str]()
        except StorageError as error:  # the next time will do
            log.warning("peers.not_pruned", error_id=error.id, reason=error.message)
        else:
            await self.members.submit_surely(detector.Prune(named=named))

    async def _prune_events(self) -> None:
        try:
            await self.store.prune_peer_events(PEER_EVENTS_KEEP, fence=self.journal.fence)
        except StorageError as error:  # the next time will do
            log.warning("events.not_pruned", error_id=error.id, reason=error.message)

    # -- look-ups -----------------------------------------------------------------------------------------------------

    def live_assignments(self, peer_id: str) -> list[tuple[RunState, AssignmentState, float]]:
        """What this peer is to be working on, each with its run and deadline."""
        return [
            (run, offer.assignment, offer.deadline_at)
            for run in self.runs.values()
            for offer in live_offers(run, peer_id)
        ]

    def is_at_work(self, peer_id: str) -> bool:
        """Whether it is connected, or is to be working on something. A name alone is free and says nothing."""
        return self.sessions.get(peer_id) is not None or bool(self.live_assignments(peer_id))

    async def find_assignment(self, assignment_id: str) -> tuple[RunState | None, AssignmentState | None]:
        """An assignment and, if its round is still live, its run."""
        run = self.runs.get(assignment_id.split(".", 1)[0])
        if run is not None:
            held = [each.assignments for each in run.rounds.values()]
            held += [each.assignments for each in run.evaluations.values()]
            for assignments in held:
                if assignment_id in assignments:
                    return run, assignments[assignment_id]
        row = await self.store.assignment(assignment_id)
        return None, None if row is None else _of_the_record(row)

    def bytes_held(self, assignment_id: str) -> int:
        try:
            return (self.spool / f"{assignment_id}.part").stat().st_size
        except FileNotFoundError:
            return 0

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.spool).free


async def _schedule(spec: RunSpec, text: str = "") -> Schedule:
    """In a thread, since a rule's bound comes from its plug-in, which may be slow to import."""
    return await asyncio.to_thread(check_spec, spec, text)


def _broken(event: Event, error: Exception) -> str:
    return one_line(
        f"a decision of this run could not be made or stored ({type(event).__name__}): "
        f"{type(error).__name__}: {error}; the coordinator's log has the traceback"
    )


def _of_the_record(row: AssignmentRow) -> AssignmentState:
    """An assignment of a round that is over."""
    update = None
    if row.digest:
        update = UpdateFacts(
            digest=row.digest,
            size_bytes=row.size_bytes,
            dense_bytes=row.dense_bytes,
            examples=row.examples,
            norm=row.norm or 0.0,
            source_digest=row.source_digest,
            metrics=row.metrics,
        )
    return AssignmentState(
        assignment_id=row.assignment_id,
        run_id=row.run_id,
        round=row.round,
        peer_id=row.peer_id,
        work=row.work,
        evaluation=row.evaluation,
        attempt=row.attempt,
        status=AssignmentStatus(row.state),
        reason=row.reason,
        offered_at=row.offered_at,
        update=update,
    )
