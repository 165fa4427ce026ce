"""The aggregation that a run spec asks for, with f for a cohort; imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

import aggregators
from aggregators.core.rule import Needs
from methods.kinds import MECHANISMS
from muster.errors import ConfigError
from muster.plugins import find
from muster.spec.model import FAULTS_SHARE, AggregationTable, RunSpec, share

COHORT_ANY = 1_000  # of a run that is not told: whatever the share, some of so many are faulty
RULE_STATE = "rule/"  # how the vectors that a rule keeps are named among a server's states


class AggregationRefused(Exception):
    """The round cannot be aggregated: the rule's bound does not hold, or the result is not finite."""


def pipeline(spec: RunSpec, cohort: int) -> aggregators.Pipeline:
    """For a round whose cohort, all that were asked, has so many peers. Raises `RuleError`."""
    table = spec.aggregation
    return aggregators.build(table.rule, pre=table.pre, faults=spec.faults_of(cohort), options=table.options)


def refuse(spec: RunSpec, n: int, cohort: int) -> str | None:
    """Why n updates of such a cohort cannot be aggregated, with the rule's bound and where f comes from."""
    refusal = pipeline(spec, cohort).refuse(n)
    if refusal is None or isinstance(spec.aggregation.faults, int):
        return refusal
    return f"{refusal}; {spec.format_faults(cohort)}"


def trusts(spec: RunSpec) -> bool:
    """Whether the rule asks for a peer that is trusted. Raises `RuleError`."""
    return Needs.TRUSTED in pipeline(spec, spec.sampling.count or COHORT_ANY).needs


def check(spec: RunSpec) -> None:
    """Raises `RuleError` where the aggregation cannot be had of a coordinator, or not together with the rest."""
    table = spec.aggregation
    built = pipeline(spec, spec.sampling.count or COHORT_ANY)
    trusting = Needs.TRUSTED in built.needs
    if trusting and table.trusted_peer is None:
        raise aggregators.RuleError(
            f"{table.rule} needs one peer that is trusted: say which in aggregation.trusted_peer"
        )
    if table.trusted_peer is not None and not trusting:
        raise aggregators.RuleError(
            f"{table.rule} trusts no peer, and aggregation.trusted_peer is {table.trusted_peer!r}: leave it out"
        )
    if refusal := _never_enough(spec):
        raise aggregators.RuleError(refusal)
    if (mechanism := spec.mechanism.name) and find(MECHANISMS, mechanism).sums_only:
        why = built.refuse_sums_only(mechanism)
        if why is not None:
            raise aggregators.RuleError(why)
    if spec.privacy.secure_aggregation:
        why = built.refuse_sums_only()
        raise aggregators.RuleError(
            why or "secure aggregation is not built yet: leave privacy.secure_aggregation out"
        )


def _never_enough(spec: RunSpec) -> str | None:
    """Why no round can ever have enough updates, however many peers there are."""
    table, count = spec.aggregation, spec.sampling.count
    if count is not None:
        trusted = table.trusted_peer is not None
        asked = share(spec.sampling.over_select, count)
        refusal = refuse(spec, count + trusted, asked + trusted)
        return f"{refusal}; sampling.count is {count}" if refusal else None
    if isinstance(table.faults, int):
        return None
    first = _first_faulty(spec)
    refusals = (refuse(spec, cohort, cohort) for cohort in range(first, first + COHORT_ANY))
    if any(refusal is None for refusal in refusals):
        return None
    return f"no cohort is large enough: {refuse(spec, first, first)}"


def _first_faulty(spec: RunSpec) -> int:
    """The smallest cohort in which somebody may be faulty: while f is 0 most rules are a mean, and all will do."""
    faults = spec.aggregation.faults
    if isinstance(faults, int):
        return 1
    return math.ceil(1 / (FAULTS_SHARE if faults is None else faults))


def is_linear(spec: RunSpec) -> bool:
    """Whether the result is a weighted sum of whole updates, whatever these are."""
    built = pipeline(spec, COHORT_ANY)
    if built.state_names(["one"]):
        return False
    n = next(n for n in range(_first_faulty(spec), COHORT_ANY) if refuse(spec, n, n) is None)
    survey = aggregators.Survey(pipeline(spec, n), n, 1)
    if survey.needed:
        survey.add(0, torch.ones(n, 1))
    trusted = 0 if Needs.TRUSTED in built.needs else None
    return survey.plan(trusted=trusted).linear


def missing_trusted(spec: RunSpec, present: tuple[str, ...]) -> str | None:
    """Why so far no round with the updates of these peers can be aggregated, if the trusted one is missing."""
    trusted = spec.aggregation.trusted_peer
    if trusted is None or trusted in present:
        return None
    return f"{spec.aggregation.rule} needs the update of its trusted peer {trusted!r}, and there is none"


def changed(spec: RunSpec, changes: Mapping[str, Any]) -> RunSpec:
    """The spec with these changes to its aggregation table. Raises `ConfigError` "replay.bad_rule" where that cannot be
    had."""
    own = spec.aggregation.model_dump()
    if changes.get("rule", spec.aggregation.rule) != spec.aggregation.rule:
        own |= {"pre": [], "options": {}}  # they were said of the run's own rule
    try:
        made = _with(spec, {**own, **changes})
        if "trusted_peer" not in changes and not trusts(made):
            made = _with(spec, {**own, **changes, "trusted_peer": None})
        check(made)
    except ValueError as error:
        raise ConfigError(
            "replay.bad_rule",
            f"the round cannot be replayed so: {error}",
            fix="muster aggregator show NAME tells what a rule needs; --faults 0 is for those that bear none",
        ) from error
    return made


def _with(spec: RunSpec, table: Mapping[str, Any]) -> RunSpec:
    return spec.model_copy(update={"aggregation": AggregationTable.model_validate(table)})
