"""Many peers in one process, on a virtual loop: `python -m benchmarks.simulated --peers 100 1000` (see README.md).

Each size runs in a process of its own and prints the seconds and processor seconds from the start of the federation
to the end of its run, the processor's share of each training, and the process's largest resident memory. Everything is
as in production but for sockets, worker processes and the coordinator's disk: peers enrol, keep a store each, train,
upload, are admitted.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from benchmarks import common
from muster import Site, Task
from muster.spec.model import RunSpec
from simulator.local import start_local
from simulator.virtual_loop import run

TASK = "benchmarks.simulated:Small"
EXAMPLES = 16  # of each peer: one step a round


class Small(Task):
    """4,998 parameters and a few examples."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 6))

    def train_data(self, site: Site) -> Dataset[Any]:
        generator = torch.Generator().manual_seed(int(site.data["index"]))
        targets = torch.arange(EXAMPLES) % 6
        return TensorDataset(torch.randn(EXAMPLES, 32, generator=generator) + targets[:, None], targets)


async def simulate(folder: Path, peers: int, rounds: int) -> None:
    spec = {
        "task": TASK,
        "rounds": rounds,
        "train": {"lr": 0.1, "batch_size": EXAMPLES},
        "round": {"peers_min": peers, "quorum": 1.0},
        "aggregation": {"rule": "mean", "faults": 0},
        "evaluate": {"every": 0},
    }
    async with start_local(folder, peers=peers, allow=[TASK], task_folders=[Path()]) as federation:
        found = await federation.run_to_end(RunSpec.model_validate(spec))
        if found.state != "FINISHED":
            raise SystemExit(found.reason)


def measure(peers: int, rounds: int) -> dict[str, Any]:
    memory = Path("/dev/shm")  # the peers' stores sync what they write, which is not what is measured
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        began, processor = time.monotonic(), time.process_time()
        run(simulate(Path(folder), peers, rounds))
        seconds, processor = time.monotonic() - began, time.process_time() - processor
    return {
        "peers": peers,
        "rounds": rounds,
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "milliseconds_a_training": round(1000 * processor / (peers * rounds), 2),
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def main() -> None:
    arguments = common.parser(__doc__ or "")
    arguments.add_argument("--peers", type=int, nargs="+", default=[100, 1000])
    arguments.add_argument("--rounds", type=int, default=20)
    arguments.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this very process
    options = arguments.parse_args()
    rounds = min(options.rounds, 3) if options.quick else options.rounds
    if options.here:
        print(json.dumps(measure(options.peers[0], rounds)))
        return
    rows: list[dict[str, Any]] = []
    for peers in options.peers:
        common.say(f"{peers} peers, {rounds} rounds")
        command = [sys.executable, "-m", "benchmarks.simulated", "--here"]
        command += ["--peers", str(peers), "--rounds", str(rounds)]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(told))
    common.report(rows, as_json=options.json)


if __name__ == "__main__":
    main()
