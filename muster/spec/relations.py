"""What only the whole run spec can tell: names of plug-ins, and tables that contradict each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from methods import spelling
from muster import plugins
from muster.spec.lines import KeyPath
from muster.spec.model import QUORUM, REPLAY, RunSpec
from muster.spec.problems import Problem

NAMES: dict[KeyPath, str] = {
    ("schedule",): "muster.schedules",
    ("schedule", "name"): "muster.schedules",
    ("train", "algorithm"): "muster.algorithms",
    ("sampling", "policy"): "muster.samplers",
    ("aggregation", "rule"): "muster.rules",
    ("aggregation", "pre"): "muster.pre_rules",
    ("compression", "up"): "muster.codecs",
    ("compression", "feedback"): "muster.feedbacks",
    ("compression", "down"): "muster.codecs",
    ("compression", "down_feedback"): "muster.feedbacks",
    ("server", "optimizer"): "muster.server_optimizers",
    ("mechanism", "name"): "muster.mechanisms",
}

# The name carries its setting: "topk:0.01", "bucketing:2".
SPELLED = frozenset({"muster.pre_rules", "muster.codecs", "muster.feedbacks"})

# Beside the plug-ins.
OWN_NAMES: dict[KeyPath, frozenset[str]] = {
    ("compression", "down"): frozenset({REPLAY}),
    ("mechanism", "name"): frozenset({""}),
}

WARM_UP_PART = 5  # of a warm-up that is too long, one round in so many is told as an example


def unknown_names(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Names that no installed package provides, looked for in the text's own values; nothing is imported."""
    for path, group in NAMES.items():
        value = _value(data, path)
        listed = (
            [((*path, i), v) for i, v in enumerate(value)] if isinstance(value, list) else [(path, value)]
        )
        for place, each in listed:
            own = OWN_NAMES.get(path, frozenset())
            # A spelled one may be a table of name and options.
            name = each.get("name") if isinstance(each, Mapping) and group in SPELLED else each
            if not isinstance(name, str) or name in own:
                continue
            for part in spelling.spelled_names(name) if group in SPELLED else (name,):
                said = plugins.unknown(group, part)
                if said is not None:
                    yield Problem(place, said)


def contradictions(spec: RunSpec, sure: Callable[[KeyPath], bool]) -> Iterator[Problem]:
    """Relations between keys. Those are skipped of which a key is not `sure` to be what was written."""
    for path, involved, message in _relations(spec):
        if all(sure(key) for key in (path, *involved)):
            yield Problem(path, message)


def _relations(spec: RunSpec) -> Iterator[tuple[KeyPath, tuple[KeyPath, ...], str]]:
    round_ = spec.round
    if round_.grace_seconds >= round_.deadline_seconds:
        yield (
            ("round", "grace_seconds"),
            (("round", "deadline_seconds"),),
            f"{round_.grace_seconds:g} s of grace end at or after the round's own deadline "
            f"(deadline_seconds is {round_.deadline_seconds:g})",
        )
    if said := endless_warm_up(spec):
        yield ("compression", "warm_up_rounds"), (("rounds",),), said
    yield from _faults(spec)
    if spec.mechanism.options and not spec.mechanism.name:
        yield (
            ("mechanism", "name"),
            (("mechanism", "options"),),
            "is missing: options are given, and without a name no mechanism seals the updates",
        )
    if spec.evaluate.every > 0 and not spec.evaluate.on:
        yield (
            ("evaluate", "on"),
            (("evaluate", "every"),),
            "names nobody; to evaluate never, set evaluate.every = 0",
        )
    if len(set(spec.evaluate.on)) < len(spec.evaluate.on):
        yield ("evaluate", "on"), (), "names the same place twice"


def endless_warm_up(spec: RunSpec) -> str | None:
    """Why no round comes after those of the warm-up; None if one does."""
    warm_up, rounds = spec.compression.warm_up_rounds, spec.rounds
    if warm_up < rounds:
        return None
    told = "the only round" if rounds == 1 else f"all {rounds} rounds"
    return (
        f"{warm_up} first rounds are {told} of the run, so that nothing would ever go up as compression.up says; "
        f"it must be below rounds, such as {short_warm_up(rounds)}"
    )


def short_warm_up(rounds: int) -> int:
    """Some rounds of warm-up, where there are any to spare."""
    return max(min(1, rounds - 1), rounds // WARM_UP_PART)


def _faults(spec: RunSpec) -> Iterator[tuple[KeyPath, tuple[KeyPath, ...], str]]:
    """Less than half of the updates may be faulty (n > 2f), of a full cohort and of one at its quorum."""
    count = spec.sampling.count
    path: KeyPath = ("aggregation", "faults")
    if spec.aggregation.faults in (0, None) or count is None:
        return  # what nobody has said adapts itself to how many there are
    # A share is one of all that are asked, and over-selection asks more than it wants.
    asked = math.ceil(spec.sampling.over_select * count - 1e-9)
    faults = spec.faults_of(asked)
    told = "" if isinstance(spec.aggregation.faults, int) else f"; {spec.format_faults(asked)}"
    if count <= 2 * faults:
        yield (
            path,
            (("sampling", "count"),),
            f"no rule withstands {faults} faulty of {count} updates (sampling.count): "
            f"it takes more than {2 * faults}{told}",
        )
        return
    quorum = spec.round.patient_quorum(count)  # below it one that is not given gives way to the rule
    if quorum <= 2 * faults:
        yield (
            path,
            (("sampling", "count"), ("round", "quorum")),
            f"no rule withstands {faults} faulty of the {quorum} updates at which a round may close "
            f"(round.quorum {spec.round.quorum or QUORUM:g} of sampling.count {count}): "
            f"it takes more than {2 * faults}{told}",
        )


def _value(data: Mapping[str, Any], path: KeyPath) -> Any:
    value: Any = data
    for part in path:
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value
