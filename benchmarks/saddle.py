"""MASHA on a bilinear saddle: dense vectors that each peer sends up until the error is 1e-10 of its beginning.

    python -m benchmarks.saddle --json

8 peers, 60 coordinates, 6 of them in a message, in double precision, from the parts that a run has: the codecs, the
feedback `masha` and the server's optimizer `masha`. The figures expected are a prototype's on a saddle of its own;
singular values between 0.36 and 1, and extragradient's steps, are such that extragradient needs about as many vectors
here as there. Beside it is a saddle with 0.1 |x|^2 / 2 - 0.1 |y|^2 / 2 added. A naive way compresses each operator of
extragradient. `--quick` leaves out MASHA2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

import compressors
from benchmarks.common import parser, report, say
from compressors import ChunkContext, Codec, CodecError, Feedback
from compressors.feedback.feedback import LOSSLESS
from compressors.feedback.masha import Masha
from exchange import optimizers
from muster.spec.model import ServerTable

PEERS, SIZE, KEPT = 8, 60, 6
TAU = 0.9
TOLERANCE = 1e-10
DIVERGED = 1e6


class Saddle:
    """min over x, max over y of mean_m (x^T A_m y + b_m^T (x, -y)) + mu/2 |x|^2 - mu/2 |y|^2.

    F_m is its gradient, with the sign turned for y.
    """

    def __init__(self, mu: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        half = SIZE // 2

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        left, right = (torch.linalg.qr(normal(half, half))[0] for _ in range(2))
        own = 0.1 * normal(PEERS, half, half) / half**0.5
        matrices = left * torch.linspace(0.36, 1, half, dtype=torch.float64) @ right.T + own - own.mean(0)
        self._jacobians = mu * torch.eye(SIZE, dtype=torch.float64).repeat(PEERS, 1, 1)
        self._jacobians[:, :half, half:] = matrices
        self._jacobians[:, half:, :half] = -matrices.transpose(1, 2)
        self._offsets = normal(PEERS, SIZE)
        self._best = torch.linalg.solve(self._jacobians.mean(0), self._offsets.mean(0))

    def operators(self, z: Tensor) -> Tensor:
        """[PEERS * SIZE], each peer's at z [SIZE]."""
        return (self._jacobians @ z - self._offsets).flatten()

    def error(self, z: Tensor) -> float:
        return float((z - self._best).norm() / self._best.norm())


class Doubles(Codec):
    """A codec on values in double precision, and on each of several equal chunks by itself.

    What is rounded to a float32 on its way is small where what is sent is: as much is lost as by the codec, a part of
    what was put in. Only identity's bodies are double.
    """

    def __init__(self, codecs: list[Codec]) -> None:
        self._codecs = codecs
        self.spelling = codecs[0].spelling
        self.unbiased, self.contractive = codecs[0].unbiased, codecs[0].contractive

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        raise CodecError(f"Doubles has no spelling of its own, so none with {argument!r}")

    def bytes_max(self, size: int) -> int:
        return 8 * size

    def encode(self, x: Tensor, seed: int) -> bytes:
        return self.encode_host(x, seed)

    def decode(self, body: bytes | memoryview, out: Tensor) -> None:
        self.decode_host(body, out)

    def encode_host(self, x: Tensor, seed: int) -> bytes:
        if self.spelling == LOSSLESS:
            return x.double().numpy().tobytes()
        chunks = zip(self._codecs, x.float().chunk(len(self._codecs)), strict=True)
        return b"".join(codec.encode(chunk, seed) for codec, chunk in chunks)

    def decode_host(self, body: bytes | memoryview, out: Tensor) -> None:
        if self.spelling == LOSSLESS:
            out.copy_(torch.from_numpy(np.frombuffer(body).copy()))
            return
        decoded = torch.empty(out.numel())
        length = len(body) // len(self._codecs)
        for i, (codec, chunk) in enumerate(zip(self._codecs, decoded.chunk(len(self._codecs)), strict=True)):
            codec.decode(body[i * length : (i + 1) * length], chunk)
        out.copy_(decoded)


def in_doubles(codec: Codec, round: int) -> Doubles:
    """For all peers' vectors, one behind the other. Random-k cuts 480 coordinates into 48 of 10, 6 to each peer, so
    that one chunk does for all."""
    count = 1 if codec.spelling.startswith("randk") else PEERS
    return Doubles([codec.at(ChunkContext(common=round, own=PEERS * round + i)) for i in range(count)])


def vectors(names: tuple[str, ...], size: int) -> dict[str, Tensor]:
    return {name: torch.zeros(size, dtype=torch.float64) for name in names}


def masha(codec: Codec, gamma: float, saddle: Saddle) -> Iterator[tuple[float, float]]:
    """After each round: the vectors sent so far, and the error of the version that it made."""
    feedback = Masha(TAU)
    sender = vectors(feedback.state_names, PEERS * SIZE)
    receiver = vectors(feedback.receiver_state_names, PEERS * SIZE)
    optimizer = optimizers.build(
        ServerTable.model_validate({"optimizer": "masha", "lr": gamma, "momentum": TAU})
    )
    server, model, sent = vectors(optimizer.state_names, SIZE), torch.zeros(SIZE).double(), 0.0
    identity, decoded = Doubles([compressors.build(LOSSLESS)]), torch.zeros(PEERS * SIZE).double()
    version = 0
    while True:
        dense = feedback.codec_in(codec.spelling, version + 1, 0) == LOSSLESS
        bound = identity if dense else in_doubles(codec, version)
        bound.decode(feedback.encode(bound, -saddle.operators(model), sender, version), decoded)
        if dense:
            receiver["anchor"].copy_(decoded)
        else:
            feedback.receive(decoded, receiver)
        optimizer = replace(optimizer, version=version)
        made = torch.empty_like(model)
        optimizer.step(model, decoded.view(PEERS, SIZE).mean(0), server, made)
        model, version = made, version + 1
        sent += 1 if dense else KEPT / SIZE
        yield sent, saddle.error(model)


def extragradient(
    codec: Codec, feedback: Feedback, step: float, saddle: Saddle
) -> Iterator[tuple[float, float]]:
    """With each operator compressed; the same of both."""
    states = [vectors(feedback.state_names, PEERS * SIZE) for _ in range(2)]
    z, decoded, calls = torch.zeros(SIZE).double(), torch.zeros(PEERS * SIZE).double(), 0
    size = 1 if codec.spelling == LOSSLESS else KEPT / SIZE
    while True:
        half = z
        for state in states:
            bound = in_doubles(codec, calls)
            bound.decode(feedback.encode(bound, step * saddle.operators(half), state, calls), decoded)
            half = z - decoded.view(PEERS, SIZE).mean(0)
            calls += 1
        z = half
        yield calls * size, saddle.error(z)


def reached(errors: Iterator[tuple[float, float]], rounds_max: int) -> dict[str, Any]:
    """The vectors sent until the tolerance, if ever; the least and the last error."""
    least = last = 1.0
    for sent, last in islice(errors, rounds_max):
        least = min(least, last)
        if last < TOLERANCE:
            return {"vectors": round(sent), "least": least, "last": last}
        if not last < DIVERGED:
            break
    return {"vectors": None, "least": least, "last": last}


EXPECTED: tuple[tuple[float, str, str, str, float, str], ...] = (
    (0.0, "extragradient", "identity", "none", 0.3, "7440"),
    (0.0, "MASHA1", "randk:0.1", f"masha:{TAU}", 0.3, "430"),
    (0.0, "MASHA2", "topk:0.1", f"masha:{TAU}", 0.1, "3450"),
    (0.0, "naive", "randk:0.1", "none", 0.3, "diverges"),
    (0.0, "naive", "topk:0.1", "ef14", 0.3, "diverges"),
    (0.1, "extragradient", "identity", "none", 0.5, "660"),
    (0.1, "MASHA1", "randk:0.1", f"masha:{TAU}", 0.3, "99"),
    (0.1, "naive", "randk:0.1", "none", 0.3, "stalls at .17 or above"),
    (0.1, "naive", "topk:0.1", "ef14", 0.3, "stalls at .17 or above"),
)


def solve(mu: float, codec: str, feedback: str, step: float, rounds_max: int = 40_000) -> dict[str, Any]:
    """Way and codec as a run spells them: `feedback` masha, or none or another for extragradient."""
    saddle, built = Saddle(mu), compressors.build(codec)
    if feedback.startswith("masha"):
        return reached(masha(built, step, saddle), rounds_max)
    return reached(extragradient(built, compressors.build_feedback(feedback), step, saddle), rounds_max)


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for mu, way, codec, feedback, step, expected in EXPECTED:
        if arguments.quick and way == "MASHA2":
            continue
        say(f"{way}, {codec}, mu {mu:g}")
        found = solve(mu, codec, feedback, step, 2000 if way == "naive" else 40_000)
        rows.append({"mu": mu, "way": way, "codec": codec, "step": step, "expected": expected, **found})
    report(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
