"""Compositions: "topk:0.01+int8+rice+zstd", at most one of each kind and in this order.

    sparsify  topk, randk                which coordinates are sent
    quantise  any codec of plain chunks  their values, taken for a chunk of their own; float32 if there is none
    code      rice, varint, auto         their indices: `auto`, if none is said, is whichever of the two is smaller
    entropy   zstd, zstd:LEVEL           of indices and of values, each apart and only where it makes them smaller

    C = scatter . Q . S;   contractive with delta_S delta_Q where both are;
                           unbiased with (1 + omega_S) (1 + omega_Q) - 1 where both are

The first since |S x|^2 >= delta_S |x|^2 and what Q loses is at most (1 - delta_Q) |S x|^2.

Body: one byte that tells what follows (bits 0, 1: the coding of the indices; 2: indices are zstd; 3: values are);
of a sparse chunk the number of values and, where indices travel, the length of their section, as varints; the indices;
the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from compressors.core.codec import Codec, CodecError, DecodeError, chunk_array
from compressors.core.context import ChunkContext
from compressors.core.entropy import Zstd, decompress
from compressors.core.scratch import scratch
from compressors.core.varint import VARINT_BYTES_MAX, read_varint, varint
from compressors.sparsifiers import indices as coding
from compressors.sparsifiers.sparsifier import Floats, Indices, Sparsifier, put_device, put_host
from methods import Requirement, SpecValues
from methods.spelling import split

CODINGS = ("auto", "rice", "varint")
KINDS = "a sparsifier, a codec of values, a coding of indices and zstd, each at most once and in this order"
_DERIVED, _RICE, _VARINT = 0, 1, 2
_CODING, _INDICES_ZSTD, _VALUES_ZSTD = 3, 4, 8


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a composition; `coding` is of the indices."""

    sparsifier: Sparsifier | None = None
    values: Codec
    coding: str = "auto"
    zstd: Zstd | None = None


class Composed(Codec):
    linear = False

    def __init__(self, parts: Parts) -> None:
        sparsifier, values = parts.sparsifier, parts.values
        kinds = [values] if sparsifier is None else [sparsifier, values]
        self.parts = parts
        self.unbiased = all(part.unbiased for part in kinds)
        self.contractive = all(part.contractive for part in kinds)
        self.shares_factor = any(part.shares_factor for part in kinds)
        names = [] if sparsifier is None else [sparsifier.spelling]
        if sparsifier is None or values.spelling != "identity":
            names.append(values.spelling)
        if sparsifier is not None and sparsifier.indices_travel:
            names.append(parts.coding)
        if parts.zstd is not None:
            names.append(parts.zstd.spelling)
        self.spelling = "+".join(names)

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        raise CodecError(f"a composition is spelled by its parts, not {argument!r}")

    def requires(self, spec: SpecValues) -> Iterator[Requirement]:
        for part in (self.parts.sparsifier, self.parts.values):
            if part is not None:
                yield from part.requires(spec)

    def at(self, place: ChunkContext) -> Composed:
        sparsifier = self.parts.sparsifier
        bound = None if sparsifier is None else sparsifier.at(place)
        # What is sent of a sparse chunk has no matrices any more.
        values = self.parts.values.at(place if bound is None else place._replace(pieces=()))
        if bound is sparsifier and values is self.parts.values:
            return self
        return Composed(
            Parts(sparsifier=bound, values=values, coding=self.parts.coding, zstd=self.parts.zstd)
        )

    def sharing(self, share: Callable[[float], float]) -> Composed | None:
        sparsifier = self.parts.sparsifier
        shared = None if sparsifier is None else sparsifier.sharing(share)
        return Composed(replace(self.parts, sparsifier=shared)) if isinstance(shared, Sparsifier) else None

    def _k(self, size: int) -> int:
        return size if self.parts.sparsifier is None else self.parts.sparsifier.k(size)

    def delta(self, size: int) -> float:
        if not self.contractive:
            return super().delta(size)
        kept = 1.0 if self.parts.sparsifier is None else self.parts.sparsifier.delta(size)
        return kept * self.parts.values.delta(self._k(size))

    def usual_delta(self, size: int) -> float:
        if not self.contractive:
            return super().usual_delta(size)
        kept = 1.0 if self.parts.sparsifier is None else self.parts.sparsifier.usual_delta(size)
        return kept * self.parts.values.usual_delta(self._k(size))

    def omega(self, size: int) -> float:
        if not self.unbiased:
            return super().omega(size)
        left_out = 0.0 if self.parts.sparsifier is None else self.parts.sparsifier.omega(size)
        return (1 + left_out) * (1 + self.parts.values.omega(self._k(size))) - 1

    def bytes_max(self, size: int) -> int:
        most = 1 + self.parts.values.bytes_max(self._k(size))
        if self.parts.sparsifier is None:
            return most
        return most + 2 * VARINT_BYTES_MAX + self._indices_bytes_max(size)

    def _indices_bytes_max(self, size: int) -> int:
        sparsifier = self.parts.sparsifier
        if sparsifier is None or not sparsifier.indices_travel:
            return 0
        k = sparsifier.k(size)
        rice, varint = coding.rice_bytes_max(k, size), coding.varint_bytes_max(k, size)
        return {"rice": rice, "varint": varint}.get(self.parts.coding, min(rice, varint))

    def encode_host(self, x: Tensor, seed: int) -> bytes:
        if self.parts.sparsifier is None:
            return self._dense(self.parts.values.encode_host(x, seed))
        return self._sparse(*self.parts.sparsifier.take_host(x), x.numel(), seed)

    def encode_device(
        self, x: Tensor, seed: int
    ) -> bytes:  # what is sent of a sparse chunk is quantised on the host
        if self.parts.sparsifier is None:
            return self._dense(self.parts.values.encode_device(x, seed))
        return self._sparse(*self.parts.sparsifier.take_device(x), x.numel(), seed)

    def _dense(self, raw: bytes) -> bytes:
        flag, body = self._shorter(raw, _VALUES_ZSTD)
        return bytes([flag]) + body

    def _sparse(self, chosen: Indices, kept: Floats, size: int, seed: int) -> bytes:
        flags, head, section = _DERIVED, varint(chosen.size), b""
        if self.parts.sparsifier is not None and self.parts.sparsifier.indices_travel:
            flags, raw = self._code(chosen, size)
            flag, section = self._shorter(raw, _INDICES_ZSTD)
            flags |= flag
            head += varint(len(section))
        flag, body = self._shorter(self.parts.values.encode(torch.from_numpy(kept), seed), _VALUES_ZSTD)
        return bytes([flags | flag]) + head + section + body

    def _code(self, chosen: Indices, size: int) -> tuple[int, bytes]:
        match self.parts.coding:
            case "rice":
                return _RICE, coding.encode_rice(chosen, size)
            case "varint":
                return _VARINT, coding.encode_varint(chosen, size)
            case _:
                rice = coding.encode_rice(chosen, size)
                if len(rice) <= coding.count_varint_bytes(chosen):
                    return _RICE, rice
                return _VARINT, coding.encode_varint(chosen, size)

    def _shorter(self, raw: bytes, flag: int) -> tuple[int, bytes]:
        if self.parts.zstd is None:
            return 0, raw
        framed = self.parts.zstd.compress(raw)
        return (flag, framed) if len(framed) < len(raw) else (0, raw)

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        if self.parts.sparsifier is None:
            self.parts.values.decode_host(self._raw(body, out.numel()), out)
        else:
            put_host(*self._read(self.parts.sparsifier, body, out.numel()), out)

    def decode_device(self, body: bytes | memoryview, out: Tensor) -> None:
        if self.parts.sparsifier is None:
            self.parts.values.decode_device(self._raw(body, out.numel()), out)
        else:
            put_device(*self._read(self.parts.sparsifier, body, out.numel()), out)

    def _raw(self, body: bytes | memoryview, size: int) -> bytes | memoryview:
        flags, rest = self._flags(body)
        return self._opened(rest, flags & _VALUES_ZSTD, self.parts.values.bytes_max(size))

    def _read(self, sparsifier: Sparsifier, body: bytes | memoryview, size: int) -> tuple[Indices, Floats]:
        """Strictly increasing indices within the chunk and finite values; scratch."""
        flags, rest = self._flags(body)
        count, rest = read_varint(rest)
        k = sparsifier.k(size)
        if count > k or (count < k and not sparsifier.indices_travel):
            raise DecodeError(f"the body claims {count} values where {k} are due")
        chosen, rest = self._chosen(sparsifier, flags, rest, count, size)
        raw = self._opened(rest, flags & _VALUES_ZSTD, self.parts.values.bytes_max(count))
        kept = scratch("composed.values", count, torch.float32)
        self.parts.values.decode(raw, kept)
        values = chunk_array(kept)
        if not bool(np.isfinite(values).all()):
            raise DecodeError("a value is not finite")
        return chosen, values

    def _flags(self, body: bytes | memoryview) -> tuple[int, memoryview]:
        if not len(body):
            raise DecodeError("the body is empty")
        flags = body[0]
        sparsifier = self.parts.sparsifier
        codings = {_DERIVED}
        if sparsifier is not None and sparsifier.indices_travel:
            codings = {"rice": {_RICE}, "varint": {_VARINT}}.get(self.parts.coding, {_RICE, _VARINT})
        allowed = 0 if self.parts.zstd is None else _INDICES_ZSTD * (_DERIVED not in codings) | _VALUES_ZSTD
        if flags & _CODING not in codings or flags & ~_CODING & ~allowed:
            raise DecodeError(
                f"the body begins with {flags}, which tells of parts that {self.spelling} has not"
            )
        return flags, memoryview(body)[1:]

    def _chosen(
        self, sparsifier: Sparsifier, flags: int, rest: memoryview, count: int, size: int
    ) -> tuple[Indices, memoryview]:
        if not sparsifier.indices_travel:
            return sparsifier.derived(size), rest
        length, rest = read_varint(rest)
        if length > len(rest):
            raise DecodeError("the indices end too early")
        raw = self._opened(rest[:length], flags & _INDICES_ZSTD, self._indices_bytes_max(size))
        read = coding.decode_rice if flags & _CODING == _RICE else coding.decode_varint
        return read(raw, count, size), rest[length:]

    @staticmethod
    def _opened(section: memoryview, framed: int, size_max: int) -> bytes | memoryview:
        return decompress(section, size_max) if framed else section


def compose(names: Sequence[str], build: Callable[[str], Codec]) -> Composed:
    """The composition of these parts; `build` makes a single codec. Raises `CodecError`."""
    spelling, rest = "+".join(names), list(names)
    zstd = _zstd(rest.pop()) if split(rest[-1])[0] == "zstd" else None
    code = rest.pop() if rest and rest[-1] in CODINGS else None
    codecs = [build(name) for name in rest]
    sparsifier = next((codec for codec in codecs[:1] if isinstance(codec, Sparsifier)), None)
    values = codecs[1:] if sparsifier is not None else codecs
    if len(values) > 1 or any(isinstance(codec, Sparsifier | Composed) for codec in values):
        raise CodecError(f"{spelling}: a composition is {KINDS}")
    if code is not None and (sparsifier is None or not sparsifier.indices_travel):
        raise CodecError(f"{spelling}: {code} codes indices, and none travel here; topk:0.01+{code} has some")
    if sparsifier is None and not values:
        raise CodecError(f"{spelling}: a codec is missing, such as topk:0.01+{spelling}")
    return Composed(
        Parts(
            sparsifier=sparsifier,
            values=values[0] if values else build("identity"),
            coding=code or "auto",
            zstd=zstd,
        )
    )


def _zstd(name: str) -> Zstd:
    _, level = split(name)
    if level is None:
        return Zstd()
    if not level.isdecimal() or len(level) > 9:
        raise CodecError(f"zstd takes a level, such as zstd:3, not {level!r}")
    return Zstd(int(level))
