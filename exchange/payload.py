"""An update on disk and on the wire: a safetensors file whose tensors are encoded chunks.

Tensor "params/000003" (U8) is the fourth chunk of group "params" as the group's codec wrote it; what the
update is and what it answers stands in the metadata as a manifest. A reader trusts nothing of it.

Beside the parameters, buffers and counters are groups of their own (`muster.model.layout`), which nothing is lost of:
going up, buffers are what changed, and counters their values; going down, both are the new version's values.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from blake3 import blake3

from exchange.manifest import MANIFEST_KEY, GroupSpec, Manifest, entry_name, parse_header
from muster.errors import ConfigError, InternalError, StorageError, UpdateRejected
from muster.files.digests import digest_file
from muster.files.hashedfile import BlobFile, BlobInfo
from muster.model.layout import BUFFERS, COUNTERS, PARAMS, ParameterLayout
from muster.model.safetensors_header import (
    Entry,
    HeaderError,
    render,
)

__all__ = ["BlobInfo", "GroupSpec", "Manifest", "PayloadReader", "PayloadWriter", "groups_of"]

# How what is not trained travels, whatever the run's codec: without loss.
BESIDE: Mapping[str, str] = MappingProxyType({BUFFERS: "identity+zstd", COUNTERS: "int64+zstd"})
SCALED = "scaled:"  # and the codec of a step that is still to be multiplied by the run's scale, [d]
BODY_BYTES_MAX = 1 << 24  # of one encoded chunk: many times the chunk's float32 bytes


def groups_of(layout: ParameterLayout, codec: str) -> tuple[GroupSpec, ...]:
    """Those of a body with this codec for the parameters, in their order."""
    return tuple(
        GroupSpec(name=name, codec=codec if name == PARAMS else BESIDE[name], size=vector.size)
        for name, vector in layout.groups.items()
    )


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
        names = (entry_name(group, index) for group, count in self._due.items() for index in range(count))
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
        self._entries[entry_name(group, index)] = Entry(
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
    """An update, mapped and read-only. Raises `UpdateRejected` "update.malformed".

    With its `digest`, the bytes are hashed as chunks are asked for, so that `verify` reads again only what nobody has
    asked for, or not in the order of the file.
    """

    def __init__(self, path: Path, *, digest: str = "") -> None:
        self._path, self._digest = path, digest
        self._hasher = blake3()
        self._hashed = 0  # of the data region, from its beginning
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
        parsed = parse_header(view)
        self.manifest = parsed.manifest
        self._entries = parsed.entries
        self._hasher.update(view[: parsed.data_start])
        self._data: memoryview | None = view[parsed.data_start :]

    def chunk(self, group: str, index: int) -> memoryview:
        """An encoded chunk; stays valid after `close`, the map goes with the last of them."""
        if self._data is None:
            raise InternalError("update.closed", "the update's reader is closed")
        entry = self._entries[entry_name(group, index)]
        body = self._data[entry.start : entry.stop]
        if self._digest and entry.start == self._hashed:
            self._hasher.update(body)
            self._hashed = entry.stop
        return body

    def verify(self) -> None:
        """Raises `StorageError` "blob.damaged" unless the file's bytes are those that its digest names."""
        if not self._digest or self._data is None:
            return
        self._hasher.update(self._data[self._hashed :])
        self._hashed = len(self._data)
        if self._hasher.hexdigest() != self._digest:
            raise StorageError(
                "blob.damaged",
                f"{self._path} has other bytes than were stored",
                cause="the disk has lost or changed some",
                fix="put it back from a backup, and check the disk",
            )

    def close(self) -> None:
        self._data = None
