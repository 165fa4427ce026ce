"""A model version on disk: a safetensors file whose data begin with the flat float32 vector.

The trained parameters stand first, as F32 and in layout order, so that the vector is one contiguous, aligned
region that can be mapped and used without copying; the buffers follow as another, then counters and fixed
tensors in dtypes of their own. The layout itself is in the metadata. Nothing here holds more than a few chunks
in memory: files are mapped for reading and written by chunks.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from muster.errors import ConfigError, InternalError, TransferError
from muster.files.hashedfile import BlobInfo, HashedFile
from muster.model.integers import narrow
from muster.model.layout import (
    BUFFER_MOVES,
    BUFFERS,
    COUNTERS,
    FLAG_MOVES,
    INTEGER_MOVES,
    KEEP,
    LAYOUT_KEY,
    LOCAL,
    MOVES,
    PARAMS,
    ParameterLayout,
    TensorSpec,
    Vector,
)
from muster.model.safetensors_header import (
    ALIGNMENT,
    DTYPE_BYTES,
    Entry,
    HeaderError,
    is_list,
    is_object,
    is_shape,
    lay_out,
    parse,
    parse_json_strictly,
    render,
)

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Piece(NamedTuple):
    """What one tensor contributes to one chunk: its coordinates [start, stop), at `at` in the chunk."""

    spec: TensorSpec
    start: int
    stop: int
    at: int


def chunk_pieces(layout: Vector, index: int) -> Iterator[Piece]:
    """The pieces that make up chunk `index`, in order."""
    first, last = layout.chunk_bounds(index)
    for spec, offset in zip(layout.tensors, layout.offsets, strict=True):
        start, stop = max(first, offset), min(last, offset + spec.size)
        if start < stop:
            yield Piece(spec, start - offset, stop - offset, start - first)


class ModelFile:
    """A model version, mapped and read-only: writing into `vector` changes no file.

    Raises `TransferError` "model.malformed" on a file that is not exactly what `ModelWriter` writes.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._open(path)
        except HeaderError as error:
            raise TransferError(
                "model.malformed",
                f"{path} is not a model version: {error}",
                cause="the file was changed, cut off, or written by something else",
                fix="fetch the model again",
            ) from None

    def _open(self, path: Path) -> None:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise HeaderError("the file is empty")
            # Copy-on-write, since torch takes writable memory only. numpy holds on to the map for as long
            # as a tensor looks into it, so closing this file never pulls memory away from under one.
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        header = parse(view)
        if set(header.metadata) != {LAYOUT_KEY}:
            raise HeaderError(f"its metadata is not exactly {LAYOUT_KEY!r}")
        self.layout = _parse_layout(header.metadata[LAYOUT_KEY])
        if dict(header.entries) != _entries(self.layout):
            raise HeaderError(
                "its tensors are not those of its layout: missing, extra, moved or of another shape or dtype"
            )
        if header.data_start % ALIGNMENT:
            raise HeaderError(f"its data do not begin at a multiple of {ALIGNMENT} bytes")
        self._entries = header.entries
        self._map: memoryview | None = view[header.data_start :]
        floats = _as_tensor(self._map[: 4 * self.layout.columns_size], "F32")
        self._vector, self._buffers = floats[: self.layout.size], floats[self.layout.size :]

    @property
    def vector(self) -> Tensor:
        """The trained parameters, float32 [d], a view of the map."""
        self._data()
        return self._vector

    @property
    def buffers(self) -> Tensor:
        """float32 [b], a view of the map."""
        self._data()
        return self._buffers

    @property
    def fixed(self) -> Mapping[str, Tensor]:
        """The fixed tensors by name. Each access reads the tensor and gives a copy."""
        self._data()
        return _Own(self, self.layout.fixed)

    @property
    def counters(self) -> Mapping[str, Tensor]:
        """As `fixed`."""
        return _Own(self, self.layout.counters)

    def own_part(self, spec: TensorSpec, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a tensor that stands in its own dtype, copied."""
        at, width = self._entries[spec.name].start, DTYPE_BYTES[spec.dtype]
        copied = bytearray(self._data()[at + width * start : at + width * stop])
        return _as_tensor(memoryview(copied), spec.dtype)

    def _data(self) -> memoryview:
        if self._map is None:
            raise InternalError("model.closed", "the model file is closed")
        return self._map

    def read_native(self, index: int, out: Tensor, group: str = PARAMS) -> None:
        """Chunk `index` of parameters or buffers, rounded as a model in native dtypes holds it, into out float32 [c].

        What training changed is measured against this, not against `vector`: otherwise the rounding of a
        narrow parameter would count as training and wear the float32 master copy down to the narrow dtype.
        """
        vector = self.layout.groups[group]
        start, stop = vector.chunk_bounds(index)
        out.copy_((self.vector if group == PARAMS else self.buffers)[start:stop])
        for piece in chunk_pieces(vector, index):
            if piece.spec.dtype != "F32":
                part = out[piece.at : piece.at + piece.stop - piece.start]
                part.copy_(part.to(TORCH_DTYPES[piece.spec.dtype]))

    def close(self) -> None:
        """Lets go of the map. Tensors taken from it stay valid; the map goes with the last of them."""
        self._map = None
        self._vector = self._buffers = torch.empty(0, dtype=torch.float32)


class _Own(Mapping[str, Tensor]):
    """Tensors of a file by name, none of them held."""

    def __init__(self, file: ModelFile, specs: Iterable[TensorSpec]) -> None:
        self._file = file
        self._specs = {spec.name: spec for spec in specs}

    def __getitem__(self, name: str) -> Tensor:
        spec = self._specs[name]
        return self._file.own_part(spec, 0, spec.size).reshape(spec.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


class ModelWriter:
    """Writes a model version front to back.

    Raises `StorageError`, or `ConfigError` "model.too_many_tensors" if the header would outgrow its cap.
    """

    def __init__(self, path: Path, layout: ParameterLayout, fixed: Mapping[str, Tensor]) -> None:
        try:
            header = render({LAYOUT_KEY: layout.to_json()}, _entries(layout))
        except HeaderError as error:
            raise ConfigError(
                "model.too_many_tensors",
                f"{len(layout.all_tensors)} tensors do not fit a model file: {error}",
                fix="fuse small parameters into fewer tensors",
            ) from None
        self._layout = layout
        self._fixed = fixed
        self._due = [
            (name, index) for name, vector in layout.groups.items() for index in range(vector.chunk_count)
        ]
        self._due.reverse()
        self._file = HashedFile(path)
        self._file.write(header)

    def write_chunk(self, index: int, values: Tensor, group: str = PARAMS) -> None:
        """The next chunk, float32 [c], of counters int64 [c]; group after group and in order."""
        due = self._due[-1] if self._due else None
        vector = self._layout.groups.get(group)
        start, stop = (0, 0) if vector is None else vector.chunk_bounds(index)
        dtype = torch.int64 if group == COUNTERS else torch.float32
        if (
            due != (group, index)
            or vector is None
            or values.shape != (stop - start,)
            or values.dtype != dtype
        ):
            raise InternalError(
                "model.chunk_order",
                f"chunk {index} of {group} with {values.dtype} {tuple(values.shape)} where {due} was due",
            )
        self._due.pop()
        if group != COUNTERS:
            self._file.write(_as_bytes(values))
            return
        for piece in chunk_pieces(vector, index):
            part = values[piece.at : piece.at + piece.stop - piece.start]
            self._file.write(_as_bytes(narrow(part, TORCH_DTYPES[piece.spec.dtype])))

    def finish(self) -> BlobInfo:
        """Writes the fixed tensors; call it after the last chunk."""
        if self._due:
            count = sum(vector.chunk_count for vector in self._layout.groups.values())
            raise InternalError(
                "model.chunks_missing", f"only {count - len(self._due)} of {count} chunks were written"
            )
        for spec in self._layout.fixed:
            tensor = self._fixed[spec.name]
            if tuple(tensor.shape) != spec.shape or tensor.dtype != TORCH_DTYPES[spec.dtype]:
                raise InternalError(
                    "model.fixed_mismatch", f"fixed tensor {spec.name!r} is not as its layout says"
                )
            self._file.write(_as_bytes(tensor))
        return self._file.finish()

    def close(self) -> None:
        """Closes the file, finished or not; harmless when it is closed already."""
        self._file.close()


def write_model(
    path: Path,
    layout: ParameterLayout,
    chunks: Iterable[Tensor],
    fixed: Mapping[str, Tensor],
    beside: Mapping[str, Iterable[Tensor]] = MappingProxyType({}),
) -> BlobInfo:
    """Writes a model version from its chunks in order, each float32 [c]; they may share one scratch. `beside` has those
    of the groups other than the parameters."""
    writer = ModelWriter(path, layout, fixed)
    try:
        for group in layout.groups:
            for index, chunk in enumerate(chunks if group == PARAMS else beside[group]):
                writer.write_chunk(index, chunk, group)
        return writer.finish()
    finally:
        writer.close()


def _entries(layout: ParameterLayout) -> dict[str, Entry]:
    rows = [(spec.name, "F32", spec.shape) for spec in layout.tensors + layout.buffers]
    return lay_out(rows + [(spec.name, spec.dtype, spec.shape) for spec in layout.counters + layout.fixed])


def _parse_layout(text: str) -> ParameterLayout:
    """A layout from an untrusted file. Raises `HeaderError`."""
    raw = parse_json_strictly(text)
    if not is_object(raw):
        raise HeaderError("its layout is not an object")
    lists = (raw.get("tensors"), raw.get("fixed"), raw.get(BUFFERS, []), raw.get(COUNTERS, []))
    if not (all(_is_list_of(_is_row, rows) for rows in lists) and _is_list_of(_is_alias, raw.get("aliases"))):
        raise HeaderError("its layout has a row that is not one")
    layout = ParameterLayout.from_json(text)
    if layout.to_json() != text:
        raise HeaderError("its layout is not written canonically")
    for specs, moves, floating in (
        (layout.tensors, ("",), (True,)),
        (layout.buffers, BUFFER_MOVES, (True,)),
        (layout.counters, (*INTEGER_MOVES, *FLAG_MOVES), (False,)),
        (layout.fixed, ("", KEEP, LOCAL), (True, False)),
    ):
        for spec in specs:
            if spec.move not in moves or TORCH_DTYPES[spec.dtype].is_floating_point not in floating:
                raise HeaderError(f"its layout gives {spec.name[:80]!r} a dtype that cannot stand there")
    names = {spec.name for spec in layout.all_tensors}
    if any(name in names or source not in names for name, source in layout.aliases):
        raise HeaderError("its layout has an alias of nothing, or one named as a tensor")
    return layout


def _is_list_of(check: Callable[[Any], bool], raw: Any) -> bool:
    return is_list(raw) and all(check(row) for row in raw)


def _is_row(raw: Any) -> bool:
    if not is_list(raw) or len(raw) not in (3, 4):
        return False
    name, shape, dtype, *move = raw
    return (
        isinstance(name, str)
        and is_shape(shape)
        and isinstance(dtype, str)
        and dtype in TORCH_DTYPES
        and (not move or move[0] in MOVES)
    )


def _is_alias(raw: Any) -> bool:
    return _is_list_of(lambda name: isinstance(name, str), raw) and len(raw) == 2


def _as_tensor(data: memoryview, dtype: str) -> Tensor:
    """A flat tensor over writable memory, kept alive by it."""
    if len(data) == 0:
        return torch.empty(0, dtype=TORCH_DTYPES[dtype])
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8)).view(TORCH_DTYPES[dtype])


def _as_bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
