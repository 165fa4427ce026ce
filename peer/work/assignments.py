"""The assignments that this peer holds, each carried through its steps by a task of its own.

    train:     ACCEPTED -> base fetched -> prepared -> trained -> update and state staged -> uploaded, receipt ->
    committed evaluate:  ACCEPTED -> base fetched -> prepared -> evaluated -> report settled

Each arrow ends in the peer store, so that a daemon that is killed anywhere goes on from there. Whatever goes
wrong ends the assignment with a report, which is kept until the coordinator has it for good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec

import structlog

from muster.errors import MusterError, NotAllowedError, StorageError
from muster.runtime import clock
from muster.runtime.failpoints import failpoint
from muster.work import evaluates
from peer.connection import reports
from peer.connection.checks import named, offer_refusal
from peer.store.disk_reserve import DiskReserve
from peer.store.store import Held
from peer.store.thread import StoreThread
from peer.work.job_runner import JobRunner, Steps
from peer.work.transfers import Transfers
from protos.v1 import membership_pb2 as pb

log = structlog.get_logger()

RUNS_TOLD_MAX = 4096  # in one hello, which has a size; the next session settles the next
HELD_MAX = 64  # assignments at once; a coordinator that offers more is out of its mind
STORE_RETRY_SECONDS = 5.0

P = ParamSpec("P")
Settled = Callable[[], Awaitable[None]]
Tell = Callable[[pb.AssignmentReport, Settled | None], None]


@dataclass(kw_only=True)
class Work:
    """One held assignment. `phase` is what the coordinator was told last; `task` carries it on."""

    held: Held
    offer: pb.Assignment
    phase: pb.AssignmentPhase.ValueType = pb.ASSIGNMENT_PHASE_ACCEPTED
    task: asyncio.Task[None] | None = None
    delivered: bool = False
    warnings: Sequence[str] = ()  # go with the next report

    @property
    def assignment_id(self) -> str:
        return self.held.assignment_id

    def start_after(self, round: int) -> None:
        """The state that the update starts from is that after this round; see `Assignment.counted_round`."""
        self.offer.counted_round = round
        self.held = replace(self.held, offer=self.offer.SerializeToString())


class Assignments:
    """`tell` sends a report if there is a session, and forgets it if there is none: `retell` says all
    again."""

    def __init__(
        self,
        *,
        bench: JobRunner,
        store: StoreThread,
        courier: Transfers,
        room: DiskReserve,
        tell: Tell,
    ) -> None:
        self._bench = bench
        self._room = room
        self._store = store
        self._courier = courier
        self._tell = tell
        self._works: dict[str, Work] = {}
        self._moved = asyncio.Event()  # one for each time that an assignment ends, or has its update
        self._restoring: asyncio.Task[None] | None = None

    # -- what the daemon asks -----------------------------------------------------------------------------

    def resume(self, all_held: Iterable[Held]) -> None:
        """Takes up what the store holds from before."""
        for held in all_held:
            work = Work(held=held, offer=pb.Assignment.FromString(held.offer))
            if offer_refusal(work.offer, self._bench.site.name):
                continue  # of a time before offers were checked: the coordinator hears that it is not held
            self._works[held.assignment_id] = work
            self._start(work)
            log.info("assignment.resumed", assignment_id=held.assignment_id, trained=held.update is not None)

    async def hello(self, credentials: pb.Credentials) -> pb.Hello:
        """The first word of a session: what is held from before."""
        return pb.Hello(
            credentials=credentials,
            held_assignment_ids=sorted(self._works),
            held_run_ids=(await self._store.do(self._store.store.runs))[:RUNS_TOLD_MAX],
        )

    def welcomed(self) -> None:
        """Tells a new session where every assignment stands."""
        for work in self._works.values():
            self._tell_phase(work)

    async def offer(self, offer: pb.Assignment) -> None:
        """Takes an offer, or refuses it with a report. One that is held goes on, with its new deadline.

        One that makes no sense, or one too many, is refused and not kept: it would only be made again.
        """
        refusal = offer_refusal(offer, self._bench.site.name)
        if refusal is None and offer.assignment_id not in self._works and len(self._works) >= HELD_MAX:
            refusal = NotAllowedError("peer.too_busy", f"this peer holds {HELD_MAX} assignments already")
        if refusal is not None:
            log.warning("offer.refused", assignment_id=offer.assignment_id[:100], error=str(refusal))
            if named(offer):
                self._tell(reports.failed(offer.assignment_id, refusal, retry=False), None)
            return
        deadline_at = clock.now() + offer.deadline_seconds
        known = self._works.get(offer.assignment_id)
        if known is not None:
            known.held = replace(known.held, deadline_at=deadline_at)
            if known.held.update is None:
                known.start_after(offer.counted_round)
            await self._accept(known)
            self._tell_phase(known)
            return
        held = Held(
            assignment_id=offer.assignment_id,
            run_id=offer.run_id,
            offer=offer.SerializeToString(),
            deadline_at=deadline_at,
        )
        work = Work(held=held, offer=offer)
        refusal = self._bench.refusal(offer)
        if refusal is not None:
            log.warning("assignment.refused", assignment_id=offer.assignment_id, error=str(refusal))
            report = reports.failed(offer.assignment_id, refusal, retry=False)
            work.held = replace(held, report=report.SerializeToString())
        await self._accept(work)
        failpoint("peer.accepted")
        self._works[offer.assignment_id] = work
        self._tell_phase(work)
        self._start(work)

    async def cancel(self, assignment_id: str, reason: str) -> None:
        """Stops the work and drops what it staged, unless the update turns out to have been delivered."""
        work = self._works.get(assignment_id)
        if work is None or work.delivered:
            return
        log.info("assignment.cancelled", assignment_id=assignment_id, reason=reason)
        await self._stop(work)
        if work.held.update is None:
            await self._drop(work)
        else:
            work.task = asyncio.create_task(self._settle_cancelled(work))

    async def run_ended(self, run_id: str) -> None:
        """The run is over: its work stops, and all that was kept for it goes."""
        for work in [work for work in self._works.values() if work.held.run_id == run_id]:
            await self._stop(work)
            self._forget(work)
        await self._store.do(self._store.store.forget, run_id)
        self._courier.forget(run_id)
        await self._bench.preparations.forget(run_id)
        self._bench.workers.forget(run_id)

    def restore(self, wanted: pb.Restore) -> None:
        """The coordinator has lost a version, which may be here. One at a time; it asks again if it must."""
        if self._restoring is None or self._restoring.done():
            self._restoring = asyncio.create_task(self._courier.restore(wanted))

    async def close(self) -> None:
        """Stops all work where it stands; the next start goes on from there."""
        if self._restoring is not None:
            self._restoring.cancel()
            await asyncio.wait({self._restoring})
        for work in list(self._works.values()):
            await self._stop(work)

    # -- steps --------------------------------------------------------------------------------------------

    def _start(self, work: Work) -> None:
        if not work.held.report:
            work.task = asyncio.create_task(self._carry(work))

    async def _carry(self, work: Work) -> None:
        try:
            if evaluates(work.offer.work.role):
                await self._evaluate(work)
            else:
                await self._train(work)
        except MusterError as error:
            await self._end_badly(work, error)
        except Exception as error:  # it costs this assignment and is reported as the defect it is
            await self._end_badly(work, reports.defect(error))

    async def _train(self, work: Work) -> None:
        await self._turn(work)
        update = work.held.update or await self._make_update(work)
        self._advance(work, pb.ASSIGNMENT_PHASE_UPLOADING)
        await self._courier.deliver(
            work.offer, update, work.held.update_digest, deadline_at=lambda: work.held.deadline_at
        )
        work.delivered = True
        failpoint("peer.delivered")
        await self._commit(work)

    async def _turn(self, work: Work) -> None:
        """Waits until earlier training of the same run and role is done, and settled if it hands on state.

        The offer of the next round may well come before the receipt of this one, and only with the receipt it
        is known which state the next update starts from. Without any, one is sent while the next one trains.
        """
        while self._is_behind(work):
            await self._moved.wait()

    @staticmethod
    def _is_same(one: Work, other: Work) -> bool:
        """Whether both are training of one run in one role, and so hand on one state."""
        return (one.held.run_id, one.offer.work.role) == (other.held.run_id, other.offer.work.role)

    def _is_behind(self, work: Work) -> bool:
        for other in self._works.values():  # in the order in which they were taken
            if other is work:
                return False
            same = self._is_same(other, work)
            sent = other.held.update is not None and not other.held.stateful
            if same and not sent and not other.held.report:
                return True
        return False

    async def _make_update(self, work: Work) -> Path:
        store = self._store.store
        # The update, and the state that a feedback may keep beside it: each as large as the model at the most.
        self._room.check(2 * work.offer.work.base.size_bytes, f"the update of {work.assignment_id}")
        stem = store.new_stem()
        try:
            update, trained = await self._bench.train(
                work.offer,
                stem=stem,
                state=lambda: self._store.do(
                    store.settle, work.held.run_id, work.offer.counted_round, work.offer.work.role
                ),
                deadline_at=lambda: work.held.deadline_at,
                steps=self._steps(work),
            )
            staged = {key: Path(path) for key, path in trained.staged.items()}
            await self._store.do(store.stage, work.assignment_id, update, trained.digest, staged)
            work.held = replace(work.held, update=update, update_digest=trained.digest, stateful=bool(staged))
            work.warnings = trained.warnings
            self._note_move()  # what hands on no state need not be delivered before the next one trains
            failpoint("peer.trained")
            log.info(
                "update.trained",
                assignment_id=work.assignment_id,
                update_bytes=trained.size_bytes,
                metrics=dict(trained.metrics),
            )
            return update
        finally:
            await self._store.do(store.discard, stem)

    async def _evaluate(self, work: Work) -> None:
        store = self._store.store
        found = await self._bench.evaluate(
            work.offer,
            state=lambda: self._store.do(store.state_after, work.held.run_id, work.offer.counted_round),
            deadline_at=lambda: work.held.deadline_at,
            steps=self._steps(work),
        )
        await self._end(work, reports.evaluated(work.assignment_id, found))

    async def _settle_cancelled(self, work: Work) -> None:
        """A cancelled update may have been delivered, and its receipt lost: only the coordinator knows.

        If it cannot be asked the assignment stays held, and the next session cancels it again.
        """
        try:
            delivered = await self._courier.was_delivered(work.offer, work.held.update_digest)
        except MusterError as error:
            log.warning("assignment.unsettled", assignment_id=work.assignment_id, error=str(error))
            return
        if delivered:
            work.delivered = True
            await self._commit(work)
        else:
            await self._drop(work)

    # -- ends ---------------------------------------------------------------------------------------------

    async def _end_badly(self, work: Work, error: MusterError) -> None:
        retry = reports.worth_retrying(error, time_left=self._bench.has_time(work.held.deadline_at))
        log.warning("assignment.failed", assignment_id=work.assignment_id, error=str(error), retry=retry)
        await self._end(work, reports.failed(work.assignment_id, error, retry=retry))

    async def _end(self, work: Work, report: pb.AssignmentReport) -> None:
        body = report.SerializeToString()
        await self._store_if_possible(self._store.store.end, work.assignment_id, body)
        work.held = replace(work.held, update=None, update_digest="", report=body)
        self._tell_phase(work)
        self._note_move()

    async def _drop(self, work: Work) -> None:
        await self._store_if_possible(self._store.store.rollback, work.assignment_id)
        self._forget(work)

    async def _commit(self, work: Work) -> None:
        """Until it succeeds: with the receipt given, losing the new state would falsify every later update."""
        while True:
            try:
                await self._store.do(
                    self._store.store.commit, work.assignment_id, work.offer.round, work.offer.work.role
                )
                break
            except StorageError as error:
                log.warning("store.failed", assignment_id=work.assignment_id, error=str(error))
                await asyncio.sleep(STORE_RETRY_SECONDS)
        failpoint("peer.committed")
        for other in self._works.values():
            # Offered before this receipt: the next update starts from the state that is kept with it.
            if self._is_same(other, work) and other.held.update is None and other is not work:
                other.start_after(max(other.offer.counted_round, work.offer.round))
                await self._store_if_possible(self._store.store.accept, other.held, now=clock.now())
        self._forget(work)
        log.info("update.delivered", assignment_id=work.assignment_id)

    def _forget(self, work: Work) -> None:
        self._works.pop(work.assignment_id, None)
        self._note_move()

    def _note_move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def _store_if_possible(self, call: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """For an end that the store may miss: after a restart the assignment then only ends once more."""
        try:
            await self._store.do(call, *args, **kwargs)
        except StorageError as error:
            log.warning("store.failed", error=str(error))

    async def _stop(self, work: Work) -> None:
        if work.task is not None:
            work.task.cancel()
            await asyncio.wait({work.task})

    # -- small parts --------------------------------------------------------------------------------------

    async def _accept(self, work: Work) -> None:
        await self._store.do(self._store.store.accept, work.held, now=clock.now())

    def _steps(self, work: Work) -> Steps:
        """What preparing takes is not taken from the deadline, as the coordinator has it too."""

        offered = work.held.deadline_at

        def give(seconds: float) -> None:
            deadline_at = max(offered, clock.now() + seconds)
            work.held = replace(work.held, deadline_at=deadline_at)

        def prepare(seconds: float) -> None:
            give(seconds)
            self._advance(work, pb.ASSIGNMENT_PHASE_PREPARING)

        def start(seconds: float | None) -> None:
            if seconds is not None:
                give(seconds)
            self._advance(work, pb.ASSIGNMENT_PHASE_TRAINING)

        return Steps(prepare=prepare, start=start)

    def _advance(self, work: Work, phase: pb.AssignmentPhase.ValueType) -> None:
        work.phase = phase
        self._tell_phase(work)

    def _tell_phase(self, work: Work) -> None:
        if not work.held.report:
            self._tell(reports.phase(work.assignment_id, work.phase, work.warnings), None)
            work.warnings = ()
            return

        async def settled() -> None:
            await self._drop(work)

        self._tell(pb.AssignmentReport.FromString(work.held.report), settled)
