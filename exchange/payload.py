"""An update on disk and on the wire: a safetensors file whose tensors are encoded chunks.

Tensor "params/000003" (U8) is the fourth chunk of group "params" as the group's codec wrote it; what the
update is and what it answers stands in the metadata as a manifest. A reader trusts nothing of it.

Beside the parameters, buffers and counters are groups of their own (`muster.model.layout`), which nothing is lost of:
going up, buffers are what changed, and counters their values; going down, both are the new version's values.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from muster.errors import ConfigError, InternalError, UpdateRejected
from muster.files.digests import digest_file
from muster.files.hashedfile import BlobFile, BlobInfo
from muster.model.layout import BUFFERS, CHUNK_COORDINATES, COUNTERS, PARAMS, ParameterLayout
from muster.model.safetensors_header import (
    Entry,
    HeaderError,
    is_list,
    is_object,
    parse,
    parse_json_strictly,
    render,
)
from muster.task.sources import checked_digest

__all__ = ["BlobInfo", "GroupSpec", "Manifest", "PayloadReader", "PayloadWriter", "groups_of"]

# How what is not trained travels, whatever the run's codec: without loss.
BESIDE: Mapping[str, str] = MappingProxyType({BUFFERS: "identity+zstd", COUNTERS: "int64+zstd"})
SCALED = "scaled:"  # and the codec of a step that is still to be multiplied by the run's scale, [d]
MANIFEST_KEY = "muster.manifest"
BODY_BYTES_MAX = 1 << 24  # of one encoded chunk: many times the chunk's float32 bytes
TEXT_LENGTH_MAX = 256  # of any name or id in a manifest
SCALARS_MAX = 256
GROUPS_MAX = 64


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


def groups_of(layout: ParameterLayout, codec: str) -> tuple[GroupSpec, ...]:
    """Those of a body with this codec for the parameters, in their order."""
    return tuple(
        GroupSpec(name=name, codec=codec if name == PARAMS else BESIDE[name], size=vector.size)
        for name, vector in layout.groups.items()
    )


def _entry_name(group: str, index: int) -> str:
    return f"{group}/{index:06d}"


class PayloadWriter:
    """Writes an update chunk by chunk; the header's place is kept free and filled at the end.

    Raises `StorageError`, or `ConfigError` "update.too_many_chunks" if the header would outgrow its cap.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._metadata = {MANIFEST_KEY: manifest.to_json()}
        self._due = {group.name: group.chunk_count for group in manifest.groups}
        self._written = dict.fromkeys(self._due, 0)
        self._entries: dict[str, Entry] = {}
        self._at = 0
        self._path = path
        total = sum(self._due.values())
        # The widest header that these chunks can have; whatever they turn out to be, the true one fits.
        widest = Entry(
            dtype="U8", shape=(BODY_BYTES_MAX,), start=total * BODY_BYTES_MAX, stop=total * BODY_BYTES_MAX
        )
        names = (_entry_name(group, index) for group, count in self._due.items() for index in range(count))
        try:
            self._header_bytes = len(render(self._metadata, dict.fromkeys(names, widest)))
        except HeaderError as error:
            raise ConfigError(
                "update.too_many_chunks", f"{total} chunks do not fit an update: {error}"
            ) from None
        self._file = BlobFile(path)
        self._file.seek(self._header_bytes)

    def append(self, group: str, body: bytes) -> None:
        """The group's next chunk. Groups may be interleaved."""
        index = self._written[group]
        if index >= self._due[group] or len(body) > BODY_BYTES_MAX:
            raise InternalError(
                "update.bad_chunk", f"chunk {index} of {self._due[group]} of {group!r} has {len(body)} bytes"
            )
        self._file.write(body)
        stop = self._at + len(body)
        self._entries[_entry_name(group, index)] = Entry(
            dtype="U8", shape=(len(body),), start=self._at, stop=stop
        )
        self._at = stop
        self._written[group] = index + 1

    def finish(self) -> BlobInfo:
        """Fills in the header; call it after the last chunk."""
        if self._written != self._due:
            raise InternalError("update.chunks_missing", f"chunks written: {self._written}, due: {self._due}")
        header = render(self._metadata, self._entries, size=self._header_bytes)
        self._file.seek(0)
        self._file.write(header)
        self._file.close()
        return BlobInfo(self._header_bytes + self._at, digest_file(self._path))

    def close(self) -> None:
        """Closes the file, finished or not; harmless when it is closed already."""
        self._file.close()


class PayloadReader:
    """An update, mapped and read-only. Raises `UpdateRejected` "update.malformed"."""

    def __init__(self, path: Path) -> None:
        try:
            self._open(path)
        except HeaderError as error:
            raise UpdateRejected(
                "update.malformed",
                f"the update cannot be read: {error}",
                cause="it was cut off, changed, or not written by Muster",
            ) from None

    def _open(self, path: Path) -> None:
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise HeaderError("the file is empty")
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        header = parse(view)
        if set(header.metadata) != {MANIFEST_KEY}:
            raise HeaderError(f"its metadata is not exactly {MANIFEST_KEY!r}")
        self.manifest = _parse_manifest(header.metadata[MANIFEST_KEY])
        _check_chunks(self.manifest, header.entries)
        self._entries = header.entries
        self._data: memoryview | None = view[header.data_start :]

    def chunk(self, group: str, index: int) -> memoryview:
        """An encoded chunk; stays valid after `close`, the map goes with the last of them."""
        if self._data is None:
            raise InternalError("update.closed", "the update's reader is closed")
        entry = self._entries[_entry_name(group, index)]
        return self._data[entry.start : entry.stop]

    def close(self) -> None:
        self._data = None


def _check_chunks(manifest: Manifest, entries: Mapping[str, Entry]) -> None:
    # Counted before any name is made: a manifest may claim any size.
    if sum(group.chunk_count for group in manifest.groups) != len(entries):
        raise HeaderError("its chunks are not as many as its groups need")
    for group in manifest.groups:
        for index in range(group.chunk_count):
            entry = entries.get(_entry_name(group.name, index))
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
