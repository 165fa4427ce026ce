"""What a codec is.

Notation: C(x) is what `decode` makes of `encode(x)`, x a chunk of `size` coordinates.
  unbiased     E C(x) = x
  contractive  E|C(x) - x|^2 <= (1 - delta) |x|^2 with 0 < delta <= 1
  omega        of an unbiased codec: E|C(x) - x|^2 <= omega |x|^2
  linear       the bodies of several chunks may be added up instead of the chunks
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressors.core.context import ChunkContext
from methods import MethodError, Requirement, SpecValues


class CodecError(MethodError):
    """No such codec or feedback, or an argument that it does not take; the message is for the spec's author."""


class DecodeError(ValueError):
    """The body is not one that this codec writes for a chunk of this size; one clause that says why."""


class Codec(ABC):
    """A pure function from chunks to bytes and back: `encode` and `decode`.

    A codec of one's own says how on the CPU, in `encode_host` and `decode_host`. It keeps nothing between calls and
    may be shared by threads. All randomness comes from `seed`. Hosts are little-endian, as all that torch is built
    for are.
    """

    unbiased: bool
    contractive: bool
    linear: bool
    spelling: str  # canonical: `build(codec.spelling)` is the same codec
    shares_factor: bool = (
        False  # its bodies are read with a factor that all senders of a round have in common
    )
    example: ClassVar[str] = ""  # a spelling to begin with, of a codec that needs an argument
    usual: ClassVar[bool] = (
        False  # told as another choice where a codec does not go with the rest of a run spec
    )
    source: ClassVar[str] = ""  # the paper

    @classmethod
    @abstractmethod
    def parse(cls, argument: str | None) -> Self:
        """The codec from what stands after the colon of its spelling. Raises `CodecError`."""

    def at(self, place: ChunkContext) -> Codec:
        """The codec for the chunk that lies there: itself, unless it makes use of more than the chunk's size.

        Constants, sizes and spelling are those of the codec that it was asked of.
        """
        return self

    def sharing(self, share: Callable[[float], float]) -> Codec | None:
        """The same, bound to no place, with share(its own) as the share of coordinates that it sends, above 0 and up
        to 1; None where that is not in its spelling."""
        return None

    def requires(self, spec: SpecValues) -> Iterable[Requirement]:
        """What it demands of the rest of a run spec and does not have there, see `methods.requirements`."""
        return ()

    def delta(self, size: int) -> float:
        """The contraction's constant for chunks of this size whose values are normal float32 numbers.

        Raises `CodecError` where the codec is not contractive.
        """
        raise CodecError(f"{self.spelling} is not contractive, so has no delta")

    def usual_delta(self, size: int) -> float:
        """The contraction's constant that a feedback may reckon with: `delta`, unless only inputs that no feedback
        leads to come near that. Raises as `delta` does.
        """
        return self.delta(size)

    def omega(self, size: int) -> float:
        """The variance's constant for chunks of this size whose values are normal float32 numbers.

        Raises `CodecError` where the codec is not unbiased.
        """
        raise CodecError(f"{self.spelling} is not unbiased, so has no omega")

    @abstractmethod
    def bytes_max(self, size: int) -> int:
        """No body of a chunk of this size is longer."""

    def encode(self, x: Tensor, seed: int) -> bytes:
        """Encodes a chunk: x [size] float32, contiguous, on any device; never changed.

        A value that is not finite is never dropped: the body carries it, or does not decode.
        """
        check_chunk(x)
        return self.encode_host(x, seed) if x.is_cpu else self.encode_device(x, seed)

    def decode(self, body: bytes | memoryview, out: Tensor) -> None:
        """Fills out [size] float32, contiguous, on any device, from a body that nobody vouches for.

        Raises `DecodeError`, and then leaves `out` as it was. Only identity and bf16 let values through that
        are not finite.
        """
        check_chunk(out)
        if out.is_cpu:
            self.decode_host(body, out)
        else:
            self.decode_device(body, out)

    @abstractmethod
    def encode_host(self, x: Tensor, seed: int) -> bytes:
        """`encode` for a chunk on the CPU."""

    @abstractmethod
    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        """`decode` for a chunk on the CPU."""

    def encode_device(self, x: Tensor, seed: int) -> bytes:
        """`encode` for a chunk elsewhere: a codec that has nothing better copies it to the host, encodes it there."""
        return self.encode_host(x.detach().cpu(), seed)

    def decode_device(self, body: bytes | memoryview, out: Tensor) -> None:
        """`decode` for a chunk elsewhere: a codec that has nothing better decodes on the host and copies that."""
        decoded = torch.empty(out.numel(), dtype=torch.float32)
        self.decode_host(body, decoded)
        out.detach().copy_(decoded)


class PlainCodec(Codec):
    """A codec without an argument; its spelling is its name."""

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        codec = cls()
        if argument is not None:
            raise CodecError(f"{codec.spelling} takes no argument, but {argument!r} was given")
        return codec


def check_chunk(chunk: Tensor) -> None:
    """Raises `ValueError` if it is not flat, contiguous float32."""
    if chunk.dtype != torch.float32 or chunk.dim() != 1 or not chunk.is_contiguous():
        raise ValueError(f"a chunk is flat, contiguous float32, not {chunk.dtype} {tuple(chunk.shape)}")


def chunk_array(chunk: Tensor) -> NDArray[np.float32]:
    """The memory of a chunk on the CPU as numpy sees it."""
    return chunk.detach().numpy()


def check_length(body: bytes | memoryview, wanted: int) -> None:
    """Raises `DecodeError` unless the body has exactly this many bytes."""
    if len(body) != wanted:
        raise DecodeError(f"the body has {len(body)} bytes where {wanted} are due")
