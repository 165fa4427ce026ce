"""What to set where a run spec is refused: changes to it that have been tried, and with which it is accepted.

No refusal has to know its own remedy, and none can be told that would be refused in its turn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from coordinator.submission.compatibility import unmet
from methods import MethodError
from methods.kinds import CODECS
from methods.spelling import CHAIN, CHOICE, CODINGS, split
from muster import plugins
from muster.errors import MusterError
from muster.spec.model import CompressionTable, RunSpec, SamplingTable, ServerTable, TrainTable
from muster.spec.relations import contradictions, short_warm_up

Change = Mapping[str, Any]  # a dotted key and its new value; None: the key, or table, is left out

TOLD_MAX = 2
COUNT_MAX = 4  # times the sampling.count of the spec
USUAL_FEEDBACKS = tuple(  # what is in use where a spec says nothing: up, and down
    CompressionTable.model_fields[key].default for key in ("down_feedback", "feedback")
)


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
            table = table.setdefault(name, {})  # tables that say nothing are not written
        table.pop(key, None)
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
    """What was probably meant comes first: all that a plug-in demands, then other values that are in use."""
    yield from _demands(spec)
    yield from _feedbacks(spec)
    yield {"compression.warm_up_rounds": short_warm_up(spec.rounds)}
    yield {"compression.warm_up_rounds": 0}
    yield {"server.optimizer": ServerTable.model_fields["optimizer"].default}
    yield {"train.worker_momentum": 0.0}
    yield from _codecs(spec)
    left = {"train.options": None} if spec.train.options else {}
    yield {"train.algorithm": TrainTable.model_fields["algorithm"].default, **left}
    yield from _aggregation(spec)


def _demands(spec: RunSpec) -> Iterator[Change]:
    """Of each plug-in all that it demands in vain, then its demands one by one."""
    try:
        found = list(unmet(spec))
    except (MethodError, MusterError):  # a plug-in that cannot be built has nothing to demand
        return
    for _, demands in found:
        together: dict[str, Any] = {}
        for demand in demands:
            together = {**demand.change, **together}  # the first has the say
        yield {key: together[key] for demand in demands for key in demand.change}
    for _, demands in found:
        yield from (demand.change for demand in demands)


def _feedbacks(spec: RunSpec) -> Iterator[Change]:
    table = spec.compression
    yield {"compression.feedback": split(table.feedback)[0]}
    for key, codec in (("feedback", table.up), ("down_feedback", table.down)):
        for feedback in reversed(USUAL_FEEDBACKS) if _unbiased(codec) else USUAL_FEEDBACKS:
            yield {f"compression.{key}": feedback}


def _codecs(spec: RunSpec) -> Iterator[Change]:
    examples = tuple(_examples())
    for key in ("up", "down"):
        yield {f"compression.{key}": _mended(getattr(spec.compression, key))}
        for codec in (*examples, CompressionTable.model_fields[key].default):
            yield {f"compression.{key}": codec}
    for codec in examples:
        yield {"compression.up": codec, "compression.feedback": USUAL_FEEDBACKS[-1]}


def _examples() -> Iterator[str]:
    """Codecs that say that they are a usual choice, spelled as they are to begin with."""
    from compressors.core.codec import CodecError
    from compressors.core.registry import codec_class, codec_names

    for name in codec_names():
        try:
            found = codec_class(name)
        except CodecError:  # of a package that is installed in part
            continue
        if found.usual:
            yield found.example or name


def _aggregation(spec: RunSpec) -> Iterator[Change]:
    yield {"privacy.secure_aggregation": False}
    yield {"sampling.policy": SamplingTable.model_fields["policy"].default}
    count = spec.sampling.count
    for more in range(count + 1, COUNT_MAX * count + 1) if count else ():
        yield {"sampling.count": more}
    yield {"aggregation.trusted_peer": None}
    yield {"aggregation.options": None}
    yield {"aggregation": None}
    yield {"aggregation.faults": 0.2}
    yield {"aggregation.faults": 0}


def _mended(spelling: str) -> str:
    """Without the signs that join nothing, and with the nearest names."""
    choices = (
        CHAIN.join(map(_nearest, filter(None, choice.split(CHAIN)))) for choice in spelling.split(CHOICE)
    )
    return CHOICE.join(filter(None, choices))


def _nearest(part: str) -> str:
    name, argument = split(part)
    known = plugins.names(CODECS)
    found = name if name in CODINGS.union(known) else plugins.nearest(name, known)
    return found or name if argument is None else f"{found or name}:{argument}"


def _unbiased(spelling: str) -> bool:
    import compressors

    try:
        return compressors.build(spelling).unbiased
    except compressors.CodecError:
        return False
