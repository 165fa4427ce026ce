"""What many simulated peers cost: `python -m benchmarks.local_peers --peers 50` (see README.md).

Prints the processes and the resident memory of the whole tree at its largest, and the seconds from the first start of
the coordinator to the end of a run of two rounds on the digits.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
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


async def measure(peers: int, workers: int | None) -> dict[str, Any]:
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
    return {
        "state": run.state,
        "peers": peers,
        "processes": most.processes,
        "gib": most.bytes / 2**30,
        "seconds": took,
        "model": run.model_digest,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=50)
    parser.add_argument(
        "--workers", type=int, default=None, help="processes that train; default: start_local's own"
    )
    parser.add_argument("--quick", action="store_true", help="a dozen peers")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = asyncio.run(measure(12 if given.quick else given.peers, given.workers))
    if given.json:
        print(json.dumps(found))
    else:
        print(
            f"{found['state']}: {found['peers']} peers, {found['processes']} processes, {found['gib']:.2f} GiB, "
            f"{found['seconds']:.0f} s"
        )
