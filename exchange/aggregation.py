"""One round's aggregation: geometry, then one pass, then the server's step, in bounded memory.

Reads mapped update files chunk by chunk and writes the new model version and the optimizer's state chunk by chunk. A
pure function of its inputs with a fixed order of reduction: run again after a crash it writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from exchange import downlink, folds, groups, kept, links, optimizers, recipe, step
from exchange.decision import decide, refuse
from exchange.declared_groups import groups_of_roles
from exchange.decoded import decoded, kept_names
from exchange.job import AggregationJob, AggregationResult, UpdateInput
from exchange.names import DELTA, FACTOR
from muster.model.modelfile import ModelFile
from muster.spec.model import RunSpec


def aggregate(job: AggregationJob) -> AggregationResult:
    """Runs in a thread of its own, off the event loop. Raises `AggregationRefused`, `StorageError`."""
    spec, updates = job.spec, job.updates
    refuse(spec, updates, job.cohort)
    _refuse_mixed_differences(job)
    with ExitStack() as stack:
        base = ModelFile(job.base)
        stack.callback(base.close)
        vectors = {
            name: job.states.get(name) for name in kept_names(recipe.pipeline(spec, job.cohort), updates)
        }
        source = stack.enter_context(
            decoded(spec, updates, vectors, base.layout, scratch_bytes_max=job.scratch_bytes_max)
        )
        decision = decide(spec, updates, source, cohort=job.cohort, round=job.round)
        model, states = step.apply(job, base, source, decision.plan)
        states |= folds.advance_all(job, base.layout, source, decision.plan.weights.tolist())
        source.verify()
    return AggregationResult(
        model_digest=model.digest,
        model_bytes=model.size_bytes,
        state_digests=states,
        treatments=decision.treatments,
        reason=decision.reason,
        warnings=decision.warnings,
    )


def _refuse_mixed_differences(job: AggregationJob) -> None:
    """An estimate of a peer is the sum of its differences in their order: of one against another version, or of two in
    a round, it would be none. Raises `AggregationRefused`."""
    if not links.sends_differences(job.spec):
        return
    peers = [update.peer_id for update in job.updates]
    if len(set(peers)) < len(peers) or any(update.base.version != job.base_version for update in job.updates):
        raise recipe.AggregationRefused(
            f"compression.feedback {job.spec.compression.feedback} sends differences, which count against the newest "
            "version and once for each peer; a schedule with several versions at a time needs another feedback"
        )


def state_names(
    spec: RunSpec, updates: Sequence[UpdateInput], *, cohort: int, base_version: int
) -> tuple[str, ...]:
    """What a round with these updates keeps beside the version that it makes: each a place in `states_out`."""
    return (
        *optimizers.build(spec.server).state_names,
        *downlink.state_names(spec, base_version),
        *((DELTA,) if downlink.compresses(spec) else ()),
        *((FACTOR,) if links.shares_factor(spec) else ()),
        *kept.state_names(spec, recipe.pipeline(spec, cohort), updates),
        *groups.kept_names(groups_of_roles(spec, [update.role for update in updates])),
    )
