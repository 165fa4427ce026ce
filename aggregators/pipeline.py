"""From a rule and its pre-rules to a plan, and from a plan to the result: geometry, then one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aggregators import registry
from aggregators.options import RuleError, check_integer
from aggregators.plan import Plan
from aggregators.rule import Geometry, Needs, PreMix, PreRule, Rule


def build(
    rule: str, *, pre: Sequence[str] = (), faults: int = 0, options: Mapping[str, Any] | None = None
) -> Pipeline:
    """The rule called `rule` behind the pre-rules `pre`, applied in their order.

    `faults` is f, how many rows may be faulty; `options` are the rule's. Raises `RuleError` with a sentence.

    >>> pipeline = build("trimmed-mean", pre=("arc", "nnm"), faults=1)
    >>> pipeline.refuse(2)
    'arc needs n > 2f: n is 2, f is 1'
    """
    check_integer("aggregation", "faults", faults, minimum=0)
    # The abstract bases are only compared with, never called.
    found = registry.find(registry.RULES, rule, Rule)  # type: ignore[type-abstract]
    before = [registry.find(registry.PRE_RULES, name, PreRule) for name in pre]  # type: ignore[type-abstract]
    if faults and not before and Needs.HONESTY in found.needs:
        raise RuleError(
            f"{rule} bears no faulty update, and faults is {faults}: "
            "choose a robust rule, or put a pre-rule before it"
        )
    return Pipeline(
        rule=registry.construct(found, rule, options or {}, faults=faults),
        pre=tuple(
            registry.construct(cls, name, {}, faults=faults) for cls, name in zip(before, pre, strict=True)
        ),
        faults=faults,
    )


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Pre-rules and a rule that share one f. Pure: the same Gram matrix and weights give the same plan."""

    rule: Rule
    pre: tuple[PreRule, ...]
    faults: int

    @property
    def needs_gram(self) -> bool:
        return any(Needs.GRAM in plugin.needs for plugin in (*self.pre, self.rule))

    @property
    def uses_weights(self) -> bool:
        """Whether weights given to `plan` count: those of a mean do, unless a pre-rule stands before it."""
        return Needs.WEIGHTS in self.rule.needs and not self.pre

    def refuse(self, n: int) -> str | None:
        """One sentence, with the bound, if n updates are too few for f; else None. f is never lowered."""
        if n < 1:
            return "an aggregation needs at least one update: n is 0"
        refusals = (plugin.refuse(n) for plugin in (*self.pre, self.rule))
        return next((sentence for sentence in refusals if sentence), None)

    def plan(self, n: int, gram: Tensor | None = None, weights: Tensor | None = None) -> Plan:
        """Decides how n updates are mixed.

        `gram` [n, n] float64 is read only if `needs_gram`, `weights` [n] of any scale only if `uses_weights`.
        Raises `RuleError` where `refuse(n)` has a sentence, where the weights are no weights, and where more
        than f updates have no finite norm, since then more than f are faulty.
        """
        refusal = self.refuse(n)
        if refusal is not None:
            raise RuleError(refusal)
        geometry = self._geometry(n, gram, weights)
        lost = int((~geometry.finite).sum())
        if lost > self.faults:
            raise RuleError(
                f"{lost} of {n} updates have no finite norm, and no more than f = {self.faults} may be faulty"
            )
        combined: Tensor | None = None
        steps: list[PreMix] = []
        for plugin in self.pre:
            step = plugin.mix(geometry)
            steps.append(step)
            combined = step.matrix if combined is None else step.matrix @ combined
            geometry = _after(step, geometry)
        mix = self.rule.mix(geometry)
        if mix.matrix is not None:
            combined = mix.matrix if combined is None else mix.matrix @ combined
        clauses = zip(*(step.treatment for step in steps), mix.treatment, strict=True)
        return Plan(
            n=n,
            matrix=combined,
            reducer=mix.reducer,
            scores=mix.scores.clone(),
            treatment=tuple("; ".join(row) for row in clauses),
            reason=", then ".join([*(step.reason for step in steps), mix.reason]),
        )

    def _geometry(self, n: int, gram: Tensor | None, weights: Tensor | None) -> Geometry:
        shares = torch.full((n,), 1 / n, dtype=torch.float64)
        if weights is not None and self.uses_weights:
            shares = _normalised(weights, n)
        if not self.needs_gram:
            return Geometry(n=n, finite=torch.ones(n, dtype=torch.bool), weights=shares)
        if gram is None or gram.shape != (n, n):
            found = None if gram is None else tuple(gram.shape)
            raise RuleError(
                f"{self.rule.name} with its pre-rules needs a Gram matrix of {n} rows, not {found}"
            )
        inner, finite = _sound(gram)
        return Geometry(n=n, finite=finite, weights=shares, inner=inner)


def _normalised(weights: Tensor, n: int) -> Tensor:
    shares = weights.detach().to("cpu", torch.float64)
    total = float(shares.sum()) if shares.shape == (n,) else torch.nan
    if not 0 < total < torch.inf or bool((shares < 0).any()):
        raise RuleError(f"weights must be {n} finite numbers that are not negative and not all zero")
    return shares / total


def _sound(gram: Tensor) -> tuple[Tensor, Tensor]:
    """A copy with zero in place of every update without a finite norm, and which updates are finite."""
    inner = gram.detach().to("cpu", torch.float64, copy=True)
    finite = inner.diagonal().isfinite()
    # Two finite norms have a finite product (Cauchy and Schwarz), but a partial sum may overflow before it.
    while bool((wrong := ~inner.isfinite() & finite[:, None] & finite[None, :]).any()):
        finite &= ~_longest(inner, wrong.any(dim=1))
    inner[~finite] = 0.0
    inner[:, ~finite] = 0.0
    return inner, finite


def _longest(inner: Tensor, among: Tensor) -> Tensor:
    squares = inner.diagonal().masked_fill(~among, -1.0)
    return torch.arange(len(squares)) == squares.argmax()


def _after(step: PreMix, geometry: Geometry) -> Geometry:
    """The geometry of the rows of W @ X: K' = W K W^T. All of them are finite, as no lost row is in them."""
    inner = None if geometry.inner is None else step.matrix @ geometry.inner @ step.matrix.T
    return Geometry(
        n=len(step.matrix),
        finite=torch.ones(len(step.matrix), dtype=torch.bool),
        weights=geometry.weights,
        inner=inner,
    )
