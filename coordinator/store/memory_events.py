"""Events and transfers in memory: what is only ever added to."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import islice
from operator import itemgetter
from typing import Any

from coordinator.engine.state import Transition
from coordinator.store import tables
from coordinator.store.queries import as_row, read_json
from coordinator.store.rows import EventRow, Transfer
from coordinator.store.write import event_row

_COLUMNS = tuple(column.name for column in tables.EVENTS.columns)
_Event = tuple[Any, ...]  # a row, in the order of the columns; there are many
_at = {name: _COLUMNS.index(name) for name in _COLUMNS}
_sequence: Callable[[_Event], int] = itemgetter(_at["sequence"])


class MemoryEvents:
    """Events in memory, and those who wait for the next."""

    def __init__(self) -> None:
        self.newest = 0
        self._all: list[_Event] = []
        self._of_run: dict[str, list[_Event]] = defaultdict(list)
        self._of_peer: dict[str, list[_Event]] = defaultdict(list)
        self._delivered: dict[str, int] = {}

    def rows(self, transitions: Sequence[Transition]) -> list[_Event]:
        """The events that the transitions tell, numbered, and not yet among the others."""
        telling = (transition for transition in transitions if transition.kind)
        rows = (event_row(each, number) for number, each in enumerate(telling, self.newest + 1))
        return [tuple(row[name] for name in _COLUMNS) for row in rows]

    def add(self, rows: Iterable[_Event]) -> None:
        for row in rows:
            self.newest = _sequence(row)
            self._all.append(row)
            if run_id := row[_at["run_id"]]:
                self._of_run[run_id].append(row)
            if peer_id := row[_at["peer_id"]]:
                self._of_peer[peer_id].append(row)
            if row[_at["kind"]] == "assignment.delivered":
                self._delivered[row[_at["assignment_id"]]] = self.newest

    def after(self, sequence: int, run_id: str | None, limit: int) -> list[EventRow]:
        held = self._all if run_id is None else self._of_run.get(run_id, [])
        first = bisect_right(held, sequence, key=_sequence)
        return [_event(row) for row in islice(held, first, first + limit)]

    def recent(self, run_id: str | None, peer_id: str | None, limit: int) -> list[EventRow]:
        if peer_id is not None:
            held = self._of_peer.get(peer_id, [])
            if run_id is not None:
                held = [row for row in held if row[_at["run_id"]] == run_id]
        else:
            held = self._all if run_id is None else self._of_run.get(run_id, [])
        return [_event(row) for row in held[max(0, len(held) - limit) :]]

    def delivered(self, assignment_id: str) -> int:
        return self._delivered.get(assignment_id, 0)

    def remove_run(self, run_id: str) -> None:
        self._remove({_sequence(row) for row in self._of_run.get(run_id, ())})

    def prune_peers(self, keep: int, known: Callable[[str], bool]) -> None:
        """Of each peer's own events all but the newest so many, and all of names that are not known; the newest event
        of all stays."""
        gone: set[int] = set()
        for peer_id, held in self._of_peer.items():
            own = [row for row in held if not row[_at["run_id"]]]
            gone.update(map(_sequence, own[: max(0, len(own) - keep)] if known(peer_id) else own))
        self._remove(gone - {self.newest})

    def _remove(self, gone: Set[int]) -> None:
        def kept(rows: list[_Event]) -> list[_Event]:
            return [row for row in rows if _sequence(row) not in gone]

        self._all = kept(self._all)
        for held in (self._of_run, self._of_peer):
            for name, rows in list(held.items()):
                held[name] = kept(rows)
                if not held[name]:
                    del held[name]
        self._delivered = {name: number for name, number in self._delivered.items() if number not in gone}


class MemoryTransfers:
    """Bytes by run, round, peer and direction, with their sums under ("run", run_id, direction), ("round", run_id,
    number, direction) and ("peer", peer_id, direction)."""

    def __init__(self) -> None:
        self.sums: Counter[tuple[Any, ...]] = Counter()
        self._bytes: Counter[tuple[str, int, str, str]] = Counter()

    def add(self, transfers: Iterable[Transfer]) -> None:
        for each in transfers:
            self._count((each.run_id, each.round, each.peer_id, each.direction), each.bytes)

    def remove_run(self, run_id: str) -> None:
        for key in [key for key in self._bytes if key[0] == run_id]:
            self._count(key, -self._bytes[key])
            del self._bytes[key]

    def _count(self, key: tuple[str, int, str, str], size: int) -> None:
        run_id, number, peer_id, direction = key
        self._bytes[key] += size
        for total in (
            ("run", run_id, direction),
            ("round", run_id, number, direction),
            ("peer", peer_id, direction),
        ):
            self.sums[total] += size


def _event(row: _Event) -> EventRow:
    told: Mapping[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    return as_row(EventRow, told, data=read_json(told["data_json"], {}))
