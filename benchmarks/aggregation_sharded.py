"""One aggregation whose columns lie in several processes: how it scales, and that the result is the same.

Each process holds its own columns of all updates and has one thread. It measures its chunks and sends n x n numbers for
each; the parent adds them up in the order of the columns, decides, and sends the plan back; each process reduces its
own columns. What crosses between processes does not depend on the model's size but for n x n numbers a chunk. The
scaling is the time of one process with all columns over the time of several with their shares.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

import aggregators
from aggregators.core.sources import CHUNK_COLUMNS, MatrixSource
from benchmarks.common import parser, report, say

CASES = (("mean", ()), ("trimmed-mean", ()), ("multi-krum", ()), ("trimmed-mean", ("arc", "nnm")))
N, FAULTS = 20, 4
REPEATS = 5


@dataclass(frozen=True)
class Shard:
    """The chunks [first, last) of the updates, made from the same seeds wherever they are."""

    first: int
    last: int

    def rows(self) -> Tensor:
        chunks = [
            torch.randn(N, CHUNK_COLUMNS, generator=torch.Generator().manual_seed(index))
            for index in range(self.first, self.last)
        ]
        return torch.cat(chunks, dim=1)


def serve(pipe: Connection, shard: Shard, size: int) -> None:
    """A process with its own columns: measures, then reduces, as often as it is told."""
    torch.set_num_threads(1)
    source = MatrixSource(shard.rows())
    out = torch.empty(source.size)
    base = shard.first * CHUNK_COLUMNS
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        what, given = order
        if what == "measure":
            survey = aggregators.Survey(given, N, size)
            pipe.send([survey.measure(base + start, X).numpy() for start, X in source.chunks()])
        elif what == "reduce":
            for start, X in source.chunks():
                given.reduce(X, out[start : start + X.shape[1]])
            pipe.send(None)
        else:
            pipe.send(out.numpy())


class Shards:
    def __init__(self, processes: int, chunks: int) -> None:
        self._size = chunks * CHUNK_COLUMNS
        context = get_context("spawn")
        bounds = [round(chunks * i / processes) for i in range(processes + 1)]
        self._pipes: list[Connection] = []
        for first, last in pairwise(bounds):
            here, there = context.Pipe()
            context.Process(target=serve, args=(there, Shard(first, last), self._size), daemon=True).start()
            self._pipes.append(here)
        for pipe in self._pipes:
            pipe.recv()

    def _ask(self, what: str, given: object = None) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((what, given))
        return [pipe.recv() for pipe in self._pipes]

    def aggregate(self, pipeline: aggregators.Pipeline) -> None:
        survey = aggregators.Survey(pipeline, N, self._size)
        if survey.needed:
            for parts in self._ask("measure", pipeline):
                for part in parts:
                    survey.fold(torch.from_numpy(part))
        self._ask("reduce", survey.plan())

    def result(self) -> Tensor:
        return torch.cat([torch.from_numpy(piece) for piece in self._ask("result")])

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)


def seconds(shards: Shards, pipeline: aggregators.Pipeline) -> float:
    shards.aggregate(pipeline)
    least = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        shards.aggregate(pipeline)
        least = min(least, time.perf_counter() - start)
    return least


def main() -> None:
    arguments = parser("Aggregation of columns that several processes hold.")
    arguments.add_argument("--processes", type=int, nargs="*", default=[1, 2], help="how many hold them")
    chosen = arguments.parse_args()
    chunks = 8 if chosen.quick else 44  # 2.1 or 11.5 million coordinates
    rows: list[dict[str, Any]] = []
    alone: dict[str, tuple[float, Tensor]] = {}
    for processes in chosen.processes:
        shards = Shards(processes, chunks)
        for rule, pre in CASES:
            pipeline = aggregators.build(rule, pre=pre, faults=0 if rule == "mean" else FAULTS)
            name = " + ".join((*pre, rule))
            spent = seconds(shards, pipeline)
            result = shards.result()
            first, reference = alone.setdefault(name, (spent, result))
            rows.append(
                {
                    "rule": name,
                    "processes": processes,
                    "d": chunks * CHUNK_COLUMNS,
                    "milliseconds": spent * 1e3,
                    "speed": first / spent,
                    "same_bytes": torch.equal(result, reference),
                }
            )
            say(f"{rows[-1]}")
        shards.close()
    report(rows, as_json=chosen.json)


if __name__ == "__main__":
    main()
