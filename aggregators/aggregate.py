"""The whole road in one call: admission, survey, plan, sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from aggregators.options import RuleError
from aggregators.pipeline import build
from aggregators.plan import Plan
from aggregators.sources import Behind, Chosen, MatrixSource, Source, Widened
from aggregators.survey import Survey

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """`vector` [d], and for each of the n updates its share (`weights` [n] float64), the rule's own figure
    (`scores` [n] float64, NaN of an update that was rejected), whether it has any share, and a sentence on
    how it was treated. `state` are the vectors to hand in with the next round, once this one stands.
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
    pre: Sequence[str] = ("arc", "nnm"),
    *,
    faults: int = 0,
    weights: Tensor | None = None,
    seed: int = 0,
    trusted: int | None = None,
    keys: Sequence[str] | None = None,
    state: Mapping[str, Tensor] | None = None,
    admitted: bool = False,
    out: Tensor | None = None,
    **options: Any,
) -> Aggregate:
    """Makes one vector of n updates: a matrix [n, d] of floats, or a source of column chunks.

    Of a source no more than n x chunk is held; half precision is worked out in float32. An update with a NaN
    or an infinity is rejected: it counts for nothing, and f stays as declared. `admitted` says that all are
    known to be finite, which spares a pass under a rule that needs no distances. `weights` [n] count for a
    mean alone, `trusted` is the row that some rules ask for, `keys` name the updates to a rule that remembers
    peers (by default their numbers), `state` is what the round before left. `out` [d] takes the result
    instead of new memory. Inputs are never changed. Raises `RuleError` with a sentence where f is too great
    for n, or the rule, its options or its input are not as they must be.

    >>> updates = torch.tensor([[1.0, 2.0], [1.2, 2.2], [0.8, 1.8], [9e9, -9e9]])
    >>> aggregate(updates, "median", pre=(), faults=1).vector
    tensor([1.1000, 1.9000])
    """
    pipeline = build(rule, pre=pre, faults=faults, options=options)
    source = _source(updates)
    n, size = source.n, source.size
    if not n or not size:
        raise RuleError(f"there is nothing to aggregate: {n} updates of {size} coordinates")
    names = [str(row) for row in range(n)] if keys is None else list(keys)
    if len(names) != n or len(set(names)) != n:
        raise RuleError(f"keys must be {n} different names")
    accepted = torch.ones(n, dtype=torch.bool) if admitted else _finite(source)
    rows = accepted.nonzero().flatten()
    if trusted is not None and not (0 <= trusted < n and bool(accepted[trusted])):
        raise RuleError(f"the trusted update must be one of the {n}, and finite")
    if len(rows) < n:
        source = Chosen(source, rows)
        names = [names[row] for row in rows.tolist()]
        weights = None if weights is None else weights[rows.to(weights.device)]
        trusted = None if trusted is None else int((rows == trusted).nonzero())
    if refusal := pipeline.refuse(len(rows)):
        lost = f", as {n - len(rows)} of {n} updates are not finite" if len(rows) < n else ""
        raise RuleError(f"{refusal}{lost}")
    kept = pipeline.state_names(names)
    vectors = [_kept(state or {}, name, size) for name in kept]
    whole = Behind(source, vectors)
    survey = Survey(pipeline, len(rows), size, kept=len(kept), seed=seed)
    if survey.needed:
        for start, X in whole.chunks():
            survey.add(start, X)
    plan = survey.plan(weights=weights, trusted=trusted)
    half = isinstance(updates, Tensor) and updates.dtype.itemsize < 4
    vector, following = _sweep(whole, plan, len(kept), None if half else out)
    if isinstance(updates, Tensor) and half:
        vector = vector.to(updates.dtype) if out is None else out.copy_(vector)
    if not _all_finite(vector):
        raise RuleError("the aggregate has values that are not finite: more updates than f overflow")
    return Aggregate(
        vector=vector,
        weights=_spread(plan.weights, rows, n, 0.0),
        scores=_spread(plan.scores, rows, n, torch.nan),
        selected=_spread_all(plan.selected, rows, n, False),
        treatment=_spread_all(plan.treatment, rows, n, "rejected: it has a NaN or an infinity"),
        reason=plan.reason,
        state=dict(zip(kept, following, strict=True)),
    )


def _source(updates: Tensor | Source) -> Source:
    if not isinstance(updates, Tensor):
        return updates
    if updates.dim() != 2 or not updates.dtype.is_floating_point:
        raise RuleError(f"updates are a matrix of floats, not {tuple(updates.shape)} {updates.dtype}")
    source = MatrixSource(updates)
    return source if updates.dtype.itemsize >= 4 else Widened(source)


def _finite(source: Source) -> Tensor:
    """Which rows have neither a NaN nor an infinity [n]."""
    accepted = torch.ones(source.n, dtype=torch.bool)
    for _, X in source.chunks():
        least, greatest = torch.aminmax(X, dim=1)  # a NaN goes through both
        accepted &= (least.isfinite() & greatest.isfinite()).cpu()
    return accepted


def _all_finite(vector: Tensor) -> bool:
    if vector.device.type == "cpu" and vector.dtype.itemsize >= 4:  # numpy knows no bfloat16
        # A sum that is finite proves every term so; numpy's does not wake torch's threads, which on a busy machine
        # costs more than all of the sum.
        with np.errstate(over="ignore", invalid="ignore"):
            if bool(np.isfinite(vector.numpy().sum())):
                return True
    return bool(vector.isfinite().all())


def _kept(state: Mapping[str, Tensor], name: str, size: int) -> Tensor:
    vector = state.get(name)
    if vector is None:
        return torch.zeros(size)
    if vector.shape != (size,) or not bool(vector.isfinite().all()):
        raise RuleError(f"the state {name!r} must be {size} finite numbers")
    return vector


def _sweep(source: Behind, plan: Plan, kept: int, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """The result [d], and the vectors to keep [kept, d], in the updates' type and on their device."""
    vector, following = out, None
    for start, X in source.chunks() if kept else source.wide():
        stop = start + X.shape[1]
        if vector is None:
            vector = torch.empty(source.size, dtype=X.dtype, device=X.device)
        if following is None:
            following = torch.empty(kept, source.size, dtype=X.dtype, device=X.device)
        plan.reduce(X, vector[start:stop])
        if kept:
            plan.advance(X, following[:, start:stop])
    if vector is None or following is None:
        raise RuleError("the source of updates has no chunk")
    return vector, following


def _spread(values: Tensor, rows: Tensor, n: int, missing: float) -> Tensor:
    return torch.full((n,), missing, dtype=torch.float64).scatter(0, rows, values)


def _spread_all(values: Sequence[T], rows: Tensor, n: int, missing: T) -> tuple[T, ...]:
    spread = [missing] * n
    for row, value in zip(rows.tolist(), values, strict=True):
        spread[row] = value
    return tuple(spread)
