"""Lists in pages, so that no list is ever too long for a message, whatever stands in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from muster.errors import UsageError

PAGE_BYTES_MAX = 1 << 20  # a message has 4 MiB at most; one item, however long, has less than the rest
PAGE_ROWS_MAX = 200  # rows that are read for a page

Item = TypeVar("Item", bound=Message | str)


@dataclass(frozen=True, kw_only=True)
class Page(Generic[Item]):
    items: Sequence[Item]
    next_token: str  # "" behind the last page


def rows_asked(page_size: int) -> int:
    """How many rows to read: one more than the page shows, which tells whether there is another page."""
    return min(page_size or PAGE_ROWS_MAX, PAGE_ROWS_MAX) + 1


def page(items: Iterable[Item], page_size: int, token: Callable[[int], str]) -> Page[Item]:
    """As many of the first items as fit, and at least one. `token(n)` is that of the page behind the first n."""
    most = rows_asked(page_size) - 1
    taken: list[Item] = []
    size = 0
    for item in items:
        size += _size(item)
        if taken and (size > PAGE_BYTES_MAX or len(taken) == most):
            return Page(items=taken, next_token=token(len(taken)))
        taken.append(item)
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


def token_of(*key: Any) -> str:
    """Of the page behind the row with this key."""
    return json.dumps(key)


def key_of(token: str, *kinds: type[Any]) -> tuple[Any, ...] | None:
    """The key in a token; None for the first page. Raises `UsageError` "page.bad_token"."""
    if not token:
        return None
    try:
        key = json.loads(token)
    except ValueError:
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
