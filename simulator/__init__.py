"""Muster without machines: tools for users' own tests.

start_local          a federation in one process, over an in-memory network
run                  a coroutine on a loop of virtual time, seeded
Network              delays, drops, partitions and crashes on that in-memory network
FakeCoordinator      a coordinator that does what a test says: to test a peer alone
FakePeer             a peer that does what a test says: to test a coordinator alone
ProcessFederation    a federation of real processes on this machine
ChaosProxy           a TCP proxy that delays, drops, halves and throttles
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muster.runtime.installation import check_together

# A user's own program and its folder come first on sys.path.
check_together(("aggregators", "compressors", "coordinator", "exchange", "methods", "peer", "protos"))

from methods.lazy import reexport  # noqa: E402  # not before it is known to be ours

if TYPE_CHECKING:
    from simulator.fake_coordinator import FakeCoordinator
    from simulator.fake_peer import FakePeer
    from simulator.federation import LocalFederation
    from simulator.local import start_local
    from simulator.network import Network
    from simulator.processes import ProcessFederation
    from simulator.proxy import ChaosProxy
    from simulator.virtual_loop import VirtualLoop, run

__all__ = [
    "ChaosProxy",
    "FakeCoordinator",
    "FakePeer",
    "LocalFederation",
    "Network",
    "ProcessFederation",
    "VirtualLoop",
    "run",
    "start_local",
]

__getattr__, __dir__ = reexport(
    __name__,
    {
        "simulator.fake_coordinator": ("FakeCoordinator",),
        "simulator.fake_peer": ("FakePeer",),
        "simulator.federation": ("LocalFederation",),
        "simulator.local": ("start_local",),
        "simulator.network": ("Network",),
        "simulator.processes": ("ProcessFederation",),
        "simulator.proxy": ("ChaosProxy",),
        "simulator.virtual_loop": (
            "VirtualLoop",
            "run",
        ),
    },
)
