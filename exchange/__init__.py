"""The road of an update and of a model version, whoever carries it: payloads, admission, decoding, aggregation, the
server's step, the way down. Takes files, tensors and values; knows of no database, socket, session or run's state.

    LocalAlgorithm     what a peer does with its data: a frozen dataclass of options, registered in "muster.algorithms";
                       it is given a `RoundContext`, declares each `Group` that it sends, and gives a `Contribution`
    ServerOptimizer    how an aggregate moves the model: a frozen dataclass, registered in "muster.server_optimizers"
    Mechanism          what seals an update at its peer and opens the aggregate, registered in "muster.mechanisms"; it
                       is given a `SealContext` and an `OpenContext`, and raises `AggregationRefused`

A `Group` is of a dtype (`F32`, `F64`, `I64`), and names its fold (`MEAN`, `SUM`, `SHARES`, `MAX`, `MIN`, `ANY`) and how
the coordinator keeps it (`REPLACE`, `ADD`). Peers without a coordinator `admit`, `mix` and `apply` (`exchange.mixing`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods.lazy import reexport

if TYPE_CHECKING:
    from exchange.admission import Expected, admit, update_bytes_max
    from exchange.aggregation import aggregate
    from exchange.algorithms import LocalAlgorithm
    from exchange.contribution import Contribution, RoundContext
    from exchange.facts import UpdateFacts
    from exchange.groups import ADD, ANY, F32, F64, I64, MAX, MEAN, MIN, REPLACE, SHARES, SUM, Group
    from exchange.job import AggregationJob, AggregationResult, UpdateBase, UpdateInput
    from exchange.mechanisms import Mechanism, OpenContext, SealContext
    from exchange.mixing import Mixture, apply, mix, states_of
    from exchange.optimizers import ServerOptimizer
    from exchange.payload import Manifest, PayloadReader, PayloadWriter
    from exchange.recipe import AggregationRefused
    from exchange.request import UpdateRequest
    from exchange.update import WrittenUpdate, write_update

__all__ = [
    "ADD",
    "ANY",
    "F32",
    "F64",
    "I64",
    "MAX",
    "MEAN",
    "MIN",
    "REPLACE",
    "SHARES",
    "SUM",
    "AggregationJob",
    "AggregationRefused",
    "AggregationResult",
    "Contribution",
    "Expected",
    "Group",
    "LocalAlgorithm",
    "Manifest",
    "Mechanism",
    "Mixture",
    "OpenContext",
    "PayloadReader",
    "PayloadWriter",
    "RoundContext",
    "SealContext",
    "ServerOptimizer",
    "UpdateBase",
    "UpdateFacts",
    "UpdateInput",
    "UpdateRequest",
    "WrittenUpdate",
    "admit",
    "aggregate",
    "apply",
    "mix",
    "states_of",
    "update_bytes_max",
    "write_update",
]

__getattr__, __dir__ = reexport(
    __name__,
    {
        "exchange.admission": (
            "Expected",
            "admit",
            "update_bytes_max",
        ),
        "exchange.aggregation": ("aggregate",),
        "exchange.algorithms": ("LocalAlgorithm",),
        "exchange.contribution": (
            "Contribution",
            "RoundContext",
        ),
        "exchange.facts": ("UpdateFacts",),
        "exchange.groups": (
            "ADD",
            "ANY",
            "F32",
            "F64",
            "I64",
            "MAX",
            "MEAN",
            "MIN",
            "REPLACE",
            "SHARES",
            "SUM",
            "Group",
        ),
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
        "exchange.mixing": (
            "Mixture",
            "apply",
            "mix",
            "states_of",
        ),
        "exchange.optimizers": ("ServerOptimizer",),
        "exchange.payload": (
            "Manifest",
            "PayloadReader",
            "PayloadWriter",
        ),
        "exchange.recipe": ("AggregationRefused",),
        "exchange.request": ("UpdateRequest",),
        "exchange.update": (
            "WrittenUpdate",
            "write_update",
        ),
    },
)
