"""What a coordinator asks of its store: every transition and its event in one transaction, nothing ever half-written.

`SqlStore` keeps it in SQLite or PostgreSQL, `MemoryStore` in this process, for simulations. `tests/store` holds both
to this contract. Times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from coordinator.engine.state import RunState, Transition
from coordinator.store.rows import (
    AssignmentRow,
    EventRow,
    Fence,
    ModelRow,
    PeerRecord,
    PeerRow,
    RoundRow,
    RoundTotals,
    RunRow,
    Transfer,
    WarningRow,
)
from muster.errors import StateError

EVENTS_PAGE = 1000


class Commits(Protocol):
    """What changes the store. Each call is one transaction, in the order of the calls; on any error nothing is
    written.

    With a `fence`, each raises `StorageError` "store.fenced" if a newer one has been taken, which is checked in the
    same transaction.
    """

    async def take_fence(self, holder: str, at: float) -> Fence:
        """Claims the store for one coordinator, named for people by `holder`: from then on whoever holds an older fence
        can write nothing."""
        ...

    async def commit(
        self,
        transitions: Sequence[Transition],
        transfers: Sequence[Transfer] = (),
        *,
        fence: Fence | None = None,
    ) -> list[int]:
        """Writes all of it or, on any error, nothing. Returns one number for each transition: its event's
        sequence, or 0 if its kind is empty and it tells no event. Sequences grow in the order of commits.

        Raises `StateError` "store.conflict" if a row is not in the state that its transition starts from, or
        a row is there already that must not be. If the connection to a database breaks during COMMIT itself,
        "store.unavailable" leaves open whether it was done; `load_runs` then tells.

        A caller that is cancelled meanwhile does not stop the transaction.
        """
        ...

    async def end_unread(self, run_id: str, reason: str, at: float, *, fence: Fence | None = None) -> None:
        """Cancels a run whose rows cannot be read, by its id alone, and ends what is under way in it."""
        ...

    async def forget_blobs(self, digests: Iterable[str], *, fence: Fence | None = None) -> None:
        """Records that these blobs are given up, so that neither `live_blobs` nor `unneeded_blobs` tells them
        again. Call it before the files are removed: what a kill leaves of them is then swept at the next
        start."""
        ...

    async def remove_run(
        self, run_id: str, at: float, reason: str, *, fence: Fence | None = None
    ) -> frozenset[str]:
        """Deletes every row of a run that has ended, and records an event that belongs to no run. Gives the digests of
        the blobs that no row names any more; their files are the caller's to remove, or the next start's.

        Raises `NotFoundError` "run.not_found", `StateError` "run.live".
        """
        ...

    async def prune_peer_events(self, keep: int, *, fence: Fence | None = None) -> None:
        """Deletes all but so many of each peer's own events, and all of names that are forgotten; those of runs stay as
        long as their runs."""
        ...


class Events(Protocol):
    """What happened, in the order of the commits."""

    async def wait_for_events(self, after: int) -> int:
        """Returns as soon as this process has committed an event with a greater number than `after`: the
        greatest."""
        ...

    async def tail(
        self,
        after: int = 0,
        *,
        run_id: str | None = None,
        over: Callable[[], bool] = lambda: False,
        limit: int = EVENTS_PAGE,
    ) -> AsyncGenerator[list[EventRow]]:
        """The events after a number as `events` gives them, page by page, and then those that this process commits, as
        soon as they are durable. None is left out and none comes twice; who reads slowly gets larger pages.

        It ends once `over` has held before a look that found nothing newer; that is asked whenever something happens.
        """
        seen = after  # up to here nothing is waited for, though it may be of other runs
        while True:
            # The order matters: an event committed after the look is seen by the wait, so none is missed.
            last = over()
            if page := await self.events(after, run_id, limit):
                after = page[-1].sequence
                yield page
            elif last:
                return
            else:
                seen = await self.wait_for_events(max(seen, after))

    async def events(
        self, after: int = 0, run_id: str | None = None, limit: int = EVENTS_PAGE
    ) -> list[EventRow]:
        """The first `limit` events with a greater number than `after`, in order."""
        ...

    async def recent_events(
        self, *, run_id: str | None = None, peer_id: str | None = None, limit: int = 20
    ) -> list[EventRow]:
        """The last `limit` events, in order."""
        ...

    async def delivered_sequence(self, assignment_id: str) -> int:
        """The number of the event that made an update or evaluation durable; 0 if there is none."""
        ...


class State(Protocol):
    """What a coordinator takes up when it starts, and what it may remove from its disk."""

    async def load_runs(self, unread: dict[str, str] | None = None) -> list[RunState]:
        """Runs that have not ended, oldest first, exactly as the last commit left them. `unread` takes those
        whose rows cannot be read, with the reason; without it, one of them raises."""
        ...

    async def load_run(self, run_id: str) -> RunState | None:
        """One of them; None if it has ended or is not there. Raises `StateError` "store.run_unreadable"."""
        unread: dict[str, str] = {}
        runs = {run.run_id: run for run in await self.load_runs(unread)}
        if run_id in unread:
            raise StateError("store.run_unreadable", f"run {run_id!r}: {unread[run_id]}")
        return runs.get(run_id)

    async def load_peers(self) -> list[PeerRecord]: ...

    async def named_peers(self) -> frozenset[str]:
        """Those whom a run's rows name."""
        ...

    async def live_blobs(self) -> frozenset[str]:
        """Digests of the blobs that rows name; whatever else lies in the blob store is an orphan."""
        ...

    async def unneeded_blobs(
        self, *, updates_keep_rounds: int, models_keep: int | None, ended_runs_keep: int | None = None
    ) -> frozenset[str]:
        """Digests of the blobs that may be given up (`forget_blobs`), then removed: updates of rounds that
        have ended but for each run's last `updates_keep_rounds`, versions but for each run's newest
        `models_keep` (None: all) and what live work needs, and old states of the server optimizer; and all but the
        last version of ended runs but for the newest `ended_runs_keep` (None: all)."""
        ...


class Questions(Protocol):
    """What the admin service and the command line show. Each answer is one consistent state of the store."""

    async def runs(self, *, after: tuple[float, str] | None = None, limit: int | None = None) -> list[RunRow]:
        """Newest first; those behind the run that was made at `after[0]` and has the id `after[1]`."""
        ...

    async def counts(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """How many peers and how many runs there are in each state."""
        ...

    async def run(self, run_id: str) -> RunRow | None: ...

    async def run_by_request(self, request_id: str) -> RunRow | None:
        """The run that was made for this request, so that a request that comes twice submits once."""
        ...

    async def warnings(self, run_id: str) -> list[WarningRow]:
        """Newest last."""
        ...

    async def rounds(self, run_id: str, *, after: int = 0, limit: int | None = None) -> list[RoundRow]:
        """In order, without their assignments; those behind the number `after`."""
        ...

    async def bare_round(self, run_id: str, number: int) -> tuple[RoundRow, RoundTotals] | None:
        """Without its assignments, but with their totals."""
        ...

    async def assignments(
        self, run_id: str, number: int, *, after: tuple[int, str, int] | None = None, limit: int | None = None
    ) -> list[AssignmentRow]:
        """Of a round, then of the evaluation of its version, by peer and attempt; those behind the one of `after`."""
        ...

    async def folded(self, run_id: str, number: int) -> list[AssignmentRow]:
        """The updates that a committed round has in its version, its own or not; by peer."""
        ...

    async def round(self, run_id: str, number: int) -> RoundRow | None:
        """With its assignments, those of its model's evaluation after those that trained."""
        ...

    async def assignment(self, assignment_id: str) -> AssignmentRow | None: ...

    async def peers(self, *, after: str = "", limit: int | None = None) -> list[PeerRow]:
        """By id; those behind `after`."""
        ...

    async def peer(self, peer_id: str) -> PeerRow | None: ...

    async def models(self, run_id: str, *, after: int = -1, limit: int | None = None) -> list[ModelRow]:
        """Every version, in order; those behind the version `after`."""
        ...

    async def model(
        self, run_id: str, *, version: int | None = None, round: int | None = None
    ) -> ModelRow | None:
        """The version of that number, or the one that that round made (0: the initial one), or the newest."""
        ...

    async def model_by_digest(self, run_id: str, digest: str) -> ModelRow | None:
        """The newest version with these bytes."""
        ...

    async def deltas(self, run_id: str, after: int, upto: int) -> list[str]:
        """Digests of the deltas that make versions `after` + 1 to `upto`, in order, as far as they are kept."""
        ...

    async def model_by_state(self, run_id: str, names: Sequence[str], digest: str) -> ModelRow | None:
        """The newest version that has these bytes beside it under one of the names: a delta, say, that makes it."""
        ...

    async def optimizer_states(self, run_id: str, version: int) -> Mapping[str, str]:
        """The server optimizer's state vectors as they were when `version` was made: name to blob digest."""
        ...


class Store(Commits, Events, State, Questions, Protocol):
    """Every method may raise `StorageError`: "store.unavailable" when a database does not answer, "store.damaged"
    when it is not sound, and in `commit` "storage.disk_full"."""

    @property
    def folder(self) -> Path | None:
        """Where the database lies, which is this process's while the store is open; None where it is in no folder."""
        ...

    @property
    def where(self) -> str:
        """The store for people: the database's URL without the password."""
        ...

    async def close(self) -> None:
        """After the commits that are under way."""
        ...
