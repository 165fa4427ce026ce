"""What many simulated peers cost: `python -m benchmarks.local_peers --peers 50` (see README.md).

Prints the processes and the resident memory of the whole tree at its largest, and the seconds from the first start of
the coordinator to the end of a run of two rounds on the digits.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from muster.spec.model import RunSpec
from simulator.local import start_local

LOOK_SECONDS = 1.0


class Most:
    def __init__(self) -> None:
        self.processes, self.bytes = 0, 0

    async def look(self) -> None:
        while True:
            tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
            held = 0
            for process in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    held += process.memory_info().rss
            self.processes, self.bytes = max(self.processes, len(tree)), max(self.bytes, held)
            await asyncio.sleep(LOOK_SECONDS)


async def measure(peers: int, workers: int | None) -> None:
    spec = {
        "task": "examples.digits:Digits",
        "rounds": 2,
        "round": {"peers_min": peers, "quorum": 1.0, "deadline_seconds": 1800.0},
        "aggregation": {"rule": "mean"},
        "evaluate": {"every": 0},
    }
    settings: dict[str, Any] = {} if workers is None else {"workers": workers}
    most = Most()
    looking = asyncio.create_task(most.look())
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        async with start_local(
            Path(folder), peers=peers, allow=["examples.digits:*"], task_folders=[Path()], **settings
        ) as federation:
            run = await federation.run_to_end(RunSpec.model_validate(spec))
            took = time.monotonic() - began
    looking.cancel()
    print(
        f"{run.state}: {peers} peers, {most.processes} processes, {most.bytes / 2**30:.2f} GiB, {took:.0f} s, "
        f"model {run.model_digest[:12]}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=50)
    parser.add_argument("--workers", type=int, default=None, help="processes that train; default: start_local's own")
    found = parser.parse_args()
    asyncio.run(measure(found.peers, found.workers))
