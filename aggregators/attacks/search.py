"""The best member of a family of updates, start + t * along, against a known pipeline.

The best is the one that takes the aggregate farthest from the mean of the honest updates. The factors t are
tried over a wide logarithmic grid that leaves zero out, so the search never ends at a forged update that does
nothing, and then more finely around the best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregators.attacks.attack import View
from aggregators.attacks.combination import Combination, Direction, extended
from aggregators.core.gram import Gram
from aggregators.core.options import RuleError
from aggregators.core.pipeline import Pipeline
from aggregators.core.plan import Plan
from aggregators.core.rule import Needs
from aggregators.core.survey import Survey

GRID = 48  # factors tried at first, over both signs together
FINER = (5, 5)  # then inside the two intervals around the best, again and again

_MORE = Needs.TRUSTED | Needs.STATE | Needs.KEYS  # what a pipeline does not tell by itself


@dataclass(frozen=True, kw_only=True)
class Family:
    """start + t * along, both shares [h + 1] of the updates seen and the row `direction` behind them.

    The magnitude of t goes from `low` to `high`, both above zero, with both signs if `both_signs`.
    """

    start: Tensor
    along: Tensor
    direction: Direction
    low: float
    high: float
    both_signs: bool = False

    def member(self, t: float) -> Tensor:
        return self.start + t * self.along


def strongest(view: View, family: Family) -> Combination:
    """The member of the family that does most harm to the view's pipeline."""
    assert view.pipeline is not None
    harm = _Harm(view, family)
    ratio = math.log(family.high / family.low)
    count = GRID // 2 if family.both_signs else GRID
    magnitudes = [family.low * math.exp(ratio * i / (count - 1)) for i in range(count)]
    tried = [*(-t for t in magnitudes), *magnitudes] if family.both_signs else magnitudes
    best, most = _best(tried, harm.of(tried))
    step = ratio / (count - 1)
    for points in FINER:
        finer = [
            math.copysign(min(max(abs(best) * math.exp(step * offset), family.low), family.high), best)
            for offset in (2 * (i + 1) / (points + 1) - 1 for i in range(points))
            if offset
        ]
        found, value = _best(finer, harm.of(finer))
        if value > most:
            best, most = found, value
        step *= 2 / (points + 1)
    return Combination(shares=family.member(best), direction=family.direction)


def _best(tried: Sequence[float], harms: Sequence[float]) -> tuple[float, float]:
    """The first of the greatest harm."""
    index = max(range(len(tried)), key=harms.__getitem__)
    return tried[index], harms[index]


class _Harm:
    """Squared distance of the aggregate from the honest mean, for each factor of a family.

    A pipeline decides on the Gram matrix of all updates, which follows from that of the honest ones and the
    direction, `C K C^T`; so does the distance, if its result is a sum of rows. Only a coordinate-wise end is
    tried on the columns themselves.
    """

    def __init__(self, view: View, family: Family) -> None:
        self._view = view
        self._family = family
        self._pipeline = view.pipeline if isinstance(view.pipeline, Pipeline) else None
        if self._pipeline is not None:
            self._grams = _survey(view, self._pipeline, family.direction)

    def of(self, factors: Sequence[float]) -> list[float]:
        if self._pipeline is None:
            return self._on_whole(factors)
        plans = [self._plan(self._pipeline, t) for t in factors]
        harms = [0.0] * len(plans)
        swept: list[tuple[int, Tensor, Plan]] = []
        for index, (t, plan) in enumerate(zip(factors, plans, strict=True)):
            if plan.linear:
                off = self._pool(t).T @ plan.weights - self._centre()
                harms[index] = float(off @ self._grams[0] @ off)
            else:
                swept.append((index, self._family.member(t), plan))
        if swept:
            self._sweep(swept, harms)
        return harms

    def _pool(self, t: float) -> Tensor:
        """C [h + copies, h + 1]: all updates as sums of the honest ones and the direction."""
        h = self._view.rows
        honest = torch.eye(h, h + 1, dtype=torch.float64)
        return torch.cat([honest, self._family.member(t).expand(self._view.copies, -1)])

    def _centre(self) -> Tensor:
        return torch.cat([self._view.mean, torch.zeros(1, dtype=torch.float64)])

    def _plan(self, pipeline: Pipeline, t: float) -> Plan:
        pool = self._pool(t)
        inner = pool @ self._grams @ pool.T
        inner = (inner + inner.mT) / 2
        return pipeline.plan(len(pool), inner[0], samples=inner[1:], seed=self._view.seed)

    def _sweep(self, tried: Sequence[tuple[int, Tensor, Plan]], harms: list[float]) -> None:
        h, copies = self._view.rows, self._view.copies
        for _, chunk in self._view.chunks():
            rows = extended(chunk, self._family.direction)
            pool = chunk.new_empty(h + copies, chunk.shape[1])
            pool[:h] = chunk
            mean = chunk.mean(dim=0)
            out = torch.empty_like(mean)
            for index, member, plan in tried:
                pool[h:] = member.to(rows) @ rows
                plan.reduce(pool, out)
                harms[index] += float((out - mean).square().sum(dtype=torch.float64))

    def _on_whole(self, factors: Sequence[float]) -> list[float]:
        """For a function: the whole updates at once."""
        aggregate = self._view.pipeline
        assert aggregate is not None
        assert not isinstance(aggregate, Pipeline)
        honest = torch.cat([chunk.clone() for _, chunk in self._view.chunks()], dim=1)
        rows = extended(honest, self._family.direction)
        mean = honest.mean(dim=0)
        harms: list[float] = []
        for t in factors:
            forged = self._family.member(t).to(rows) @ rows
            out = aggregate(torch.cat([honest, forged.expand(self._view.copies, -1)]))
            harms.append(float((out - mean).square().sum(dtype=torch.float64)))
        return harms


def _survey(view: View, pipeline: Pipeline, direction: Direction) -> Tensor:
    """[1 + draws, h + 1, h + 1] float64: the Gram matrix of the updates seen and the direction behind them,
    and those over the coordinates that the rule draws; one pass."""
    if pipeline.needs & _MORE:
        raise RuleError(
            f"{pipeline.rule.name} needs a trusted update or keeps vectors: give the attack a function that "
            "aggregates"
        )
    survey = Survey(pipeline, view.rows + 1, view.source.size, seed=view.seed)
    parts: list[Tensor] = []
    for start, chunk in view.chunks():
        rows = extended(chunk, direction)
        part = survey.measure(start, rows)
        if not pipeline.needs_gram:
            gram = Gram(len(rows))
            gram.add(rows)
            part[0] = gram.matrix
        parts.append(part)
    return torch.stack(parts).sum(dim=0)
