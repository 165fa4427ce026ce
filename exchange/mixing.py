"""What a holder of a model does with its neighbours' updates, without a coordinator: admit, mix, apply.

    written = write_update(request, model, base, contribution)             # its own, for the neighbours
    facts = admit(file, digest, expected)                                  # of each that came; `UpdateRejected`
    mixture = mix(spec, base, updates, base_digest=d, round=r, out=delta)  # by the spec's rule
    version = apply(base, delta, target)                                   # a new version's file

The coordinator's rounds are made of the same functions. Updates may have been made against other versions than `base`:
each is decoded against its own (`UpdateBase`), and what comes out moves `base`. The spec gives codec, feedback, rule
and f; a row of a mixing matrix is the `weight` of each update, with the rule "mean". There is no server optimizer,
and groups that an algorithm sends beside the model (`exchange.groups`) are not mixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import compressors
from exchange import mechanisms, recipe
from exchange.admission import Expected, admit, update_bytes_max
from exchange.contribution import Contribution
from exchange.decision import decide, refuse
from exchange.decoded import decoded, kept_names
from exchange.delta import DeltaWriter
from exchange.facts import UpdateFacts
from exchange.job import Treated, UpdateBase, UpdateInput
from exchange.kept import KeptRows, state_names
from exchange.rebuild import rebuild
from exchange.recipe import AggregationRefused
from exchange.reduction import Reduction
from exchange.request import UpdateRequest
from exchange.update import WrittenUpdate, write_update
from muster.files.hashedfile import BlobInfo
from muster.model.finite import all_finite
from muster.model.layout import COUNTERS, PARAMS
from muster.model.modelfile import ModelFile
from muster.spec.model import RunSpec

__all__ = [
    "AggregationRefused",
    "Contribution",
    "Expected",
    "Mixture",
    "UpdateBase",
    "UpdateFacts",
    "UpdateInput",
    "UpdateRequest",
    "WrittenUpdate",
    "admit",
    "apply",
    "mix",
    "states_of",
    "update_bytes_max",
    "write_update",
]

CODEC = "identity"  # the mixture stays where it was made


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What `mix` makes of updates, for `apply`."""

    digest: str  # of the delta
    state_digests: Mapping[str, str]
    treatments: tuple[Treated, ...]  # of the updates, in their order
    reason: str
    warnings: tuple[tuple[str, str], ...]  # cause and sentence


def mix(
    spec: RunSpec,
    base: Path,
    updates: Sequence[UpdateInput],
    *,
    base_digest: str,
    round: int,
    out: Path,
    states: Mapping[str, Path] = MappingProxyType({}),
    states_out: Mapping[str, Path] = MappingProxyType({}),
) -> Mixture:
    """Writes to `out` the delta that leads from the version `base` to what the updates make of it.

    `updates`, sorted by peer id, are admitted ones. `states_out` has a place for each of `states_of`, which are the
    `states` of the next mixing. Raises `AggregationRefused`, `StorageError`.
    """
    n = len(updates)
    refuse(spec, updates, n)
    with ExitStack() as stack:
        model = ModelFile(base)
        stack.callback(model.close)
        layout = model.layout
        kept = {name: states.get(name) for name in kept_names(recipe.pipeline(spec, n), updates)}
        source = stack.enter_context(decoded(spec, updates, kept, layout))
        decision = decide(spec, updates, source, cohort=n, round=round)
        keeping = KeptRows(spec, updates, source, decision.plan, states_out)
        stack.callback(keeping.close)
        watch = keeping.take if keeping.needed else None
        opening = mechanisms.opening(spec, updates, decision.plan, n)
        reduction = Reduction(spec, model, source, decision.plan, cohort=n, opening=opening, watch=watch)
        writer = DeltaWriter(CODEC, layout, out, base_digest=base_digest, round=round)
        stack.callback(writer.close)
        codec = compressors.build(CODEC)
        for column in layout.columns:
            if column.group == PARAMS:
                delta = reduction.params(column)
                if not all_finite(delta):
                    raise AggregationRefused("the mixture has values that are not finite")
                writer.append(codec.encode(delta, 0))
            else:
                writer.take_beside(column.group, reduction.buffers(column))
        for index in range(source.counter_chunks()):
            writer.take_beside(COUNTERS, reduction.counters(index))
        source.verify()
        return Mixture(
            digest=writer.finish(),
            state_digests=keeping.finish(),
            treatments=decision.treatments,
            reason=decision.reason,
            warnings=decision.warnings,
        )


def states_of(spec: RunSpec, updates: Sequence[UpdateInput]) -> tuple[str, ...]:
    """Names of the vectors that a mixing of these updates keeps for the next one."""
    return state_names(spec, recipe.pipeline(spec, len(updates)), updates)


def apply(base: Path, delta: Path, target: Path) -> BlobInfo:
    """Writes to `target` the version that the mixture makes of `base`; its size and digest."""
    return rebuild(base, [delta], target)
