"""What to set where a run spec is refused: changes to it that have been tried, and with which it is accepted.

No refusal has to know its own remedy, and none can be told that would be refused in its turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from muster import plugins
from muster.spec.model import RunSpec, TrainTable
from muster.spec.relations import CODINGS, contradictions, short_warm_up

Change = Mapping[str, Any]  # a dotted key and its new value; None: the key, or table, is left out

TOLD_MAX = 2
COUNT_MAX = 4  # times the sampling.count of the spec
SPSA_LEAVES = ("optimizer", "momentum", "weight_decay", "epochs", "steps", "clip_norm", "precision")
SPSA: Change = {
    "compression.feedback": "none",
    "compression.warm_up_rounds": 0,
    "train.worker_momentum": 0.0,
    **{f"train.{name}": TrainTable.model_fields[name].default for name in SPSA_LEAVES},
}
MASHA: Change = {
    "train.epochs": None,
    "train.steps": 1,
    "train.lr": 1.0,
    "train.optimizer": "sgd",
    "train.momentum": 0.0,
    "train.weight_decay": 0.0,
    "train.worker_momentum": 0.0,
    "sampling.policy": "uniform",
    "sampling.fraction": None,
    "sampling.count": None,
    "round.quorum": 1.0,
}


def remedies(spec: RunSpec, accepts: Callable[[RunSpec], bool]) -> list[Change]:
    """The first changes, at most two and of different keys, that make of the spec one that is accepted.

    Single ones are tried first, then pairs of them; none is found where three mistakes have nothing in common.
    """
    found: list[Change] = []
    single = [each for each in _candidates(spec) if changed(spec, each) not in (None, spec)]
    for each in (*single, *_pairs(single)):
        if found and (len(each) > len(found[0]) or any(each.keys() & known.keys() for known in found)):
            continue
        mended = changed(spec, each)
        if mended is not None and not [*contradictions(mended, lambda _: True)] and accepts(mended):
            found.append(each)
            if len(found) == TOLD_MAX:
                break
    return found


def format_changes(changes: list[Change]) -> str:
    """As a person would type them: 'set compression.feedback = "none"'."""
    return ", or ".join(
        " and ".join(_format_change(key, value) for key, value in each.items()) for each in changes
    )


def changed(spec: RunSpec, change: Change) -> RunSpec | None:
    """The spec after the change; None if no spec can be so."""
    data = spec.model_dump(mode="json")
    for dotted, value in change.items():
        *tables, key = dotted.split(".")
        table = data
        for name in tables:
            table = table[name]
        table.pop(key)
        if value is not None:
            table[key] = value
    try:
        return RunSpec.model_validate(data)
    except ValidationError:
        return None


def _format_change(key: str, value: Any) -> str:
    if value is None:
        return f"leave out {key if '.' in key else f'[{key}]'}"
    return f"set {key} = {json.dumps(value)}"


def _pairs(single: list[Change]) -> Iterator[Change]:
    for first, second in combinations(single, 2):
        if not first.keys() & second.keys() and "aggregation" not in (*first, *second):
            yield {**first, **second}


def _candidates(spec: RunSpec) -> Iterator[Change]:
    """What was probably meant comes first."""
    yield from _methods(spec)
    yield from _feedbacks(spec)
    yield {"compression.warm_up_rounds": short_warm_up(spec.rounds)}
    yield {"compression.warm_up_rounds": 0}
    for optimizer in ("sgd", "onebit-adam", "masha"):
        yield {"server.optimizer": optimizer}
    yield {"train.worker_momentum": 0.0}
    yield from _codecs(spec)
    yield {"train.algorithm": "sgd"}
    yield from _aggregation(spec)


def _methods(spec: RunSpec) -> Iterator[Change]:
    """All that a method wants of the other tables, where it was chosen and they have something else."""
    table, server = spec.compression, spec.server
    wanted: dict[str, Any] = {}
    if server.optimizer == "masha":
        wanted = {"compression.feedback": f"masha:{server.momentum!r}", **MASHA}
    elif server.optimizer == "onebit-adam":
        up = "sign" if table.up == "identity" else table.up
        warm_up = table.warm_up_rounds or short_warm_up(spec.rounds)
        wanted = {
            "compression.up": up,
            "compression.feedback": f"momentum:{server.beta1!r}",
            "compression.warm_up_rounds": warm_up,
        }
    elif spec.train.algorithm == "spsa":
        up = table.up if re.fullmatch(r"one-byte:\d+", table.up) else "one-byte:16"
        wanted = {"compression.up": up, **SPSA}
    yield {dotted: value for dotted, value in wanted.items() if _value(spec, dotted) != value}


def _feedbacks(spec: RunSpec) -> Iterator[Change]:
    table = spec.compression
    yield {"compression.feedback": table.feedback.partition(":")[0]}
    for key, codec in (("feedback", table.up), ("down_feedback", table.down)):
        for feedback in ("none", "ef14") if _unbiased(codec) else ("ef14", "none"):
            yield {f"compression.{key}": feedback}


def _codecs(spec: RunSpec) -> Iterator[Change]:
    for key, usual in (
        ("up", ("int8", "topk:0.01", "one-byte:16", "identity")),
        ("down", ("int8", "identity")),
    ):
        yield {f"compression.{key}": _mended(getattr(spec.compression, key))}
        for codec in usual:
            yield {f"compression.{key}": codec}
    yield {"compression.up": "int8", "compression.feedback": "none"}


def _aggregation(spec: RunSpec) -> Iterator[Change]:
    yield {"privacy.secure_aggregation": False}
    yield {"sampling.policy": "uniform"}
    count = spec.sampling.count
    for more in range(count + 1, COUNT_MAX * count + 1) if count else ():
        yield {"sampling.count": more}
    yield {"aggregation.trusted_peer": None}
    yield {"aggregation.options": None}
    yield {"aggregation": None}
    yield {"aggregation.faults": 0.2}
    yield {"aggregation.faults": 0}


def _value(spec: RunSpec, dotted: str) -> Any:
    table, _, key = dotted.partition(".")
    return getattr(getattr(spec, table), key)


def _mended(spelling: str) -> str:
    """Without the signs that join nothing, and with the nearest names."""
    choices = ("+".join(map(_nearest, filter(None, choice.split("+")))) for choice in spelling.split("|"))
    return "|".join(filter(None, choices))


def _nearest(part: str) -> str:
    name, colon, argument = part.partition(":")
    known = plugins.names("muster.codecs")
    found = name if name in CODINGS.union(known) else plugins.nearest(name, known)
    return f"{found or name}{colon}{argument}"


def _unbiased(spelling: str) -> bool:
    import compressors

    try:
        return compressors.build(spelling).unbiased
    except compressors.CodecError:
        return False
