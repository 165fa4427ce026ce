"""The safetensors header, read as strictly as the format allows and written so that any reader takes it.

A file is the header's length (8 bytes, little-endian), the header (a JSON object padded with spaces) and
the data. Files come from the network, so this module trusts nothing: the header is capped, every key is
known, every tensor's bytes are exactly its shape's, and the tensors cover the data without overlap, hole or
rest. Format: https://github.com/huggingface/safetensors (format section).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn, TypeGuard

HEADER_BYTES_MAX = 1 << 20
ALIGNMENT = 64  # of the data's first byte in the file
DIMENSIONS_MAX = 64  # torch's own bound

DTYPE_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8,
    "F16": 2, "BF16": 2, "F32": 4, "F64": 8,
}  # fmt: skip

_METADATA = "__metadata__"
_PREFIX = struct.Struct("<Q")


class HeaderError(ValueError):
    """The bytes are not a header that we take; the message is one clause that says why."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor: its bytes are [start, stop) of the data region."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the header of a safetensors file says."""

    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]
    data_start: int  # offset of the data region in the file


def lay_out(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> dict[str, Entry]:
    """Entries for (name, dtype, shape) rows whose data follow one another."""
    entries: dict[str, Entry] = {}
    at = 0
    for name, dtype, shape in tensors:
        if name in entries or name == _METADATA:
            raise HeaderError(f"tensor name {name!r} is taken")
        stop = at + DTYPE_BYTES[dtype] * prod(shape)
        entries[name] = Entry(dtype=dtype, shape=shape, start=at, stop=stop)
        at = stop
    return entries


def render(metadata: Mapping[str, str], entries: Mapping[str, Entry], *, size: int = 0) -> bytes:
    """Length and header, padded with spaces to an aligned size of at least `size` bytes.

    Raises `HeaderError` if the header would be larger than readers take.
    """
    rows: dict[str, Any] = {_METADATA: dict(metadata)}
    for name, entry in entries.items():
        rows[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.stop],
        }
    text = json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()
    total = max(_PREFIX.size + len(text), size)
    total += -total % ALIGNMENT
    length = total - _PREFIX.size
    if length > HEADER_BYTES_MAX:
        raise HeaderError(f"the header would take {length} bytes; {HEADER_BYTES_MAX} is the most")
    return _PREFIX.pack(length) + text.ljust(length, b" ")


def header_size(file: memoryview) -> int:
    """Bytes of length and header, which the data follow. Raises `HeaderError` if the file does not have them."""
    if len(file) < _PREFIX.size:
        raise HeaderError(f"the file ends after {len(file)} bytes, within the header's length")
    (length,) = _PREFIX.unpack(file[: _PREFIX.size])
    if length > HEADER_BYTES_MAX:
        raise HeaderError(f"the header claims {length} bytes; {HEADER_BYTES_MAX} is the most")
    if len(file) < _PREFIX.size + length:
        raise HeaderError(f"the file ends after {len(file)} bytes, within a header of {length}")
    return int(_PREFIX.size + length)


def parse(file: memoryview) -> Header:
    """Reads the header of a whole file. Raises `HeaderError` on anything out of order."""
    data_start = header_size(file)
    rows = _parse_json(bytes(file[_PREFIX.size : data_start]))
    metadata = _parse_metadata(rows.pop(_METADATA, {}))
    entries = {name: _parse_entry(name, row) for name, row in rows.items()}
    _check_cover(entries, len(file) - data_start)
    return Header(metadata=metadata, entries=entries, data_start=data_start)


def parse_json_strictly(text: str) -> Any:
    """JSON without duplicate keys, at any depth. Raises `HeaderError`."""
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except HeaderError:
        raise
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"not JSON: {error}") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise HeaderError("a key occurs twice")
    return found


def _parse_json(header: bytes) -> dict[str, Any]:
    if not header.startswith(b"{"):
        raise HeaderError("the header does not begin with '{'")
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError:
        raise HeaderError("the header is not UTF-8") from None
    rows: dict[str, Any] = parse_json_strictly(text)
    return rows


def _parse_metadata(raw: Any) -> dict[str, str]:
    if not is_object(raw):
        raise HeaderError("the metadata is not an object")
    if not all(isinstance(value, str) for value in raw.values()):
        raise HeaderError("the metadata has a value that is not text")
    return raw


def _parse_entry(name: str, raw: Any) -> Entry:
    def refuse(why: str) -> NoReturn:
        raise HeaderError(f"tensor {name[:80]!r}: {why}")

    if not is_object(raw) or set(raw) != {"dtype", "shape", "data_offsets"}:
        refuse("its entry is not an object of exactly dtype, shape and data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        refuse("its dtype is none that we know")
    if not is_shape(shape):
        refuse("its shape is not a short list of natural numbers")
    if not is_shape(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse("its offsets are not two natural numbers in order")
    if offsets[1] - offsets[0] != DTYPE_BYTES[dtype] * prod(shape):
        refuse("its offsets do not span its shape")
    return Entry(dtype=dtype, shape=tuple(shape), start=offsets[0], stop=offsets[1])


def is_object(raw: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a JSON value is an object."""
    return isinstance(raw, dict)  # JSON's keys are always text


def is_list(raw: Any) -> TypeGuard[list[Any]]:
    """Whether a JSON value is a list."""
    return isinstance(raw, list)


def is_shape(raw: Any) -> bool:
    """Whether it is a list of natural numbers below 2^63; true and 1.0 are none."""
    return (
        is_list(raw) and len(raw) <= DIMENSIONS_MAX and all(type(n) is int and 0 <= n < 1 << 63 for n in raw)
    )


def _check_cover(entries: Mapping[str, Entry], data_bytes: int) -> None:
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != at:
            what = "overlaps the tensor before it" if entry.start < at else "leaves a hole before it"
            raise HeaderError(f"tensor {name[:80]!r} {what}")
        at = entry.stop
    if at != data_bytes:
        raise HeaderError(f"the tensors take {at} bytes, the file has {data_bytes}")
