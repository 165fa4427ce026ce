"""Runs the test suite again and again, each time on a fresh seed, until the time is over or a test fails.

    python -m tools.soak [--seconds 3600] [--first-seed 1] [PYTEST ARGUMENTS]

The seed goes to Hypothesis and, as MUSTER_TEST_SEED, to the tests that draw faults. On a failure the command
that replays it is printed and the exit status is pytest's own.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence


def soak(*, seconds: float, first_seed: int, pytest_arguments: Sequence[str]) -> int:
    """The exit status: 0 after `seconds` without a failure. The round under way is always ended."""
    ends_at = time.monotonic() + seconds
    seed = first_seed
    while True:
        command = ["-m", "pytest", "-q", "-x", f"--hypothesis-seed={seed}", *pytest_arguments]
        print(f"soak: seed {seed}", file=sys.stderr, flush=True)
        code = subprocess.run(
            [sys.executable, *command], env={**os.environ, "MUSTER_TEST_SEED": str(seed)}, check=False
        ).returncode
        if code != 0:
            replay = shlex.join([f"MUSTER_TEST_SEED={seed}", "python", *command])
            print(f"soak: seed {seed} failed; replay: {replay}", file=sys.stderr)
            return code
        if time.monotonic() >= ends_at:
            print(f"soak: seeds {first_seed} to {seed} passed", file=sys.stderr)
            return 0
        seed += 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--first-seed", type=int, default=int(time.time()) % 1_000_000)
    known, rest = parser.parse_known_args()
    return soak(seconds=known.seconds, first_seed=known.first_seed, pytest_arguments=rest)


if __name__ == "__main__":
    sys.exit(main())
