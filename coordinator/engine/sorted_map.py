"""An immutable map in the order of its keys, of which a changed copy costs little however large it is.

The entries lie in chunks; a change copies one chunk and the list of chunks. So a state that holds a cohort of thousands
is a value like any other, and an event of one peer costs what it costs in a small cohort.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar


def _key(item: tuple[Any, Any]) -> Any:
    return item[0]


K = TypeVar("K")
V = TypeVar("V")

CHUNK_MAX = 64


class SortedMap(Mapping[K, V], Generic[K, V]):
    __slots__ = ("_chunks", "_firsts", "_size")

    def __init__(self, items: Iterable[tuple[K, V]] = ()) -> None:
        """Of items in whatever order; of equal keys the last counts."""
        ordered: list[tuple[Any, V]] = sorted(dict(items).items(), key=_key)
        half = CHUNK_MAX // 2
        parts = [ordered[start : start + half] for start in range(0, len(ordered), half)]
        self._chunks: tuple[tuple[tuple[Any, ...], tuple[V, ...]], ...] = tuple(
            (tuple(key for key, _ in part), tuple(value for _, value in part)) for part in parts
        )
        self._firsts: tuple[Any, ...] = tuple(keys[0] for keys, _ in self._chunks)
        self._size = len(ordered)

    def _with(
        self, at: int, new: tuple[tuple[tuple[Any, ...], tuple[V, ...]], ...], size: int
    ) -> SortedMap[K, V]:
        """With other chunks in place of the one at `at`."""
        made: SortedMap[K, V] = SortedMap.__new__(SortedMap)
        made._chunks = (*self._chunks[:at], *new, *self._chunks[at + 1 :])
        made._firsts = (*self._firsts[:at], *(keys[0] for keys, _ in new), *self._firsts[at + 1 :])
        made._size = size
        return made

    def _place(self, key: Any) -> tuple[int, int, bool]:
        """Its chunk, its place there, and whether it is there."""
        at = max(0, bisect_right(self._firsts, key) - 1)
        keys = self._chunks[at][0] if self._chunks else ()
        place = bisect_left(keys, key)
        return at, place, place < len(keys) and keys[place] == key

    def set(self, key: K, value: V) -> SortedMap[K, V]:
        if not self._chunks:
            return SortedMap(((key, value),))
        at, place, there = self._place(key)
        keys, values = self._chunks[at]
        if there:
            return self._with(at, ((keys, (*values[:place], value, *values[place + 1 :])),), self._size)
        keys = (*keys[:place], key, *keys[place:])
        values = (*values[:place], value, *values[place:])
        half = CHUNK_MAX // 2
        new = ((keys, values),)
        if len(keys) > CHUNK_MAX:
            return self._with(
                at, ((keys[:half], values[:half]), (keys[half:], values[half:])), self._size + 1
            )
        return self._with(at, new, self._size + 1)

    def without(self, key: K) -> SortedMap[K, V]:
        """The same if it is not there."""
        at, place, there = self._place(key)
        if not there:
            return self
        keys, values = self._chunks[at]
        if len(keys) == 1:
            return self._with(at, (), self._size - 1)
        left = ((*keys[:place], *keys[place + 1 :]), (*values[:place], *values[place + 1 :]))
        return self._with(at, (left,), self._size - 1)

    def first(self) -> K:
        """The least key. Raises `IndexError` if there is none."""
        found: K = self._chunks[0][0][0]
        return found

    def last(self) -> K:
        """The greatest key. Raises `IndexError` if there is none."""
        found: K = self._chunks[-1][0][-1]
        return found

    def __getitem__(self, key: K) -> V:
        at, place, there = self._place(key)
        if not there:
            raise KeyError(key)
        return self._chunks[at][1][place]

    def __contains__(self, key: object) -> bool:
        return self._place(key)[2]

    def __iter__(self) -> Iterator[K]:
        for keys, _ in self._chunks:
            yield from keys

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"SortedMap({dict(self)!r})"
