"""The seam between Muster and a network, and its two implementations.

`GrpcTransport` and `MemoryTransport` are loaded when first named: gRPC takes 0.2 s to import, and they need
`muster.wire`, which itself needs this package.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from methods.lazy import reexport
from muster.transport.base import CallContext, Channel, Method, Route, Server, Transport
from muster.transport.identity import EVERYBODY, Identity, Role

if TYPE_CHECKING:
    from muster.transport.grpc_ import GrpcTransport
    from muster.transport.memory import MemoryTransport

# gRPC reads this when it is imported. Unset, it writes its own lines about every server that stops to
# standard error, between ours; what matters in them reaches the caller as an error anyway.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

__all__ = [
    "EVERYBODY",
    "CallContext",
    "Channel",
    "GrpcTransport",
    "Identity",
    "MemoryTransport",
    "Method",
    "Role",
    "Route",
    "Server",
    "Transport",
]


__getattr__, __dir__ = reexport(
    __name__,
    {
        "muster.transport.grpc_": ("GrpcTransport",),
        "muster.transport.memory": ("MemoryTransport",),
    },
)
