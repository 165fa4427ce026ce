"""The parameter layout: what a model is made of, and how what moves of it lies in flat vectors.

Each tensor of `model.state_dict()` belongs to one of four kinds:

    tensors     parameters that are trained; together the vector, in float32 whatever their own dtype, so that small
                updates are not lost to a narrow master copy. Codecs, feedbacks and the server's optimizer act on these
    buffers     floating, and no parameter that is trained: running statistics, masks. Float32 too; they travel without
                loss and move by the plain aggregate
    counters    integers and flags, which travel as they are and move by their order
    fixed       what never moves, and so travels with a whole version only: frozen parameters, what the task keeps, and
                what is each peer's own (`exchange.contribution` has no part of it; its store keeps it)

How each one that is not trained moves is its `move`, see `muster.Task.buffers`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from muster.files.digests import digest_bytes

CHUNK_COORDINATES = 1 << 18  # 1 MiB of float32
PARAMS, BUFFERS, COUNTERS = "params", "buffers", "counters"  # the groups of an update

LAYOUT_KEY = "muster.layout"  # of the layout among a version's metadata

MEAN, MAX, MIN, ANY, KEEP = "mean", "max", "min", "any", "keep"
LOCAL = "local"  # each peer's own from round to round; in a version's file as version 0 has it
TRIMMED_MAX, TRIMMED_MIN, TRIMMED_ANY = "trimmed-max", "trimmed-min", "trimmed-any"  # of what f liars leave
TRIMMED = (TRIMMED_MAX, TRIMMED_MIN, TRIMMED_ANY)
BUFFER_MOVES = (MEAN, MAX, MIN, TRIMMED_MAX, TRIMMED_MIN)
INTEGER_MOVES = (MAX, MIN, TRIMMED_MAX, TRIMMED_MIN)
FLAG_MOVES = (ANY, MIN, TRIMMED_ANY, TRIMMED_MIN)
MOVES = (MEAN, MAX, MIN, ANY, *TRIMMED, KEEP, LOCAL)


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, shape, dtype and move of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # the model's own, as safetensors spells it: "F32", "BF16", "I64", "BOOL"...
    move: str = ""  # one of `MOVES` if it is not trained and moves, or its task says that it is kept

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Vector:
    """Tensors one after the other, cut into chunks."""

    tensors: tuple[TensorSpec, ...]

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

    def tensor_at(self, coordinate: int) -> str:
        """The name of the tensor that has this coordinate."""
        for offset, tensor in zip(reversed(self.offsets), reversed(self.tensors), strict=True):
            if offset <= coordinate < offset + tensor.size:
                return tensor.name
        return "?"


@dataclass(frozen=True)
class Column:
    """A chunk of parameters or of buffers as one of the columns [start, stop) that a rule mixes."""

    group: str
    index: int  # within the group
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class ParameterLayout(Vector):
    """As a vector it is that of the trained parameters.

    `aliases` are (name, name of the tensor that it shares its memory with): tied weights travel once.
    """

    fixed: tuple[TensorSpec, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    buffers: tuple[TensorSpec, ...] = ()
    counters: tuple[TensorSpec, ...] = ()

    @cached_property
    def groups(self) -> Mapping[str, Vector]:
        """What an update has of them: the parameters always, buffers and counters if there are any."""
        rest = {BUFFERS: self.buffers, COUNTERS: self.counters}
        vectors = {name: Vector(tensors=specs) for name, specs in rest.items()}
        return {PARAMS: Vector(tensors=self.tensors)} | {name: v for name, v in vectors.items() if v.size}

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Parameters and behind them buffers, which a rule mixes alike."""
        found: list[Column] = []
        at = 0
        for group, vector in self.groups.items():
            if group != COUNTERS:
                for index in range(vector.chunk_count):
                    start, stop = vector.chunk_bounds(index)
                    found.append(Column(group, index, at + start, at + stop))
                at += vector.size
        return tuple(found)

    @cached_property
    def columns_size(self) -> int:
        return self.size + sum(spec.size for spec in self.buffers)

    @cached_property
    def local(self) -> tuple[TensorSpec, ...]:
        """The fixed tensors whose values differ from peer to peer."""
        return tuple(spec for spec in self.fixed if spec.move == LOCAL)

    @cached_property
    def all_tensors(self) -> tuple[TensorSpec, ...]:
        """Of all kinds, in the order in which a version's file has them."""
        return self.tensors + self.buffers + self.counters + self.fixed

    def to_json(self) -> str:
        """Canonical, so that equal layouts have equal digests."""

        def rows(specs: tuple[TensorSpec, ...]) -> list[list[object]]:
            return [
                [spec.name, list(spec.shape), spec.dtype, *((spec.move,) if spec.move else ())]
                for spec in specs
            ]

        raw: dict[str, object] = {
            "tensors": rows(self.tensors),
            "fixed": rows(self.fixed),
            "aliases": [list(alias) for alias in self.aliases],
        }
        # Layouts from before there were such kinds have neither, and keep their digests.
        for name, specs in ((BUFFERS, self.buffers), (COUNTERS, self.counters)):
            if specs:
                raw[name] = rows(specs)
        return json.dumps(raw, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ParameterLayout:
        raw = json.loads(text)

        def specs(rows: list[list[object]]) -> tuple[TensorSpec, ...]:
            return tuple(_spec(*row) for row in rows)  # type: ignore[arg-type]  # as `to_json` wrote them

        return cls(
            tensors=specs(raw["tensors"]),
            fixed=specs(raw["fixed"]),
            aliases=tuple((name, source) for name, source in raw["aliases"]),
            buffers=specs(raw.get(BUFFERS, [])),
            counters=specs(raw.get(COUNTERS, [])),
        )

    @cached_property
    def digest(self) -> str:
        return digest_bytes(self.to_json().encode())


def _spec(name: str, shape: list[int], dtype: str, move: str = "") -> TensorSpec:
    return TensorSpec(name=name, shape=tuple(shape), dtype=dtype, move=move)
