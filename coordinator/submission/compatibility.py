"""What the plug-ins that a run spec names demand of the rest of it: each says so itself, see `methods.requirements`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from coordinator.engine import sampling, schedule
from exchange import algorithms, mechanisms, optimizers
from methods import Requirement, SpecValues, requirements
from methods.kinds import SCHEDULES
from muster.plugins import fact
from muster.spec.model import RunSpec


def spec_values(spec: RunSpec) -> SpecValues:
    """The spec as plugins are handed it: plain values, spellings canonical. Raises `CodecError`."""
    import compressors
    from exchange import downlink

    values: dict[str, Any] = {
        key: dict(value) if isinstance(value, BaseModel) else value for key, value in spec
    }
    table = values["compression"]
    for key in ("feedback", "down_feedback"):
        table[key] = compressors.build_feedback(table[key]).spelling
    for key in ("up", "down"):
        if key == "up" or not downlink.replays(spec):
            table[key] = compressors.build(table[key]).spelling
    return values


def unmet(spec: RunSpec) -> Iterator[tuple[str, list[Requirement]]]:
    """What each plug-in of the spec demands in vain, or is told by its class: its place in the spec, and its demands.

    First who makes updates, then who encodes them, then who uses them. Raises `ConfigError` and `CodecError` of
    plug-ins that cannot be built.
    """
    values = spec_values(spec)
    if wrong := _of_several_bases(spec):
        yield "schedule.name", [wrong]
    for place, plugin in _plugins(spec):
        if found := list(requirements(plugin, values)):
            yield place, found


def _of_several_bases(spec: RunSpec) -> Requirement | None:
    """What a schedule of several base versions goes without. Where both ends keep state for a peer, its updates have to
    be folded in the order in which it made them; and work that outlives its round belongs to no cohort."""
    import compressors
    from exchange import links

    if not fact(SCHEDULES, spec.schedule.name, "several_bases", False):
        return None
    if not links.sends_differences(spec):
        if compressors.build_feedback(spec.compression.feedback).norm_max(1) == math.inf:
            return None
        return Requirement(
            f"{spec.compression.feedback} clips by the size of a cohort, and the schedule {spec.schedule.name!r} "
            "folds updates that outlive their rounds: leave the clipping out"
        )
    return Requirement(
        f"{spec.compression.feedback} sends differences, which count in their order alone, and the schedule "
        f"{spec.schedule.name!r} folds updates of several base versions: compression.feedback ef14 or none"
    )


def _plugins(spec: RunSpec) -> Iterator[tuple[str, object]]:
    import compressors
    from exchange import downlink, recipe

    train, table = spec.train, spec.compression
    built = recipe.pipeline(spec, spec.sampling.count or recipe.COHORT_ANY)
    yield "schedule.name", schedule.build(spec, refuse=lambda _n, _cohort: None)
    yield "sampling.policy", sampling.build(spec.sampling)
    yield "aggregation.rule", built.rule
    for number, before in enumerate(built.pre):
        yield f"aggregation.pre[{number}]", before
    yield "train.algorithm", algorithms.build(train.algorithm, train.options)
    if (mechanism := mechanisms.build(spec)) is not None:
        yield "mechanism.name", mechanism
    yield "compression.up", compressors.build(table.up)
    if not downlink.replays(spec):
        yield "compression.down", compressors.build(table.down)
    yield "server.optimizer", optimizers.build(spec.server)
    yield "compression.feedback", compressors.build_feedback(table.feedback)
    yield "compression.down_feedback", compressors.build_feedback(table.down_feedback)
