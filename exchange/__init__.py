"""The road of an update and of a model version, whoever carries it: payloads, admission, decoding, aggregation, the
server's step, the way down. Takes files, tensors and values; knows of no database, socket, session or run's state.

    LocalAlgorithm     what a peer does with its data: a frozen dataclass of options, registered in "muster.algorithms";
                       it is given a `RoundContext`, declares each `Group` that it sends, and gives a `Contribution`
    ServerOptimizer    how an aggregate moves the model: a frozen dataclass, registered in "muster.server_optimizers"
    Mechanism          what seals an update at its peer and opens the aggregate, registered in "muster.mechanisms"; it
                       is given a `SealContext` and an `OpenContext`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods.lazy import reexport

if TYPE_CHECKING:
    from exchange.admission import Expected, admit
    from exchange.aggregation import aggregate
    from exchange.algorithms import LocalAlgorithm
    from exchange.contribution import Contribution, RoundContext
    from exchange.facts import UpdateFacts
    from exchange.groups import Group
    from exchange.job import AggregationJob, AggregationResult, UpdateBase, UpdateInput
    from exchange.mechanisms import Mechanism, OpenContext, SealContext
    from exchange.optimizers import ServerOptimizer
    from exchange.payload import Manifest, PayloadReader, PayloadWriter
    from exchange.update import WrittenUpdate, write_update

__all__ = [
    "AggregationJob",
    "AggregationResult",
    "Contribution",
    "Expected",
    "Group",
    "LocalAlgorithm",
    "Manifest",
    "Mechanism",
    "OpenContext",
    "PayloadReader",
    "PayloadWriter",
    "RoundContext",
    "SealContext",
    "ServerOptimizer",
    "UpdateBase",
    "UpdateFacts",
    "UpdateInput",
    "WrittenUpdate",
    "admit",
    "aggregate",
    "write_update",
]

__getattr__, __dir__ = reexport(
    __name__,
    {
        "exchange.admission": (
            "Expected",
            "admit",
        ),
        "exchange.aggregation": ("aggregate",),
        "exchange.algorithms": ("LocalAlgorithm",),
        "exchange.contribution": (
            "Contribution",
            "RoundContext",
        ),
        "exchange.facts": ("UpdateFacts",),
        "exchange.groups": ("Group",),
        "exchange.job": (
            "AggregationJob",
            "AggregationResult",
            "UpdateBase",
            "UpdateInput",
        ),
        "exchange.mechanisms": (
            "Mechanism",
            "OpenContext",
            "SealContext",
        ),
        "exchange.optimizers": ("ServerOptimizer",),
        "exchange.payload": (
            "Manifest",
            "PayloadReader",
            "PayloadWriter",
        ),
        "exchange.update": (
            "WrittenUpdate",
            "write_update",
        ),
    },
)
