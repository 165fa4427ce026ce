"""What the examples share: a coordinator and peers on this machine, started through the real command."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muster.spec.load import load_spec
from simulator.processes import ProcessFederation

ROOT = Path(__file__).parent.parent


async def launch(spec: Path, *, peers: int, liar: Mapping[str, Any] | None = None) -> int:
    """Runs `spec` to its end on that many peers and shows it; the exit status of the last command that failed.

    `liar`: the attack that the last peer makes, `{"name": "sign-flip", "options": {"scale": 10}}`.
    """
    checked, _ = load_spec(spec)
    with tempfile.TemporaryDirectory(prefix=f"muster-{checked.name}-") as folder:
        async with ProcessFederation(Path(folder), task_folders=[ROOT]) as federation:
            await federation.start_coordinator()
            for index in range(peers):
                federation.start_peer(
                    f"peer-{index}",
                    data={"index": index, "count": peers},
                    allow=[checked.task],
                    attack=liar if index == peers - 1 else None,
                )
            submit = muster(federation.address, "run", "submit", str(spec), "--wait")
            return submit or muster(federation.address, "round", "list", checked.name)


def muster(address: str, *arguments: str) -> int:
    """One `muster` command against that coordinator, shown as it would be typed; its exit status."""
    print(f"$ muster {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "cli.main", *arguments, "--address", address]
    return subprocess.run(command, cwd=ROOT, check=False).returncode
