"""Rounds without training, over real processes: seconds, memory, bytes and processor time, against the floor.

    python -m benchmarks.rounds --json

The floor, measured in the same run, moves the same bytes by bare grpc.aio streams of 1 MiB between as many processes
(`benchmarks/floor.py`). `--rules arc+nnm+trimmed-mean krum` takes rules with their pre-rules before them. Memory is
anonymous memory (RssAnon and swap; mapped files do not count) above the process's size when idle. A peer is its daemon
and its worker together; the coordinator's own task worker, which makes the initial model, is counted by itself.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import floor
from benchmarks.common import parser, report, say
from benchmarks.processes import MemoryWatch, children, processor_seconds
from muster.spec.model import RunSpec
from protos.v1 import admin_pb2 as pb
from simulator.processes import ProcessFederation

ROOT = Path(__file__).parent.parent
SIZES_MB = (1, 25, 100, 400)
PEERS = (2, 4, 8)
WARM_UP_ROUNDS = 2


def spec(size_mb: float, peers: int, rounds: int, rule: str = "mean") -> RunSpec:
    *pre, name = rule.split("+")
    faults = 0 if name == "mean" else (peers - 1) // 4
    return RunSpec.model_validate(
        {
            "task": "benchmarks.blank:Blank",
            "rounds": rounds,
            "task_options": {"size": int(size_mb * 250_000)},
            "aggregation": {
                "rule": name,
                "pre": pre,
                "faults": faults,
                "weights": "uniform",
            },
            "round": {"peers_min": peers, "deadline_seconds": 600, "quorum": 1.0},
            "evaluate": {"every": 0, "on": []},
        }
    )


async def measure(size_mb: float, peers: int, rounds: int, rule: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=ROOT.parent) as folder:
        settings = {"updates_keep_rounds": 1, "models_keep": 1}
        async with ProcessFederation(Path(folder), task_folders=[ROOT], coordinator=settings) as federation:
            await federation.start_coordinator()
            for index in range(peers):
                federation.start_peer(f"peer-{index}", data={})
            # A first run starts the workers, so that what follows is measured against idle processes.
            await federation.run_to_end(spec(0.1, peers, 2, rule))
            roots = {name: process.pid for name, process in federation.processes.items()}
            service = roots["coordinator"]
            (task_worker,) = children(service)[1:]
            alone = {"coordinator": service, "task_worker": task_worker}
            trees = {name: root for name, root in roots.items() if root != service}
            with MemoryWatch(trees, alone) as watch:
                idle = watch.sample()
                busy = processor_seconds(pid for root in roots.values() for pid in children(root))
                run = await federation.run_to_end(spec(size_mb, peers, rounds + WARM_UP_ROUNDS, rule))
                busy = processor_seconds(pid for root in roots.values() for pid in children(root)) - busy
            if run.state != "FINISHED":
                raise RuntimeError(f"the run ended {run.state}: {run.reason}")
            found: list[pb.Round] = await federation.rounds(run.run_id)
            ends = [each.ended_at for each in found]
            seconds = [after - before for before, after in pairwise(ends)][WARM_UP_ROUNDS - 1 :]
            above = {name: watch.peaks[name] - idle[name] for name in idle}
            return {
                "model_mb": size_mb,
                "peers": peers,
                "rule": rule,
                "round_seconds": statistics.median(seconds),
                "rounds_per_second": 1 / statistics.median(seconds),
                "coordinator_above_idle_mb": above.pop("coordinator") / 1e6,
                "task_worker_above_idle_mb": above.pop("task_worker") / 1e6,
                "peer_above_idle_mb": max(above.values()) / 1e6,
                "wire_mb_per_round": (run.bytes_up + run.bytes_down) / 1e6 / len(found),
                "cpu_seconds_per_round": busy / len(found),
            }


async def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--sizes", type=float, nargs="+", help="model sizes in MB of float32")
    arguments.add_argument("--peers", type=int, nargs="+")
    arguments.add_argument("--rules", nargs="+", default=["mean"])
    options = arguments.parse_args()
    sizes = options.sizes or ((1, 25) if options.quick else SIZES_MB)
    counts = options.peers or ((4,) if options.quick else PEERS)
    rows: list[dict[str, Any]] = []
    for size_mb in sizes:
        for peers in counts:
            rounds = 20 if size_mb <= 1 else 6 if size_mb <= 100 else 3
            bare, bare_cpu = await asyncio.to_thread(floor.measure, peers, int(size_mb * 1e6), min(rounds, 5))
            for rule in options.rules:
                row = await measure(size_mb, peers, rounds, rule)
                row |= {
                    "floor_seconds": bare,
                    "floor_cpu_seconds": bare_cpu,
                    "ratio_to_floor": row["round_seconds"] / bare,
                }
                rows.append(row)
                say(
                    f"{size_mb} MB, {peers} peers, {rule}: {row['ratio_to_floor']:.2f} times the floor of {bare:.3f} s"
                )
    report(rows, as_json=options.json)


if __name__ == "__main__":
    asyncio.run(main())
