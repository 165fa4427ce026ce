"""What a payload file says of itself: its manifest, and where each chunk lies. A reader trusts nothing of it.

Headers are parsed once a process: the same bytes at the head of a file of the same length give what they gave before,
so that what admission has parsed is at hand when the round is aggregated.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from blake3 import blake3

from muster.model.layout import CHUNK_COORDINATES
from muster.model.safetensors_header import (
    Entry,
    HeaderError,
    header_size,
    is_list,
    is_object,
    parse,
    parse_json_strictly,
)
from muster.task.sources import checked_digest

MANIFEST_KEY = "muster.manifest"
TEXT_LENGTH_MAX = 256  # of any name or id in a manifest
SCALARS_MAX = 256
GROUPS_MAX = 64
CHUNKS_REMEMBERED_MAX = 1 << 16  # of all headers together, some 16 MiB


@dataclass(frozen=True, kw_only=True)
class GroupSpec:
    """A flat vector of `size` coordinates, encoded chunk by chunk."""

    name: str
    codec: str
    size: int

    @property
    def chunk_count(self) -> int:
        return -(-self.size // CHUNK_COORDINATES)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an update is. Scalars are "examples", "steps" and "metric/NAME"; they need not be finite. `source_digest` is
    of the task's source code (`muster.task.sources`), or ""."""

    run_id: str
    round: int
    assignment_id: str
    base_digest: str
    layout_digest: str
    groups: tuple[GroupSpec, ...]
    scalars: Mapping[str, float] = field(default_factory=dict[str, float])
    source_digest: str = ""

    def codec_of(self, group: str) -> str:
        """The spelling of the group's codec; "" where there is no such group."""
        return next((each.codec for each in self.groups if each.name == group), "")

    def to_json(self) -> str:
        raw = {
            "run_id": self.run_id,
            "round": self.round,
            "assignment_id": self.assignment_id,
            "base_digest": self.base_digest,
            "layout_digest": self.layout_digest,
            "groups": [
                {"name": group.name, "codec": group.codec, "size": group.size} for group in self.groups
            ],
            "scalars": {name: float(value) for name, value in self.scalars.items()},
            "source_digest": self.source_digest,
        }
        return json.dumps(raw, separators=(",", ":"))


def entry_name(group: str, index: int) -> str:
    return f"{group}/{index:06d}"


@dataclass(frozen=True, kw_only=True)
class PayloadHeader:
    """A parsed header: `entries` by `entry_name`, the data region begins at `data_start` of the file."""

    manifest: Manifest
    entries: Mapping[str, Entry]
    data_start: int


class _Remembered:
    """The newest headers, by what they were parsed from."""

    def __init__(self) -> None:
        self._headers: OrderedDict[tuple[bytes, int], PayloadHeader] = OrderedDict()
        self._chunks = 0
        self._lock = Lock()

    def get(self, key: tuple[bytes, int]) -> PayloadHeader | None:
        with self._lock:
            found = self._headers.get(key)
            if found is not None:
                self._headers.move_to_end(key)
            return found

    def put(self, key: tuple[bytes, int], header: PayloadHeader) -> None:
        with self._lock:
            if key in self._headers:
                return
            self._headers[key] = header
            self._chunks += len(header.entries)
            while self._chunks > CHUNKS_REMEMBERED_MAX and len(self._headers) > 1:
                _, oldest = self._headers.popitem(last=False)
                self._chunks -= len(oldest.entries)


_remembered = _Remembered()


def parse_header(file: memoryview) -> PayloadHeader:
    """Of a whole payload file. Raises `HeaderError` on anything out of order."""
    key = (blake3(file[: header_size(file)]).digest(), len(file))
    found = _remembered.get(key)
    if found is None:
        found = _parse(file)
        _remembered.put(key, found)
    return found


def _parse(file: memoryview) -> PayloadHeader:
    header = parse(file)
    if set(header.metadata) != {MANIFEST_KEY}:
        raise HeaderError(f"its metadata is not exactly {MANIFEST_KEY!r}")
    manifest = _parse_manifest(header.metadata[MANIFEST_KEY])
    _check_chunks(manifest, header.entries)
    return PayloadHeader(manifest=manifest, entries=header.entries, data_start=header.data_start)


def _check_chunks(manifest: Manifest, entries: Mapping[str, Entry]) -> None:
    # Counted before any name is made: a manifest may claim any size.
    if sum(group.chunk_count for group in manifest.groups) != len(entries):
        raise HeaderError("its chunks are not as many as its groups need")
    for group in manifest.groups:
        for index in range(group.chunk_count):
            entry = entries.get(entry_name(group.name, index))
            if entry is None or entry.dtype != "U8" or len(entry.shape) != 1:
                raise HeaderError(f"chunk {index} of group {group.name!r} is missing or not bytes")


def _parse_manifest(text: str) -> Manifest:
    raw = parse_json_strictly(text)
    table = _table(
        raw,
        {"run_id", "round", "assignment_id", "base_digest", "layout_digest", "groups", "scalars"},
        optional={"source_digest"},  # updates that are kept may be older than it
    )
    groups = _list(table["groups"], GROUPS_MAX)
    names = [_text(_table(group, {"name", "codec", "size"})["name"]) for group in groups]
    if len(set(names)) != len(names):
        raise HeaderError("its manifest names a group twice")
    return Manifest(
        run_id=_text(table["run_id"]),
        round=_count(table["round"]),
        assignment_id=_text(table["assignment_id"]),
        base_digest=_text(table["base_digest"]),
        layout_digest=_text(table["layout_digest"]),
        groups=tuple(
            GroupSpec(name=name, codec=_text(group["codec"]), size=_count(group["size"]))
            for name, group in zip(names, groups, strict=True)
        ),
        scalars=_scalars(table["scalars"]),
        source_digest=checked_digest(_text(table.get("source_digest", ""))),
    )


def _table(raw: Any, keys: set[str], *, optional: Set[str] = frozenset()) -> dict[str, Any]:
    if not is_object(raw) or set(raw) - optional != keys:
        raise HeaderError(f"its manifest lacks an object of exactly {', '.join(sorted(keys))}")
    return raw


def _list(raw: Any, most: int) -> list[Any]:
    if not is_list(raw) or len(raw) > most:
        raise HeaderError(f"its manifest lacks a list of at most {most}")
    return raw


def _text(raw: Any) -> str:
    if not isinstance(raw, str) or len(raw) > TEXT_LENGTH_MAX or not raw.isprintable():
        raise HeaderError(f"its manifest lacks a printable text of at most {TEXT_LENGTH_MAX} letters")
    return raw


def _count(raw: Any) -> int:
    if type(raw) is not int or not 0 <= raw < 1 << 63:
        raise HeaderError("its manifest lacks a natural number")
    return raw


def _scalars(raw: Any) -> dict[str, float]:
    if not is_object(raw) or len(raw) > SCALARS_MAX:
        raise HeaderError(f"its manifest lacks an object of at most {SCALARS_MAX} scalars")
    scalars: dict[str, float] = {}
    for name, value in raw.items():
        if type(value) not in {int, float}:
            raise HeaderError(f"its manifest has a scalar {name[:80]!r} that is not a number")
        try:
            scalars[_text(name)] = float(value)
        except OverflowError:
            raise HeaderError(f"its manifest has a scalar {name[:80]!r} out of range") from None
    return scalars
