"""The tables of `coordinator.store.tables` in memory, with what a database would refuse refused.

Rows are dicts that are replaced, never changed. A transaction is a stretch of plain code between `begin` and `end` or
`undo`; there are no others meanwhile, since nothing in it waits.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Boolean, Double, Table, UniqueConstraint

from coordinator.store import tables
from coordinator.store.faults import conflict, unstorable

Row = Mapping[str, Any]
Key = tuple[Any, ...]  # the values of the primary key, in its order
Columns = tuple[str, ...]
Where = Callable[[Row], bool]

_INTEGER_MAX = 2**63 - 1


def _everything(_row: Row) -> bool:
    return True


def holds_blob(row: Row) -> bool:
    """Whether its blob is still on disk, as `tables.HOLDS_BLOB` says it in SQL."""
    return row["digest"] != "" and not row["blob_gone"]


# What the partial indexes of `tables` say in SQL.
_WHERE: Mapping[str, Where] = {
    "ux_assignments_delivered": lambda row: row["state"] == "DELIVERED",
    "ix_assignments_blob": holds_blob,
    "ix_models_blob": holds_blob,
    "ix_optimizer_states_blob": holds_blob,
}


@dataclass
class _Index:
    """Keys of rows by the values of some columns, of those rows only for which `where` holds."""

    columns: Columns
    where: Where = _everything
    unique: bool = False
    keys: dict[Key, dict[Key, None]] = field(default_factory=dict[Key, dict[Key, None]])

    def moved(self, key: Key, old: Row | None, new: Row | None) -> None:
        before = self._value(old)
        after = self._value(new)
        if before == after:
            return
        if before is not None:
            del self.keys[before][key]
            if not self.keys[before]:
                del self.keys[before]
        if after is not None:
            self.keys.setdefault(after, {})[key] = None

    def taken(self, row: Row, key: Key) -> bool:
        """Whether another row has these values, which must be one row's only."""
        value = self._value(row) if self.unique else None
        return value is not None and any(each != key for each in self.keys.get(value, ()))

    def _value(self, row: Row | None) -> Key | None:
        if row is None or not self.where(row):
            return None
        return tuple(row[name] for name in self.columns)


class MemoryTable:
    """The rows of one table, with its keys and defaults."""

    def __init__(self, table: Table, undo: list[tuple[MemoryTable, Key, Row | None]]) -> None:
        self.name = table.name
        self.rows: dict[Key, Row] = {}
        self.key_columns: Columns = tuple(column.name for column in table.primary_key.columns)
        self.references = [
            (tuple(column.name for column in each.columns), each.referred_table.name)
            for each in table.foreign_key_constraints
        ]
        self._undo = undo
        self._defaults = {column.name: _default(column) for column in table.columns if _has_default(column)}
        self._optional = {column.name for column in table.columns if column.nullable}
        self._convert = {column.name: _CONVERT.get(type(column.type), _plain) for column in table.columns}
        self._indexes = {index.columns: index for index in _indexes(table)}
        self.dense_bytes: Counter[str] = (
            Counter()
        )  # of the rows that have it, by run: asked for at every event

    # -- reading -----------------------------------------------------------------------------------------------

    def key(self, row: Row) -> Key:
        return tuple(row[name] for name in self.key_columns)

    def has(self, column: str) -> bool:
        return column in self._convert

    def where(self, **values: Any) -> Iterator[Row]:
        """The rows with these values, through the index on just these columns, in the order in which they came."""
        found = self._indexes[tuple(values)].keys.get(tuple(values.values()), ())
        return (self.rows[key] for key in found)

    def distinct(self, *columns: str) -> Iterable[Key]:
        """The different values that an index has."""
        return self._indexes[columns].keys.keys()

    # -- writing -----------------------------------------------------------------------------------------------

    def insert(self, values: Row) -> None:
        row = {**self._defaults, **self._converted(values)}
        for name in self._convert:
            if row.setdefault(name, None) is None and name not in self._optional:
                raise conflict("a row contradicts what is stored", f"{self.name}.{name} must have a value")
        key = self.key(row)
        if key in self.rows:
            raise conflict("a row contradicts what is stored", f"{self.name} {_told(key)} is there already")
        self._put(key, row)

    def update(self, key: Key, values: Row) -> None:
        self._put(key, {**self.rows[key], **self._converted(values)})

    def delete(self, key: Key) -> None:
        self._put(key, None)

    def put_back(self, key: Key, row: Row | None) -> None:
        old = self.rows.pop(key, None)
        for index in self._indexes.values():
            index.moved(key, old, row)
        self._count(old, row)
        if row is not None:
            self.rows[key] = row

    def _put(self, key: Key, row: Row | None) -> None:
        old = self.rows.get(key)
        for index in self._indexes.values():
            if row is not None and index.taken(row, key):
                told = _told(tuple(row[name] for name in index.columns))
                raise conflict("a row contradicts what is stored", f"{self.name} has another {told}")
        self._undo.append((self, key, old))
        if row is None:
            del self.rows[key]
        else:
            self.rows[key] = row
        self._count(old, row)
        for index in self._indexes.values():
            index.moved(key, old, row)

    def _count(self, old: Row | None, new: Row | None) -> None:
        if "dense_bytes" in self._convert:
            for row, sign in ((old, -1), (new, 1)):
                if row is not None and row["dense_bytes"]:
                    self.dense_bytes[row["run_id"]] += sign * row["dense_bytes"]

    def _converted(self, values: Row) -> dict[str, Any]:
        return {name: self._convert[name](value) for name, value in values.items()}


class MemoryTables:
    """All tables, with their references and unique indexes."""

    def __init__(self) -> None:
        self._undo: list[tuple[MemoryTable, Key, Row | None]] = []
        self._tables = {table.name: MemoryTable(table, self._undo) for table in _kept()}
        self._referring: dict[str, list[tuple[MemoryTable, Columns]]] = defaultdict(list)
        for table in self._tables.values():
            for columns, target in table.references:
                self._referring[target].append((table, columns))

    def __getitem__(self, table: Table) -> MemoryTable:
        return self._tables[table.name]

    def __iter__(self) -> Iterator[MemoryTable]:
        return iter(self._tables.values())

    def begin(self) -> None:
        self._undo.clear()

    def check(self) -> None:
        """Raises `StateError` "store.conflict" if a row that was written refers to one that is not there."""
        for table, key, _ in self._undo:
            row = table.rows.get(key)
            if row is None:
                for other, columns in self._referring[table.name]:
                    if next(other.where(**dict(zip(columns, key, strict=True))), None) is not None:
                        raise _dangling(other.name, table.name, key)
                continue
            for columns, target in table.references:
                referred = tuple(row[name] for name in columns)
                if referred not in self._tables[target].rows:
                    raise _dangling(table.name, target, referred)

    def undo(self) -> None:
        for table, key, row in reversed(self._undo):
            table.put_back(key, row)
        self._undo.clear()


def _kept() -> list[Table]:
    """All but those that `MemoryStore` keeps in another form, which no transition writes."""
    otherwise = (tables.EVENTS, tables.TRANSFERS, tables.FENCES)
    return [each for each in tables.METADATA.sorted_tables if each not in otherwise]


def _indexes(table: Table) -> Iterator[_Index]:
    """Those of the schema, one for each reference, and what is asked for beside."""
    found: dict[Columns, _Index] = {}
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            columns = tuple(column.name for column in constraint.columns)
            found[columns] = _Index(columns, unique=True)
    for index in table.indexes:
        columns = tuple(column.name for column in index.columns)
        if "state" in columns[1:] and not index.unique:
            continue  # moved with every change of state, and asked for by nobody here
        partial = index.dialect_options["sqlite"]["where"] is not None
        where = _WHERE[str(index.name)] if partial else _everything
        found[columns] = _Index(columns, where, unique=bool(index.unique))
    for each in table.foreign_key_constraints:
        columns = tuple(column.name for column in each.columns)
        found.setdefault(columns, _Index(columns))
    for columns in (("run_id",), ("peer_id",), ("state",)):
        if all(name in table.c for name in columns):
            found.setdefault(columns, _Index(columns))
    yield from found.values()


def _has_default(column: Any) -> bool:
    return column.server_default is not None


def _default(column: Any) -> Any:
    told = column.server_default.arg
    text = told if isinstance(told, str) else str(told)
    if isinstance(column.type, Boolean):
        return text != "false"
    return text if isinstance(told, str) else int(text)


def _plain(value: Any) -> Any:
    if isinstance(value, int) and not -_INTEGER_MAX - 1 <= value <= _INTEGER_MAX:
        raise unstorable(f"{value} has more than 64 bits")
    return value


def _number(value: Any) -> Any:
    return None if value is None else float(value)


_CONVERT: Mapping[type, Callable[[Any], Any]] = {Double: _number}


def _told(key: Key) -> str:
    return "/".join(map(str, key))


def _dangling(table: str, target: str, key: Key) -> Exception:
    return conflict(
        "a row contradicts what is stored", f"{table} refers to {target} {_told(key)}, which is not there"
    )
