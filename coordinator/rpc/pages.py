"""Lists in pages, so that no list is ever too long for a message, whatever stands in it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from muster.errors import UsageError

PAGE_BYTES_MAX = 1 << 20  # a message has 4 MiB at most; one item, however long, has less than the rest
PAGE_ITEMS_MAX = 200
ROWS_PER_LOOK = 25  # that many are read at a time, since nobody knows how long they are

Item = TypeVar("Item", bound=Message | str)
Row = TypeVar("Row")
Key = TypeVar("Key", bound=tuple[Any, ...])


@dataclass(frozen=True, kw_only=True)
class Page(Generic[Item]):
    """One page of a list, and where the next begins."""

    items: Sequence[Item]
    next_token: str  # "" behind the last page


async def page(
    read: Callable[[Key | None, int], Awaitable[Sequence[Row]]],
    to_item: Callable[[Row], Item],
    key: Callable[[Row], Key],
    *,
    after: Key | None,
    page_size: int,
) -> Page[Item]:
    """As many items behind `after` as fit, and at least one. `read(after, n)` gives the first n rows behind a key, or
    the first of all."""
    most = min(page_size or PAGE_ITEMS_MAX, PAGE_ITEMS_MAX)
    taken: list[Item] = []
    size = 0
    while True:
        rows = await read(after, ROWS_PER_LOOK)
        for row in rows:
            item = to_item(row)
            size += _size(item)
            if after is not None and taken and (size > PAGE_BYTES_MAX or len(taken) == most):
                return Page(items=taken, next_token=json.dumps(after))
            taken.append(item)
            after = key(row)
        if len(rows) < ROWS_PER_LOOK:
            return Page(items=taken, next_token="")


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """All of them, in messages that fit."""
    batch: list[Item] = []
    size = 0
    for item in items:
        size += _size(item)
        if batch and size > PAGE_BYTES_MAX:
            yield batch
            batch, size = [], _size(item)
        batch.append(item)
    if batch:
        yield batch


def newest(items: Sequence[Item]) -> Sequence[Item]:
    """As many of the last items as fit."""
    last: list[Item] = next(batches(reversed(items)), [])
    return last[::-1]


def key_of(token: str, *kinds: type[Any]) -> tuple[Any, ...] | None:
    """The key in a token; None for the first page. Raises `UsageError` "page.bad_token"."""
    if not token:
        return None
    try:
        key = json.loads(token)
    except (ValueError, RecursionError):
        key = None
    if isinstance(key, list) and [type(part) for part in key] == list(kinds):
        return tuple(key)
    raise UsageError(
        "page.bad_token",
        "the page token is none that was given for this list",
        fix="begin with the first page, without a token",
    )


def _size(item: Message | str) -> int:
    return 8 + (len(item.encode()) if isinstance(item, str) else item.ByteSize())
