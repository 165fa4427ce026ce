"""What a rule decides about a set of updates: how they are mixed, and a sentence for each and for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import aggregators
from aggregators.core.rule import Needs
from exchange import recipe
from exchange.decoded import Decoded
from exchange.job import Treated, UpdateInput
from exchange.recipe import AggregationRefused
from muster.seeds import derive_seed
from muster.spec.model import RunSpec

CAPPED_TOLD = 5


@dataclass(frozen=True, kw_only=True)
class Decision:
    plan: aggregators.Plan
    treatments: tuple[Treated, ...]  # of the updates, in their order
    reason: str
    warnings: tuple[tuple[str, str], ...]  # cause and sentence


def refuse(spec: RunSpec, updates: Sequence[UpdateInput], cohort: int) -> None:
    """Raises `AggregationRefused` where the rule's bound does not hold for so many, or its trusted peer is missing."""
    peers = tuple(update.peer_id for update in updates)
    if refusal := recipe.refuse(spec, len(peers), cohort) or recipe.missing_trusted(spec, peers):
        raise AggregationRefused(refusal)


def decide(
    spec: RunSpec, updates: Sequence[UpdateInput], source: Decoded, *, cohort: int, round: int
) -> Decision:
    """Sweeps the columns once, if the rule needs to know them. Raises `AggregationRefused`."""
    pipeline = recipe.pipeline(spec, cohort)
    given = [0.0 if update.weight is None else update.weight for update in updates]
    if any(update.weight is not None for update in updates):
        return _told(spec, updates, _sum(given, pipeline), cohort=cohort)
    trusted = spec.aggregation.trusted_peer
    random = (Needs.SEED | Needs.SAMPLES) & pipeline.needs
    survey = aggregators.Survey(
        pipeline,
        len(updates),
        source.layout.columns_size,
        kept=len(source.kept),
        seed=derive_seed(spec.seed, "aggregation", round, source.drawn() if random else ""),
    )
    try:
        if survey.needed:
            for start, chunk in source.chunks():
                survey.add(start, chunk)
        plan = survey.plan(
            weights=_weights(spec, updates),
            trusted=next((i for i, u in enumerate(updates) if u.peer_id == trusted), None),
        )
    except aggregators.RuleError as error:
        raise AggregationRefused(str(error)) from error
    return _told(spec, updates, plan, cohort=cohort, capped=_capped(spec, updates, pipeline))


def _told(
    spec: RunSpec,
    updates: Sequence[UpdateInput],
    plan: aggregators.Plan,
    *,
    cohort: int,
    capped: Sequence[str] = (),
) -> Decision:
    return Decision(
        plan=plan,
        treatments=tuple(
            Treated(
                assignment_id=update.assignment_id,
                weight=float(plan.weights[i]),
                score=float(plan.scores[i]),
                selected=plan.selected[i],
                sentence=plan.treatment[i],
            )
            for i, update in enumerate(updates)
        ),
        reason="; ".join(filter(None, (plan.reason, spec.format_faults(cohort), *capped))),
        warnings=(*(("examples.capped", told) for told in capped), *_nobody(plan)),
    )


def _sum(weights: Sequence[float], pipeline: aggregators.Pipeline) -> aggregators.Plan:
    """The sum by weights that were given, as they are. Raises `AggregationRefused` where the rule is no mean."""
    if not pipeline.uses_weights:
        raise AggregationRefused(
            "the updates were given weights, which only a mean without a pre-rule takes: "
            'set aggregation.rule = "mean", or a schedule that gives none'
        )
    given = torch.tensor(weights, dtype=torch.float64)
    return aggregators.Plan(
        n=len(weights),
        matrix=given[None, :],
        reducer=None,
        scores=given,
        treatment=tuple(f"weighs {weight:.4g} in the sum" for weight in weights),
        reason=f"sum of {len(weights)} updates by weights that are {float(given.sum()):.4g} in all",
    )


def _weights(spec: RunSpec, updates: Sequence[UpdateInput]) -> Tensor | None:
    """Shares of a weighted mean: declared example counts, which the spec may cap, since they are only the peers'
    word."""
    table = spec.aggregation
    if table.weights == "uniform":
        return None
    cap = table.examples_max
    counts = [update.examples if cap is None else min(update.examples, cap) for update in updates]
    return torch.tensor(counts, dtype=torch.float64)


def _nobody(plan: aggregators.Plan) -> tuple[tuple[str, str], ...]:
    """Tells where a rule has given nobody a share, so that the model stays where it is."""
    if any(plan.selected):
        return ()
    return (
        ("aggregation.nobody", f"no update has a share in the new model, which does not move: {plan.reason}"),
    )


def _capped(spec: RunSpec, updates: Sequence[UpdateInput], pipeline: aggregators.Pipeline) -> tuple[str, ...]:
    """Tells where the spec's cap makes peers of unlike example counts weigh alike."""
    table = spec.aggregation
    if table.examples_max is None or table.weights == "uniform" or Needs.WEIGHTS not in pipeline.needs:
        return ()
    above = [update.peer_id for update in updates if update.examples > table.examples_max]
    if not above:
        return ()
    more = f" and {len(above) - CAPPED_TOLD} more" if len(above) > CAPPED_TOLD else ""
    whose = ", ".join(above[:CAPPED_TOLD]) + more
    return (
        f"the examples of {len(above)} of {len(updates)} updates ({whose}) count as {table.examples_max}, "
        "which is aggregation.examples_max",
    )
