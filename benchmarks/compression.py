"""What a codec costs and what it saves, beside the same codec written naively in torch.

A vector is encoded as an update is, in chunks of 2^18 coordinates: by one thread, and by as many as there are
cores, each with chunks of its own. GB/s are of float32 input. A codec pays on a link slower than

    (1 - 1 / r) / (1 / E + 1 / D)        r times fewer bytes, E and D the speeds of one thread

since then encoding, sending and decoding one after the other take less time than sending float32.

With --device cuda the vector lies there, and bodies are made from it and for it by one thread; their way to the host
and back counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import compressors
from benchmarks.common import parser, report, say
from benchmarks.compression_naive import NAIVE, WHOLE

CHUNK = 1 << 18
SIZES = (1_000_000, 11_700_000, 100_000_000)
QUICK = (1_000_000,)
COMPOSED = (
    *("topk:0.01+rice", "topk:0.01+int8+rice", "topk:0.01+int8+varint+zstd", "topk:0.1+int4+rice"),
    *("topk:0.01+sign+rice", "topk:0.001+int8+rice", "fedzip:0.05", "randk:0.01", "int8+zstd", "int4+zstd"),
    *("terngrad+zstd", "powersgd:4", "ferret:1024", "one-byte:16"),
)
SPELLINGS = (*NAIVE, *COMPOSED)
SIDE = 512  # a chunk is a square matrix, for codecs that look for one
SECONDS_EACH = 0.5
REPEATS = (3, 40)
NAIVE_REPEATS = (2, 10)
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Speeds:
    """GB of float32 a second."""

    encode: float
    decode: float


def lognormal_tailed(size: int) -> Tensor:
    """Normal values times e to normal values: the tails of gradients, more or less."""
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(size)
    for chunk in x.split_with_sizes(_lengths(size)):
        width = torch.randn(len(chunk), generator=generator).exp_()
        chunk.copy_(torch.randn(len(chunk), generator=generator).mul_(width))
    return x


def _lengths(size: int) -> list[int]:
    return [min(CHUNK, size - start) for start in range(0, size, CHUNK)]


def best(
    run: Callable[[], object], repeats: tuple[int, int] = REPEATS, settle: Callable[[], None] = lambda: None
) -> float:
    """Seconds of the quickest of several runs: these machines are shared, and noise only adds.

    `settle` waits for what a run has begun.
    """
    run()
    settle()
    least, began, count = float("inf"), time.perf_counter(), 0
    while count < repeats[0] or (count < repeats[1] and time.perf_counter() - began < SECONDS_EACH):
        start = time.perf_counter()
        run()
        settle()
        least = min(least, time.perf_counter() - start)
        count += 1
    return least


def speeds(
    codecs: Sequence[compressors.Codec],
    chunks: Sequence[Tensor],
    outs: Sequence[Tensor],
    bodies: Sequence[bytes],
    *,
    threads: int,
    settle: Callable[[], None],
) -> Speeds:
    gigabytes = sum(map(len, chunks)) * FLOAT_BYTES / 1e9
    numbers = [range(first, len(chunks), threads) for first in range(threads)]

    def encode(share: range) -> None:
        for number in share:
            codecs[number].encode(chunks[number], number)

    def decode(share: range) -> None:
        for number in share:
            codecs[number].decode(bodies[number], outs[number])

    if threads == 1:
        return Speeds(
            gigabytes / best(lambda: encode(numbers[0]), settle=settle),
            gigabytes / best(lambda: decode(numbers[0]), settle=settle),
        )
    with ThreadPoolExecutor(threads) as pool:
        return Speeds(
            gigabytes / best(lambda: list(pool.map(encode, numbers))),
            gigabytes / best(lambda: list(pool.map(decode, numbers))),
        )


def naive_speeds(spelling: str, x: Tensor) -> Speeds | None:
    if spelling not in NAIVE:
        return None
    encode, decode = NAIVE[spelling]
    x = x[: len(x) // WHOLE * WHOLE]
    gigabytes = len(x) * FLOAT_BYTES / 1e9
    parts = encode(x)
    return Speeds(
        gigabytes / best(lambda: encode(x), NAIVE_REPEATS),
        gigabytes / best(lambda: decode(parts), NAIVE_REPEATS),
    )


def place(number: int, size: int) -> compressors.ChunkContext:
    return compressors.ChunkContext(
        2 * number, 2 * number + 1, ((0, SIDE, SIDE),) if size == SIDE * SIDE else ()
    )


def measure(spelling: str, x: Tensor, out: Tensor) -> dict[str, Any]:
    codec, size = compressors.build(spelling), len(x)
    chunks = [x[start : start + CHUNK] for start in range(0, size, CHUNK)]
    outs = [out[start : start + CHUNK] for start in range(0, size, CHUNK)]
    codecs = [codec.at(place(number, len(chunk))) for number, chunk in enumerate(chunks)]
    bodies = [bound.encode(chunks[number], number) for number, bound in enumerate(codecs)]
    settle = (lambda: None) if x.is_cpu else torch.cuda.synchronize
    one = speeds(codecs, chunks, outs, bodies, threads=1, settle=settle)
    # A device is busy with one chunk after the other, however many threads bring them.
    every = (
        speeds(codecs, chunks, outs, bodies, threads=os.cpu_count() or 1, settle=settle) if x.is_cpu else None
    )
    lost = sum(float((chunk - out).double().square().sum()) for chunk, out in zip(chunks, outs, strict=True))
    length = sum(float(chunk.double().square().sum()) for chunk in chunks)
    bits = 8 * sum(map(len, bodies)) / size
    naive = naive_speeds(spelling, x) if x.is_cpu else None
    return {
        "codec": spelling,
        "coordinates": size,
        "device": x.device.type,
        "bits": bits,
        "error": (lost / length) ** 0.5,
        "encode_gb_s": one.encode,
        "decode_gb_s": one.decode,
        "all_encode_gb_s": every.encode if every else None,
        "all_decode_gb_s": every.decode if every else None,
        "pays_below_gbit_s": 8 * (1 - bits / 32) / (1 / one.encode + 1 / one.decode),
        "naive_encode_gb_s": naive.encode if naive else None,
        "naive_decode_gb_s": naive.decode if naive else None,
    }


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--codecs", help="spellings, separated by commas")
    arguments.add_argument("--coordinates", type=int, nargs="+", help="lengths of the vector")
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the vector lies")
    chosen = arguments.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        arguments.error("torch finds no CUDA device on this machine, so --device cuda has nothing to measure")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for size in chosen.coordinates or (QUICK if chosen.quick else SIZES):
        x, out = lognormal_tailed(size).to(chosen.device), torch.zeros(size, device=chosen.device)
        for spelling in chosen.codecs.split(",") if chosen.codecs else SPELLINGS:
            say(f"{spelling}, {size} coordinates")
            rows.append(measure(spelling, x, out))
    report(rows, as_json=chosen.json)


if __name__ == "__main__":
    main()
