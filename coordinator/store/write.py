"""Transitions become rows: like ones that follow each other share one statement, in the order in which they
came.

The order is kept because one decision may touch a row twice (a round is planned, then opened). Statements are
built once for each shape (table, verb, columns) and then reused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import count, groupby
from typing import Any, NamedTuple

from sqlalchemy import Connection, Executable, Table, and_, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from coordinator.engine.state import Transition
from coordinator.store import tables
from coordinator.store.faults import conflict
from coordinator.store.rows import Transfer
from muster.texts import storable

ENTITIES: Mapping[str, Table] = {
    "run": tables.RUNS,
    "round": tables.ROUNDS,
    "assignment": tables.ASSIGNMENTS,
    "model": tables.MODELS,
    "evaluation": tables.EVALUATIONS,
    "peer": tables.PEERS,
    "optimizer_state": tables.OPTIMIZER_STATES,
    "warning": tables.WARNINGS,
    "standing": tables.STANDINGS,
}

Row = dict[str, Any]


class Shape(NamedTuple):
    """What transitions must have in common to share a statement."""

    entity: str
    verb: str  # "insert", "update" and "delete" (compare-and-set on the state) or "upsert"
    key: tuple[str, ...]
    columns: tuple[str, ...]


def shape_of(transition: Transition) -> Shape:
    if transition.removes:
        verb = "delete"
    elif transition.before is None:
        verb = "insert"
    elif transition.before and "state" in ENTITIES[transition.entity].c:
        verb = "update"
    else:
        verb = "upsert"
    return Shape(transition.entity, verb, tuple(transition.key), tuple(transition.values))


def write_transitions(connection: Connection, transitions: Sequence[Transition]) -> list[int]:
    """Writes the rows, then their events. Returns one number for each transition: its event's, 0 if it tells
    none.

    Raises `StateError` "store.conflict" if a row is not in the state that its transition starts from.
    """
    for shape, like in groupby(transitions, shape_of):
        _write_like(connection, shape, list(like))
    return write_events(connection, transitions)


def _write_like(connection: Connection, shape: Shape, like: Sequence[Transition]) -> None:
    if shape.verb == "insert":
        connection.execute(_insert(shape), [clean({**t.key, **t.values}) for t in like])
        return
    rows = [_update_row(shape, transition) for transition in like]
    if connection.execute(_update(shape), rows).rowcount == len(rows):
        return
    if shape.verb in ("update", "delete"):
        raise refused(like)
    for transition, row in zip(like, rows, strict=True):
        if connection.execute(_update(shape), [row]).rowcount == 0:
            connection.execute(_insert(shape), [clean({**transition.key, **transition.values})])


def _update_row(shape: Shape, transition: Transition) -> Row:
    row = {f"new_{name}": value for name, value in transition.values.items()}
    row.update({f"key_{name}": value for name, value in transition.key.items()})
    if shape.verb in ("update", "delete"):
        row["before"] = transition.before
    return clean(row)


@lru_cache(maxsize=256)
def _insert(shape: Shape) -> Executable:
    table = ENTITIES[shape.entity]
    return insert(table).values({name: bindparam(name) for name in shape.key + shape.columns})


@lru_cache(maxsize=256)
def _update(shape: Shape) -> Executable:
    table = ENTITIES[shape.entity]
    found = [table.c[name] == bindparam(f"key_{name}") for name in shape.key]
    if shape.verb in ("update", "delete"):
        found.append(table.c.state == bindparam("before"))
    if shape.verb == "delete":
        return delete(table).where(and_(*found))
    return (
        update(table).where(and_(*found)).values({name: bindparam(f"new_{name}") for name in shape.columns})
    )


def refused(like: Sequence[Transition]) -> Exception:
    """Why transitions do not fit the rows that they start from."""
    told = "; ".join(
        f"{t.entity} {'/'.join(str(part) for part in t.key.values())} is not {t.before}" for t in like[:3]
    )
    some = "" if len(like) == 1 else f"at least one of {len(like)}: "
    return conflict(f"{like[0].kind or like[0].entity}: {some}{told}", "another writer was here first")


# -- events --------------------------------------------------------------------------------------------------

_NEWEST = select(func.coalesce(func.max(tables.EVENTS.c.sequence), 0))
_EVENT_INSERT = insert(tables.EVENTS)
_to_json = json.JSONEncoder(separators=(",", ":")).encode


def write_events(connection: Connection, transitions: Sequence[Transition]) -> list[int]:
    """The events that the transitions tell, without their rows; returns as `write_transitions`."""
    telling = [transition for transition in transitions if transition.kind]
    if not telling:
        return [0] * len(transitions)
    newest: int = connection.execute(_NEWEST).scalar_one()  # and it stays so: there is one writer at a time
    connection.execute(_EVENT_INSERT, [event_row(t, newest + i) for i, t in enumerate(telling, 1)])
    numbers = count(newest + 1)
    return [next(numbers) if transition.kind else 0 for transition in transitions]


def event_row(transition: Transition, sequence: int) -> Row:
    """The row of the event that a transition tells."""
    return clean(
        {
            "sequence": sequence,
            "at": transition.at,
            "kind": transition.kind,
            "run_id": transition.run_id,
            "round": transition.round,
            "assignment_id": transition.assignment_id,
            "peer_id": transition.peer_id,
            "reason": transition.reason,
            "actor": transition.actor,
            "data_json": _to_json(dict(transition.data)),
        }
    )


def clean(row: Row) -> Row:
    """Text as both databases take it, enumerations as their plain values. Texts are cleaned where they enter; here
    stands the last guard, so that no text at all can cost a transaction."""
    return {name: storable(str(value)) if isinstance(value, str) else value for name, value in row.items()}


# -- transfers -----------------------------------------------------------------------------------------------


def write_transfers(connection: Connection, transfers: Iterable[Transfer]) -> None:
    """Adds to what is stored."""
    rows = [
        {
            "run_id": transfer.run_id,
            "round": transfer.round,
            "peer_id": transfer.peer_id,
            "direction": transfer.direction,
            "bytes": transfer.bytes,
        }
        for transfer in transfers
    ]
    if rows:
        connection.execute(_ADD[connection.dialect.name], rows)


def _adding(insert_into: Callable[[Table], sqlite.Insert | postgresql.Insert]) -> Executable:
    table = tables.TRANSFERS
    statement = insert_into(table)
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key.columns),
        set_={"bytes": table.c.bytes + statement.excluded.bytes},
    )


_ADD = {"sqlite": _adding(sqlite.insert), "postgresql": _adding(postgresql.insert)}
