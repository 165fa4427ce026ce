"""A codec for each layer: "topk:0.01+int8|topk:0.003+int8|topk:0.05+int8", chosen by L-GreCo for every update.

The first codec sets the budget: the update's error is at most what it would be with this one for all layers, and of all
choices within that budget the smallest is sent, see `compressors.compose.lgreco`. The sender plans on the very update
that it sends; whoever decodes reads the choice from the body and takes any of these codecs for any layer, so no plan
has to be agreed on, none can be stale, and a hostile one can do no more than a hostile update can. Without a plan every
layer has the first codec.

Layers of less than 1024 coordinates are joined to the next, since each has a cost of its own: a few bytes.
Body: for each layer one byte with its codec's number, the length of its part as a varint, and the part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from compressors.compose.lgreco import Table, choose
from compressors.core.codec import Codec, CodecError, DecodeError
from compressors.core.context import NO_CONTEXT, ChunkContext
from compressors.core.scratch import scratch
from compressors.core.varint import VARINT_BYTES_MAX, read_varint, varint
from methods import Requirement, SpecValues

LAYER_MIN = 1024
CODECS_MAX = 8
SPELLING_MAX = 256


@dataclass(frozen=True)
class Stretch:
    """Coordinates [start, stop) of a chunk, and what is known of them."""

    layer: int
    start: int
    stop: int
    place: ChunkContext


class Planned(Codec):
    unbiased = False  # each codec may be, and yet the choice among them looks at how their draws came out
    linear = False

    def __init__(
        self, codecs: tuple[Codec, ...], plan: tuple[int, ...] = (), place: ChunkContext = NO_CONTEXT
    ) -> None:
        self.codecs = codecs
        self.plan = plan  # for each layer the number of its codec; beyond its end, 0
        self.contractive = all(codec.contractive for codec in codecs)
        self.shares_factor = any(codec.shares_factor for codec in codecs)
        self.spelling = "|".join(codec.spelling for codec in codecs)
        self._place = place

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        raise CodecError(f"a choice of codecs is spelled by these, not {argument!r}")

    def requires(self, spec: SpecValues) -> Iterator[Requirement]:
        for codec in self.codecs:
            yield from codec.requires(spec)

    def at(self, place: ChunkContext) -> Planned:
        return Planned(self.codecs, self.plan, place)

    def planned(self, plan: tuple[int, ...]) -> Planned:
        """The same with this choice for each layer."""
        return Planned(self.codecs, plan, self._place)

    def sharing(self, share: Callable[[float], float]) -> Codec | None:
        """Each with its own; one that has none stays as it is. What has become the same is there once."""
        shared = [codec.sharing(share) for codec in self.codecs]
        if all(each is None for each in shared):
            return None
        changed = [now or codec for now, codec in zip(shared, self.codecs, strict=True)]
        codecs = tuple({codec.spelling: codec for codec in changed}.values())
        return codecs[0] if len(codecs) == 1 else Planned(codecs)

    def delta(self, size: int) -> float:
        """Of the weakest codec, where the chunk is one layer."""
        return min(codec.delta(size) for codec in self.codecs)

    def usual_delta(self, size: int) -> float:
        return min(codec.usual_delta(size) for codec in self.codecs)

    def bytes_max(self, size: int) -> int:
        # However a chunk is cut into layers of LAYER_MIN or more, so many of that size cost no less.
        least = min(size, LAYER_MIN)
        part = 1 + VARINT_BYTES_MAX + max(codec.bytes_max(least) for codec in self.codecs)
        whole = 1 + VARINT_BYTES_MAX + max(codec.bytes_max(size) for codec in self.codecs)
        return max(whole, (2 * size // LAYER_MIN + 1) * part)

    def stretches(self, size: int) -> list[Stretch]:
        """The layers of the bound chunk, small ones joined; without a place the chunk is one layer."""
        layers = self._place.layers or ((size, 0),)
        if layers[-1][0] != size:
            raise ValueError(f"the chunk has {size} coordinates, and its place is for {layers[-1][0]}")
        found: list[Stretch] = []
        start, first = 0, layers[0][1]
        for at, (stop, _) in enumerate(layers):
            if stop - start >= LAYER_MIN or stop == size:
                found.append(self._stretch(first, start, stop, len(found)))
                start, first = stop, layers[min(at + 1, len(layers) - 1)][1]
        return found

    def _stretch(self, layer: int, start: int, stop: int, number: int) -> Stretch:
        place = self._place
        pieces = tuple(
            (at - start, rows, columns) for at, rows, columns in place.pieces if start <= at < stop
        )
        return Stretch(layer, start, stop, ChunkContext(place.common + number, place.own + number, pieces))

    def encode_host(self, x: Tensor, seed: int) -> bytes:
        parts: list[bytes] = []
        for number, stretch in enumerate(self.stretches(x.numel())):
            choice = self.plan[stretch.layer] if stretch.layer < len(self.plan) else 0
            codec = self.codecs[choice].at(stretch.place)
            part = codec.encode(x[stretch.start : stretch.stop], seed + number)
            parts += [bytes([choice]), varint(len(part)), part]
        return b"".join(parts)

    def encode_device(self, x: Tensor, seed: int) -> bytes:
        return self.encode_host(x, seed)  # each layer's codec sees where it lies

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        decoded = scratch("planned.decoded", out.numel(), torch.float32, out.device)
        rest = memoryview(body)
        for stretch in self.stretches(out.numel()):
            if not rest or rest[0] >= len(self.codecs):
                raise DecodeError("a layer has no codec, or one that is not among those of the run")
            codec = self.codecs[rest[0]].at(stretch.place)
            length, rest = read_varint(rest[1:])
            if length > len(rest):
                raise DecodeError("the body ends too early")
            codec.decode(rest[:length], decoded[stretch.start : stretch.stop])
            rest = rest[length:]
        if rest:
            raise DecodeError("there are bytes behind the last layer")
        out.detach().copy_(decoded)

    def decode_device(self, body: bytes | memoryview, out: Tensor) -> None:
        self.decode_host(body, out)


class Planner(Planned):
    """Encodes as every layer's first codec does, and on the way measures what each codec would do to each layer.

    So it goes where the codec goes, behind a feedback: what is measured is what will be sent. One for all the chunks
    of an update; bound ones (`at`) share what they measure.
    """

    def __init__(
        self,
        codec: Planned,
        layers: int,
        tables: tuple[Table, Table] | None = None,
        place: ChunkContext = NO_CONTEXT,
    ) -> None:
        super().__init__(codec.codecs, place=place)
        shape = layers, len(codec.codecs)
        self._errors, self._sizes = tables or (np.zeros(shape), np.zeros(shape))

    def at(self, place: ChunkContext) -> Planner:
        return Planner(self, len(self._errors), (self._errors, self._sizes), place)

    def encode_host(self, x: Tensor, seed: int) -> bytes:
        for number, stretch in enumerate(self.stretches(x.numel())):
            layer = x[stretch.start : stretch.stop]
            decoded = scratch("planner.decoded", layer.numel(), torch.float32, x.device)
            for column, each in enumerate(self.codecs):
                codec = each.at(stretch.place)
                part = codec.encode(layer, seed + number)
                try:
                    codec.decode(part, decoded)
                except DecodeError:  # it is not finite, and will be refused where it is sent
                    self._errors[stretch.layer, column] = np.inf
                    continue
                self._errors[stretch.layer, column] += float(decoded.sub_(layer).double().square_().sum())
                self._sizes[stretch.layer, column] += len(part)
        return super().encode_host(x, seed)

    def choice(self) -> tuple[int, ...]:
        """The plan, from all chunks that were encoded."""
        if not bool(np.isfinite(self._errors).all()):
            return ()
        return choose(self._errors, self._sizes, default=0)


def plan(spellings: Sequence[str], codecs: Sequence[Codec]) -> Planned:
    """A choice of these codecs. Raises `CodecError`."""
    if not 2 <= len(codecs) <= CODECS_MAX:
        raise CodecError(f"{'|'.join(spellings)}: a choice is of 2 to {CODECS_MAX} codecs, not {len(codecs)}")
    found = Planned(tuple(codecs))
    if len(set(found.spelling.split("|"))) < len(codecs):
        raise CodecError(f"{found.spelling}: a choice has the same codec twice")
    if len(found.spelling) > SPELLING_MAX:
        raise CodecError(f"a choice of codecs is spelled in {SPELLING_MAX} characters or fewer")
    return found
