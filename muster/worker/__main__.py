"""`python -m muster.worker MODULE ...`: started by `muster.worker.process`, not by people."""

from __future__ import annotations

import argparse
import sys

from muster.worker.child import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m muster.worker", allow_abbrev=False)
    parser.add_argument("module", help="a module with a dict JOBS of what can be run")
    for name in ("--commands-fd", "--events-fd", "--stacks-fd", "--parent-pid"):
        parser.add_argument(name, type=int, required=True)
    found = parser.parse_args()
    sys.exit(
        main(
            found.module,
            commands_fd=found.commands_fd,
            events_fd=found.events_fd,
            stacks_fd=found.stacks_fd,
            parent_pid=found.parent_pid,
        )
    )
