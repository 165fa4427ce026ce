"""The whole road in one call: admission, survey, plan, sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from aggregators.core.options import RuleError
from aggregators.core.pipeline import Pipeline, build, checked_weights
from aggregators.core.plan import Plan
from aggregators.core.sources import Behind, Chosen, Source
from aggregators.core.survey import Survey
from aggregators.core.validation import enter, kept_vectors, named, room, trusted_row

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """`vector` [d], and for each of the n updates its share (`weights` [n] float64), the rule's own figure
    (`scores` [n] float64, NaN of an update that was rejected), whether it has any share, and a sentence on
    how it was treated. `state` are the vectors to hand in with the next round, once this one stands: those that
    were handed in with this round's in their places, so that a peer that is absent is not forgotten.
    """

    vector: Tensor
    weights: Tensor
    scores: Tensor
    selected: tuple[bool, ...]
    treatment: tuple[str, ...]
    reason: str
    state: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


def aggregate(
    updates: Tensor | Source,
    rule: str = "trimmed-mean",
    pre: Sequence[str] | str = ("arc", "nnm"),
    *,
    faults: int = 0,
    weights: Tensor | Sequence[float] | None = None,
    seed: int = 0,
    trusted: int | None = None,
    keys: Sequence[str] | None = None,
    state: Mapping[str, Tensor] | None = None,
    admitted: bool = False,
    out: Tensor | None = None,
    **options: Any,
) -> Aggregate:
    """Makes one vector of n updates: a matrix [n, d] of floats, or a source of column chunks.

    An update with a NaN or an infinity is rejected: it counts for nothing, and f stays as declared. `admitted`
    says that all are known to be finite, which spares a pass under a rule that needs no distances. `weights`
    [n] must be sound under any rule, and count for a mean alone. `seed` is any integer. `trusted` is the row
    that some rules ask for, `keys` name the updates to a rule that remembers peers (by default their numbers),
    `state` is what the round before left. `out` [d] takes the result instead of new memory: of the updates'
    type and device, and apart from their memory. Inputs are never changed, and no gradient goes through.

    Half precision is worked out in float32. A rule of inner products serves, in float32, updates of norms up to
    1.8e19: a longer one counts as faulty. However short updates are, they are told apart. Of a source n x chunk is
    held, besides the result and what the rule keeps, which of foolsgold is a vector [d] for each update: `Survey` and
    `Plan` stream all of it.

    Raises `RuleError` with a sentence where f is too great for n, or the rule, its options or its input are not
    as they must be.

    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 2.2], [0.8, 1.8], [9e9, -9e9]])
    >>> aggregate(updates, "median", pre=(), faults=1).vector
    tensor([1.1000, 1.9000])
    """
    pipeline = build(rule, pre=pre, faults=faults, options=options)
    entered = enter(updates)
    source, n, size = entered.source, entered.source.n, entered.source.size
    accepted = torch.ones(n, dtype=torch.bool) if admitted else _finite(source)
    rows = accepted.nonzero().flatten()
    shares = None if weights is None else checked_weights(weights, n)[rows]
    names, trusted = named(keys, n), trusted_row(trusted, accepted)
    if len(rows) < n:
        source, names = Chosen(source, rows), [names[row] for row in rows.tolist()]
    _check_bound(pipeline, len(rows), n)
    kept = pipeline.state_names(names)
    vectors = kept_vectors({} if state is None else state, kept, size)
    target = None if out is None else room(out, size, entered, vectors)
    whole = Behind(source, vectors)
    survey = Survey(pipeline, len(rows), size, kept=len(kept), seed=seed)
    if survey.needed:
        for start, X in whole.chunks():
            survey.add(start, X)
    plan = survey.plan(weights=shares, trusted=trusted)
    vector = entered.empty(size) if target is None or target.dtype != entered.wide else target
    following = entered.empty(len(kept), size)
    _sweep(whole, plan, following, vector)
    if vector.dtype != entered.dtype:
        vector = vector.to(entered.dtype) if target is None else target.copy_(vector)
    _check_finite(vector, admitted)
    return Aggregate(
        vector=vector if out is None else out,
        weights=_spread(plan.weights, rows, n, 0.0),
        scores=_spread(plan.scores, rows, n, torch.nan),
        selected=_spread_all(plan.selected, rows, n, False),
        treatment=_spread_all(plan.treatment, rows, n, "rejected: it has a NaN or an infinity"),
        reason=plan.reason,
        state={**(state or {}), **dict(zip(kept, following, strict=True))},
    )


def _finite(source: Source) -> Tensor:
    """Which rows have neither a NaN nor an infinity [n]."""
    accepted = torch.ones(source.n, dtype=torch.bool)
    for _, X in source.chunks():
        least, greatest = torch.aminmax(X, dim=1)  # a NaN goes through both
        accepted &= (least.isfinite() & greatest.isfinite()).cpu()
    return accepted


def _check_bound(pipeline: Pipeline, left: int, n: int) -> None:
    if refusal := pipeline.refuse(left):
        lost = f", as {n - left} of {n} updates are not finite" if left < n else ""
        raise RuleError(f"{refusal}{lost}")


def _check_finite(vector: Tensor, admitted: bool) -> None:
    if not _all_finite(vector):
        unless = ", or an update that was said to be admitted is not finite" if admitted else ""
        raise RuleError(
            f"the aggregate has values that are not finite: sums of these updates overflow {vector.dtype}{unless}"
        )


def _all_finite(vector: Tensor) -> bool:
    if vector.device.type == "cpu" and vector.dtype.itemsize >= 4:  # numpy knows no bfloat16
        # A sum that is finite proves every term so; numpy's does not wake torch's threads, which on a busy machine
        # costs more than all of the sum.
        with np.errstate(over="ignore", invalid="ignore"):
            if bool(np.isfinite(vector.numpy().sum())):
                return True
    return bool(vector.isfinite().all())


def _sweep(source: Behind, plan: Plan, following: Tensor, vector: Tensor) -> None:
    """Writes the result to `vector` [d], and the vectors to keep to `following` [kept, d]."""
    for start, X in source.chunks() if len(following) else source.wide():
        stop = start + X.shape[1]
        plan.reduce(X, vector[start:stop])
        if len(following):
            plan.advance(X, following[:, start:stop])


def _spread(values: Tensor, rows: Tensor, n: int, missing: float) -> Tensor:
    return torch.full((n,), missing, dtype=torch.float64).scatter(0, rows, values)


def _spread_all(values: Sequence[T], rows: Tensor, n: int, missing: T) -> tuple[T, ...]:
    spread = [missing] * n
    for row, value in zip(rows.tolist(), values, strict=True):
        spread[row] = value
    return tuple(spread)
