"""The parameter layout: how a model's tensors lie in one flat float32 vector.

Every floating tensor of `model.state_dict()` (parameters and buffers, in its order) takes its place in the
vector, in float32 whatever its own dtype, so that small updates are not lost to a narrow master copy.
Integer and boolean tensors (step counters and the like) are `fixed`: they travel in model files as they are
and are never updated.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from math import prod

from muster.digests import digest_bytes

CHUNK_COORDINATES = 1 << 18  # 1 MiB of float32


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    name: str
    shape: tuple[int, ...]
    dtype: str  # the model's own, as safetensors spells it: "F32", "BF16"...; if fixed "I64", "BOOL"...

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class ParameterLayout:
    """`tensors` make up the vector, one after the other; `fixed` stay beside it.

    `aliases` are (name, name of the tensor that it shares its memory with): tied weights travel once.
    """

    tensors: tuple[TensorSpec, ...]
    fixed: tuple[TensorSpec, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()

    @cached_property
    def size(self) -> int:
        """Coordinates of the vector."""
        return sum(tensor.size for tensor in self.tensors)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First coordinate of each tensor."""
        offsets: list[int] = []
        at = 0
        for tensor in self.tensors:
            offsets.append(at)
            at += tensor.size
        return tuple(offsets)

    @property
    def chunk_count(self) -> int:
        return -(-self.size // CHUNK_COORDINATES)

    def chunk_bounds(self, index: int) -> tuple[int, int]:
        """[start, stop) of chunk `index` in coordinates."""
        start = index * CHUNK_COORDINATES
        return start, min(start + CHUNK_COORDINATES, self.size)

    def to_json(self) -> str:
        """Canonical, so that equal layouts have equal digests."""

        def rows(specs: tuple[TensorSpec, ...]) -> list[list[object]]:
            return [[spec.name, list(spec.shape), spec.dtype] for spec in specs]

        raw = {
            "tensors": rows(self.tensors),
            "fixed": rows(self.fixed),
            "aliases": [list(alias) for alias in self.aliases],
        }
        return json.dumps(raw, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ParameterLayout:
        raw = json.loads(text)

        def specs(rows: list[tuple[str, list[int], str]]) -> tuple[TensorSpec, ...]:
            return tuple(
                TensorSpec(name=name, shape=tuple(shape), dtype=dtype) for name, shape, dtype in rows
            )

        return cls(
            tensors=specs(raw["tensors"]),
            fixed=specs(raw["fixed"]),
            aliases=tuple((name, source) for name, source in raw["aliases"]),
        )

    @cached_property
    def digest(self) -> str:
        return digest_bytes(self.to_json().encode())
