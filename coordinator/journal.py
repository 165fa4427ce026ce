"""The single writer: decisions are made one after the other, committed together, and only then take effect.

Everything that changes state goes through `Journal.submit`. While one transaction is on its way to the disk, further
decisions queue up and share the next one (group commit), so a durable commit a few hundred times a second serves
thousands of events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog

from coordinator.engine.state import Effect, RunState, Transition
from coordinator.events import Committed, Events
from coordinator.store import Fence, Store, Transfer, Trouble, trouble
from muster.errors import MusterError, StorageError
from muster.runtime.backoff import Backoff

log = structlog.get_logger()

BATCH_MAX = 256
QUEUE_MAX = 4096
STORE_RETRY_SECONDS = (
    0.5  # between the first attempts to commit what happened inside, while the store refuses
)
STORE_RETRY_SECONDS_MAX = 10.0  # and between later ones
CONFLICTS_MAX = 3  # so often one decision is made anew on rows that were not as believed


_Transfers = dict[tuple[str, int, str, str], int]  # bytes by run, round, peer and direction


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A decision whose state is in place already: `undo` takes it back if the commit fails. `reload` puts in place what
    the store has instead, where the decision was made on something else; without it a conflict is told to whoever
    asked. The rest is what subscribers and whoever asked are told once it is durable, see `Committed`."""

    transitions: Sequence[Transition] = ()
    effects: Sequence[Effect] = ()
    run: RunState | None = None
    accepted: bool = True
    reason: str = ""
    undo: Callable[[], None] = field(default=lambda: None)
    reload: Callable[[Store], Awaitable[None]] | None = None


@dataclass(frozen=True, kw_only=True)
class _Pending:
    decide: Callable[[], Outcome]
    done: asyncio.Future[Committed]


class Journal:
    """Tells `events` of each decision after its commit.

    `fence` is the coordinator's claim on the store, taken before the first decision: once a newer one is taken the
    journal ends, since nothing that is decided here can be stored any more."""

    def __init__(self, store: Store, events: Events) -> None:
        self.fence: Fence | None = None
        self._store = store
        self._events = events
        self._queue: asyncio.Queue[_Pending] = asyncio.Queue(QUEUE_MAX)
        self._transfers: _Transfers = {}

    async def submit(self, decide: Callable[[], Outcome]) -> Committed:
        """Runs `decide` at its turn and returns when what it decided is durable. Raises what `decide` raises, or with
        everything undone `StorageError` while the store takes nothing at all, or what the store says of this
        decision, which it will never take. In that last case `decide` was called a second time, and after a conflict
        once more for each time that what the store has was read anew, `CONFLICTS_MAX` at most."""
        done: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        await self._queue.put(_Pending(decide=decide, done=done))
        return await done

    def count_bytes(self, run_id: str, round: int, peer_id: str, direction: str, size: int) -> None:
        """Bytes really sent, written with the next transaction. `direction` is "up" or "down"."""
        key = (run_id, round, peer_id, direction)
        self._transfers[key] = self._transfers.get(key, 0) + size

    async def run(self) -> None:
        """Until cancelled. Raises `StorageError` "store.fenced"."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH_MAX and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._commit(batch)

    async def _commit(self, batch: Sequence[_Pending]) -> None:
        decided = self._decide(batch)
        transfers, self._transfers = self._transfers, {}
        if not any(outcome.transitions for _, outcome in decided):
            self._transfers = transfers
            self._take_effect(decided, ())
            return
        try:
            sequences = await self._write(decided, transfers)
        except StorageError as error:
            self._take_back(decided, error)
            if trouble(error) is Trouble.FENCED:
                raise
            log.exception("journal.commit_failed", error_id=error.id, reason=error.message, exc_info=False)
            self._recount(transfers)
        except Exception as error:  # about what was to be written, not about the disk
            log.warning("journal.commit_refused", decisions=len(decided), reason=repr(error))
            self._take_back(decided)
            for pending, _ in decided:  # whose it was is found out
                await self._commit_alone(pending)
            await self._write_transfers(transfers)
        else:
            self._take_effect(decided, sequences)

    async def _commit_alone(self, pending: _Pending) -> None:
        """So that a decision which cannot be stored costs nobody but who asked for it. Nothing else is decided
        meanwhile, so what is read anew after a conflict is what the next attempt starts from."""
        for conflicts in range(CONFLICTS_MAX + 1):
            decided = self._decide([pending])
            try:
                sequences = await self._write(decided, {})
            except Exception as error:  # handed to whoever asked for the decision
                self._take_back(decided)
                reload = decided[0][1].reload
                if trouble(error) is Trouble.CONFLICT and reload is not None and conflicts < CONFLICTS_MAX:
                    log.warning("journal.conflict", reason=str(error), conflicts=conflicts + 1)
                    if await self._reloaded(pending, reload):
                        continue
                    return
                log.exception("journal.decision_refused", reason=repr(error), exc_info=is_defect(error))
                _fail(pending, error)
                if trouble(error) is Trouble.FENCED:
                    raise
            else:
                self._take_effect(decided, sequences)
            return

    async def _reloaded(self, pending: _Pending, reload: Callable[[Store], Awaitable[None]]) -> bool:
        try:
            await reload(self._store)
        except Exception as error:  # handed to whoever asked for the decision
            log.exception("journal.reload_failed", reason=repr(error))
            _fail(pending, error)
            return False
        return True

    def _decide(self, batch: Sequence[_Pending]) -> list[tuple[_Pending, Outcome]]:
        decided: list[tuple[_Pending, Outcome]] = []
        for pending in batch:
            try:
                decided.append((pending, pending.decide()))
            except Exception as error:  # handed to whoever asked for the decision
                _fail(pending, error)
        return decided

    async def _write(self, decided: Sequence[tuple[_Pending, Outcome]], transfers: _Transfers) -> list[int]:
        transitions = [transition for _, outcome in decided for transition in outcome.transitions]
        if not transitions:
            return []
        return await self._store.commit(transitions, _rows(transfers), fence=self.fence)

    def _take_effect(self, decided: Sequence[tuple[_Pending, Outcome]], sequences: Sequence[int]) -> None:
        at = 0
        for pending, outcome in decided:
            count = len(outcome.transitions)
            committed = Committed(
                transitions=outcome.transitions,
                sequences=sequences[at : at + count],
                effects=outcome.effects,
                run=outcome.run,
                accepted=outcome.accepted,
                reason=outcome.reason,
            )
            self._events.publish(committed)
            if not pending.done.done():
                pending.done.set_result(committed)
            at += count

    def _take_back(self, decided: Sequence[tuple[_Pending, Outcome]], error: Exception | None = None) -> None:
        """Undoes what was decided; with an error, whoever asked for it is told."""
        for pending, outcome in reversed(decided):
            outcome.undo()
            if error is not None:
                _fail(pending, error)

    async def _write_transfers(self, transfers: _Transfers) -> None:
        try:
            if transfers:
                await self._store.commit((), _rows(transfers), fence=self.fence)
        except StorageError:
            self._recount(transfers)
        except Exception as error:  # they are only counted; no decision waits for them
            log.exception("journal.transfers_refused", reason=repr(error))

    def _recount(self, transfers: _Transfers) -> None:
        for (run_id, round, peer_id, direction), size in transfers.items():
            self.count_bytes(run_id, round, peer_id, direction, size)


def _rows(transfers: _Transfers) -> list[Transfer]:
    return [
        Transfer(run_id=run_id, round=round, peer_id=peer_id, direction=direction, bytes=size)
        for (run_id, round, peer_id, direction), size in transfers.items()
    ]


def store_backoff() -> Backoff:
    """Between attempts to commit what cannot be asked again, while the store refuses everything."""
    return Backoff(delay_seconds_min=STORE_RETRY_SECONDS, delay_seconds_max=STORE_RETRY_SECONDS_MAX)


def is_defect(error: BaseException) -> bool:
    """Whether a log of it needs the traceback: what Muster raises itself says all that there is to know."""
    return not isinstance(error, MusterError)


def _fail(pending: _Pending, error: Exception) -> None:
    if not pending.done.done():
        pending.done.set_exception(error)
