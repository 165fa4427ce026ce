"""The live runs: their state in memory, and the one way to change it, which is to post an event.

committed = await runs.post(event)   # durable; committed.accepted says whether it did what it is for
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import structlog

from coordinator.engine import decide as engine
from coordinator.engine.schedule import Schedule
from coordinator.engine.state import (
    Decision,
    Event,
    PeerView,
    Restored,
    RunBroken,
    RunState,
    RunSubmitted,
    Tick,
)
from coordinator.events import Committed, Events, RunLeft
from coordinator.journal import Journal, Outcome, is_defect, store_backoff
from coordinator.store import Store, Trouble, trouble
from coordinator.submission.checks import check_spec
from muster.errors import MusterError, NotFoundError
from muster.runtime import clock
from muster.spec.model import RunSpec
from muster.texts import one_line

log = structlog.get_logger()


class Runs(Mapping[str, RunState]):
    """By run id. `unreadable` are runs that have not ended and cannot go on here, each with the reason."""

    def __init__(
        self,
        *,
        journal: Journal,
        events: Events,
        peers: Callable[[], Mapping[str, PeerView]],
    ) -> None:
        self._journal = journal
        self._events = events
        self._peers = peers
        self._live: dict[str, RunState] = {}
        self._schedules: dict[str, Schedule] = {}
        self._reread: set[str] = (
            set()
        )  # taken from the store again; what is under way in them is not ordered yet
        self.unreadable: dict[str, str] = {}

    def __getitem__(self, run_id: str) -> RunState:
        return self._live[run_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._live)

    def __len__(self) -> int:
        return len(self._live)

    # -- start ----------------------------------------------------------------------------------------------

    async def restore(self, runs: Iterable[RunState], unread: Mapping[str, str]) -> None:
        """Takes up what the store has; `unread` are runs that it could not give, with the reason."""
        left = dict(unread)
        for run in runs:
            try:
                self._schedules[run.run_id] = await schedule_of(run.spec)
                self._live[run.run_id] = run
            except Exception as error:  # of Muster's own checks, or of a plug-in that they import
                told = error.message if isinstance(error, MusterError) else repr(error)
                left[run.run_id] = f"it was accepted by another version, or with other plug-ins: {told}"
        for run_id, reason in left.items():
            self._leave(run_id, reason)

    # -- events ---------------------------------------------------------------------------------------------

    async def post(self, event: Event) -> Committed:
        """Feeds one event to its run; returns when the consequences are durable. Raises `NotFoundError` for a run
        that is unknown or has ended, `StorageError` with nothing changed."""
        return await self._journal.submit(lambda: self._decide(event))

    async def post_surely(self, event: Event) -> None:
        """For what happened inside and cannot be asked again: while the store takes nothing it is tried again, ever
        more seldom. What can never be stored costs the run, with a sentence."""
        backoff = store_backoff()
        while True:
            try:
                await self.post(event)
            except NotFoundError:
                return
            except Exception as error:
                match trouble(error):
                    case Trouble.TRANSIENT:
                        log.warning("event.retried", event_kind=type(event).__name__, reason=str(error))
                        await asyncio.sleep(backoff.next_delay())
                    case Trouble.FENCED:
                        return  # this coordinator ends
                    case _:  # no other run has to do with it; a conflict has outlived every look at the store
                        log.exception(
                            "run.broken",
                            run_id=event.run_id,
                            event_kind=type(event).__name__,
                            reason=repr(error),
                            exc_info=is_defect(error),
                        )
                        if isinstance(event, RunBroken):
                            self._leave(event.run_id, event.reason)
                            return
                        event = RunBroken(run_id=event.run_id, reason=_broken(event, error))
            else:
                return

    async def tick_all(self) -> None:
        """Who is there has changed: lets every run look again."""
        for run_id in list(self._live):
            await self.post_surely(Tick(run_id=run_id))

    async def submit(self, event: RunSubmitted, schedule: Schedule) -> Committed:
        """A new run. `schedule` is its spec's, as `schedule_of` gives it."""

        def decide() -> Outcome:
            decision = engine.new_run(event, event.run_id, clock.now())
            self._schedules[event.run_id] = schedule
            return self._outcome(event.run_id, None, decision)

        return await self._journal.submit(decide)

    def end_unreadable(self, run_id: str) -> None:
        """It has been ended in the store."""
        self.unreadable.pop(run_id, None)
        self._events.publish(RunLeft(run_id=run_id, ended=True))

    # -- inside ---------------------------------------------------------------------------------------------

    def _leave(self, run_id: str, reason: str) -> None:
        """It stands still until the next start, or until an admin ends it; what is stored of it stays."""
        self._live.pop(run_id, None)
        self._schedules.pop(run_id, None)
        self._reread.discard(run_id)
        self.unreadable[run_id] = one_line(reason)
        log.error(
            "run.unreadable",
            run_id=run_id,
            reason=self.unreadable[run_id],
            fix=f"start the coordinator again once that is mended, or end the run: muster run stop {run_id}",
        )
        self._events.publish(RunLeft(run_id=run_id, ended=False))

    def _decide(self, event: Event) -> Outcome:
        state = self._live.get(event.run_id)
        if state is None:
            raise NotFoundError(
                "run.not_live",
                f"no live run {event.run_id!r}",
                cause="it is unknown or has ended",
                fix="muster run list",
            )
        events = [event]
        if event.run_id in self._reread:
            events.insert(0, Restored(run_id=event.run_id))
        decision = Decision(state=state)
        for each in events:
            following = engine.decide(
                decision.state, each, clock.now(), self._peers(), self._schedules[event.run_id]
            )
            decision = replace(
                following,
                transitions=(*decision.transitions, *following.transitions),
                effects=(*decision.effects, *following.effects),
            )
        return self._outcome(event.run_id, state, decision)

    def _outcome(self, run_id: str, before: RunState | None, decision: Decision) -> Outcome:
        if decision.state.status.ended:
            self._live.pop(run_id, None)
            schedule = self._schedules.pop(run_id, None)
        else:
            self._live[run_id] = decision.state
            schedule = None
        reread = run_id in self._reread
        self._reread.discard(run_id)

        def undo() -> None:
            if reread:
                self._reread.add(run_id)
            if before is None:
                self._live.pop(run_id, None)
                self._schedules.pop(run_id, None)
                return
            self._live[run_id] = before
            if schedule is not None:
                self._schedules[run_id] = schedule

        async def reload(store: Store) -> None:
            await self._reload(run_id, store)

        return Outcome(
            transitions=decision.transitions,
            effects=decision.effects,
            run=decision.state,
            accepted=decision.accepted,
            undo=undo,
            reload=None if before is None else reload,
            reason=decision.reason,
        )

    async def _reload(self, run_id: str, store: Store) -> None:
        """Takes the run as it is stored, which is not as it was believed here: the next decision orders again what is
        under way in it."""
        run = await store.load_run(run_id)
        if run is not None:
            self._live[run_id] = run
            self._reread.add(run_id)
            return
        self._live.pop(run_id, None)
        self._schedules.pop(run_id, None)
        self._reread.discard(run_id)
        self._events.publish(RunLeft(run_id=run_id, ended=True))


async def schedule_of(spec: RunSpec, text: str = "") -> Schedule:
    """The schedule of a spec that can be run here; `text` is the spec as it was written. Raises `ConfigError`.

    In a thread, since a rule's bound comes from its plug-in, which may be slow to import."""
    return await asyncio.to_thread(check_spec, spec, text)


def _broken(event: Event, error: Exception) -> str:
    return one_line(
        f"a decision of this run could not be made or stored ({type(event).__name__}): "
        f"{type(error).__name__}: {error}; the coordinator's log has the traceback"
    )
