"""One round's aggregation: geometry, then one pass, then the server's step, in bounded memory.

Reads mapped update files chunk by chunk (n x chunk in memory), at most twice, and writes the new model version and the
optimizer's state chunk by chunk. A pure function of its inputs with a fixed order of reduction: run again after a
crash it writes the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

import aggregators
from aggregators.core.rule import Needs
from exchange import downlink, folds, groups, links, optimizers, recipe, step
from exchange.decoded import Decoded, decoded, kept_names
from exchange.job import AggregationJob, AggregationResult, Treated, UpdateInput
from exchange.names import DELTA, FACTOR
from exchange.recipe import AggregationRefused
from muster.model.modelfile import ModelFile
from muster.seeds import derive_seed
from muster.spec.model import RunSpec

CAPPED_TOLD = 5


def aggregate(job: AggregationJob) -> AggregationResult:
    """Runs in a thread of its own, off the event loop. Raises `AggregationRefused`, `StorageError`."""
    began = time.perf_counter()
    pipeline = recipe.pipeline(job.spec, job.cohort)
    peers = tuple(update.peer_id for update in job.updates)
    refusal = recipe.refuse(job.spec, len(peers), job.cohort) or recipe.missing_trusted(job.spec, peers)
    if refusal:
        raise AggregationRefused(refusal)
    with ExitStack() as stack:
        base = ModelFile(job.base)
        stack.callback(base.close)
        kept = {name: job.states.get(name) for name in kept_names(pipeline, job.updates)}
        source = stack.enter_context(decoded(job.spec, job.updates, kept, base.layout))
        plan = _decide(job, pipeline, source)
        model, states = step.apply(job, base, source, plan)
        states |= folds.advance_all(job, base.layout, source, plan.weights.tolist())
    capped = _capped(job, pipeline)
    treatments = tuple(
        Treated(
            assignment_id=update.assignment_id,
            weight=float(plan.weights[i]),
            score=float(plan.scores[i]),
            selected=plan.selected[i],
            sentence=plan.treatment[i],
        )
        for i, update in enumerate(job.updates)
    )
    return AggregationResult(
        model_digest=model.digest,
        model_bytes=model.size_bytes,
        state_digests=states,
        treatments=treatments,
        reason="; ".join(filter(None, (plan.reason, job.spec.format_faults(job.cohort), *capped))),
        seconds=time.perf_counter() - began,
        warnings=(*(("examples.capped", told) for told in capped), *_nobody(plan)),
    )


def _decide(job: AggregationJob, pipeline: aggregators.Pipeline, source: Decoded) -> aggregators.Plan:
    """The first pass, if the rule needs one."""
    trusted = job.spec.aggregation.trusted_peer
    survey = aggregators.Survey(
        pipeline,
        len(job.updates),
        source.layout.columns_size,
        kept=len(source.kept),
        seed=derive_seed(job.spec.seed, "aggregation", job.round, source.drawn()),
    )
    try:
        if survey.needed:
            for start, chunk in source.chunks():
                survey.add(start, chunk)
        return survey.plan(
            weights=_weights(job),
            trusted=next((i for i, u in enumerate(job.updates) if u.peer_id == trusted), None),
        )
    except aggregators.RuleError as error:
        raise AggregationRefused(str(error)) from error


def _weights(job: AggregationJob) -> Tensor | None:
    """Shares of a weighted mean: declared example counts, which the spec may cap, since they are only the peers'
    word."""
    table = job.spec.aggregation
    if table.weights == "uniform":
        return None
    cap = table.examples_max
    counts = [update.examples if cap is None else min(update.examples, cap) for update in job.updates]
    return torch.tensor(counts, dtype=torch.float64)


def _nobody(plan: aggregators.Plan) -> tuple[tuple[str, str], ...]:
    """Tells where a rule has given nobody a share, so that the model stays where it is."""
    if any(plan.selected):
        return ()
    return (
        ("aggregation.nobody", f"no update has a share in the new model, which does not move: {plan.reason}"),
    )


def _capped(job: AggregationJob, pipeline: aggregators.Pipeline) -> tuple[str, ...]:
    """Tells where the spec's cap makes peers of unlike example counts weigh alike."""
    table = job.spec.aggregation
    if table.examples_max is None or table.weights == "uniform" or Needs.WEIGHTS not in pipeline.needs:
        return ()
    above = [update.peer_id for update in job.updates if update.examples > table.examples_max]
    if not above:
        return ()
    more = f" and {len(above) - CAPPED_TOLD} more" if len(above) > CAPPED_TOLD else ""
    whose = ", ".join(above[:CAPPED_TOLD]) + more
    return (
        f"the examples of {len(above)} of {len(job.updates)} updates ({whose}) count as {table.examples_max}, "
        "which is aggregation.examples_max",
    )


def state_names(
    spec: RunSpec, updates: Sequence[UpdateInput], *, cohort: int, base_version: int
) -> tuple[str, ...]:
    """What a round with these updates keeps beside the version that it makes: each a place in `states_out`."""
    return (
        *optimizers.build(spec.server).state_names,
        *downlink.state_names(spec, base_version),
        *((DELTA,) if downlink.compresses(spec) else ()),
        *((FACTOR,) if spec.compression.common_factor else ()),
        *((links.state_name(update.peer_id) for update in updates) if links.sends_differences(spec) else ()),
        *kept_names(recipe.pipeline(spec, cohort), updates),
        *groups.kept_names(groups.groups_of_roles(spec, [update.role for update in updates])),
    )
