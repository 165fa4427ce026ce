"""From a rule and its pre-rules to a plan, and from a plan to the result: geometry, then one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aggregators.core import registry
from aggregators.core.composition import CompositionBuilder
from aggregators.core.gram import sound
from aggregators.core.options import RuleError, check_integer, check_seed, integral
from aggregators.core.plan import Plan
from aggregators.core.rule import Geometry, Needs, PreRule, Rule
from methods.spelling import split


def build(
    rule: str, *, pre: Sequence[str] | str = (), faults: int = 0, options: Mapping[str, Any] | None = None
) -> Pipeline:
    """The rule called `rule` behind the pre-rules `pre`, applied in their order.

    `faults` is f, how many rows may be faulty; `options` are the rule's. A pre-rule's own option stands behind
    its name: "bucketing:2"; a single one needs no sequence around it. Raises `RuleError` with a sentence.

    >>> pipeline = build("trimmed-mean", pre=("arc", "nnm"), faults=1)
    >>> pipeline.refuse(2)
    'arc needs n > 2f: n is 2, f is 1'
    """
    faults = check_integer("aggregation", "faults", faults, minimum=0)
    # The abstract base is only compared with, never called.
    found = registry.find(registry.RULES, rule, Rule)  # type: ignore[type-abstract]
    before = tuple(_pre_rule(spelling, faults) for spelling in ([pre] if isinstance(pre, str) else pre))
    if faults and Needs.HONESTY in found.needs and not any(plugin.bounds_norms for plugin in before):
        raise RuleError(
            f"{rule} bears no faulty update, and faults is {faults}: "
            "choose a robust rule, or put a pre-rule before it that clips, such as arc"
        )
    mixed = next((plugin.name for plugin in before if not plugin.keeps_rows), None)
    if mixed and (Needs.KEYS | Needs.TRUSTED) & found.needs:
        raise RuleError(f"{rule} has to know whose update a row is, and {mixed} makes one row of several")
    return Pipeline(
        rule=registry.construct(found, rule, options or {}, faults=faults), pre=before, faults=faults
    )


def _pre_rule(spelling: str, faults: int) -> PreRule:
    name, argument = split(spelling)
    found = registry.find(registry.PRE_RULES, name, PreRule)  # type: ignore[type-abstract]
    options = {} if argument is None else registry.positional(found, name, argument)
    return registry.construct(found, name, options, faults=faults)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Pre-rules and a rule that share one f. Pure: the same survey, weights and seed give the same plan."""

    rule: Rule
    pre: tuple[PreRule, ...]
    faults: int

    @property
    def needs(self) -> Needs:
        together = self.rule.needs
        for plugin in self.pre:
            together |= plugin.needs
        return together

    @property
    def needs_gram(self) -> bool:
        return Needs.GRAM in self.needs

    @property
    def needs_survey(self) -> bool:
        """Whether the columns have to be swept once before anything can be decided."""
        return bool((Needs.GRAM | Needs.SAMPLES) & self.needs)

    @property
    def uses_weights(self) -> bool:
        """Whether weights given to `plan` count: those of a mean do, unless a pre-rule stands before it."""
        return Needs.WEIGHTS in self.rule.needs and not self.pre

    def refuse_sums_only(self, mechanism: str = "secure aggregation") -> str | None:
        """Why it cannot run on the sum of the updates alone, which is all that the mechanism shows."""
        if not self.pre and self.rule.needs in {Needs.HONESTY, Needs.HONESTY | Needs.WEIGHTS}:
            return None  # it looks at no row, and so believes every one
        names = " and ".join(plugin.name for plugin in (*self.pre, self.rule))
        return f"{mechanism} shows nothing but the sum of the updates, and {names} must see each by itself"

    def state_names(self, keys: Sequence[str]) -> tuple[str, ...]:
        """The vectors [d] that the rule keeps from round to round, for the updates that `keys` name."""
        return self.rule.state_names(keys)

    def refuse(self, n: int) -> str | None:
        """One sentence, with the bound, if n updates are too few for f; else None. f is never lowered."""
        if n < 1:
            return "an aggregation needs at least one update: n is 0"
        rows = n
        for plugin in self.pre:
            if sentence := plugin.refuse(rows):
                return sentence
            rows = plugin.rows(rows)
        return self.rule.refuse(rows)

    def plan(
        self,
        n: int,
        gram: Tensor | None = None,
        *,
        samples: Tensor | None = None,
        weights: Tensor | None = None,
        kept: int = 0,
        trusted: int | None = None,
        seed: int = 0,
    ) -> Plan:
        """Decides how n updates, and behind them the rule's `kept` vectors, are mixed.

        `gram` [n + kept, n + kept] and `samples` [draws, n, n] are float64, as a `Survey` has them. They,
        `weights` [n] of any scale, `trusted` (a row) and `seed` are read only where the pipeline needs them.
        Raises `RuleError` where `refuse(n)` has a sentence, where something is missing or of a wrong shape,
        and where more than f updates have no finite norm, since then more than f are faulty.
        """
        if refusal := self.refuse(n):
            raise RuleError(refusal)
        geometry = self._geometry(
            n, kept, gram=gram, samples=samples, weights=weights, trusted=trusted, seed=seed
        )
        lost = int((~geometry.finite).sum())
        if lost > self.faults:
            raise RuleError(
                f"{lost} of {n} updates have no finite norm, and no more than f = {self.faults} may be faulty"
            )
        course = CompositionBuilder(n, kept)
        for plugin in self.pre:
            geometry = course.take(plugin.mix(geometry), geometry)
        return course.finish(self.rule.mix(geometry))

    def _geometry(
        self,
        n: int,
        kept: int,
        *,
        gram: Tensor | None,
        samples: Tensor | None,
        weights: Tensor | None,
        trusted: int | None,
        seed: int,
    ) -> Geometry:
        seed = check_seed(seed)
        shares = torch.full((n,), 1 / n, dtype=torch.float64)
        if weights is not None:
            declared = checked_weights(weights, n)
            shares = _normalised(declared) if self.uses_weights else shares
        finite = torch.ones(n, dtype=torch.bool)
        inner = None
        if self.needs_gram:
            inner, finite = sound(self._fitting("a Gram matrix", gram, (n + kept, n + kept)), n)
        drawn = None
        if (sampling := self.rule.sampling) is not None:
            drawn = self._fitting("sampled Gram matrices", samples, (sampling.draws, n, n)).clone()
            whole = drawn.isfinite().all(dim=0)
            finite = finite & whole.diagonal()
            drawn[:, ~finite] = 0.0
            drawn[:, :, ~finite] = 0.0
        if Needs.TRUSTED in self.needs:
            trusted = integral(trusted)
            if trusted is None or not 0 <= trusted < n:
                raise RuleError(f"{self.rule.name} needs a trusted row from 0 to {n - 1}, not {trusted}")
            if not bool(finite[trusted]):
                raise RuleError("the trusted update has no finite norm")
        else:
            trusted = None
        return Geometry(
            n=n, finite=finite, weights=shares, inner=inner, samples=drawn, trusted=trusted, seed=seed
        )

    def _fitting(self, what: str, given: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        if given is None or given.shape != shape:
            found = None if given is None else tuple(given.shape)
            raise RuleError(
                f"{self.rule.name} with its pre-rules needs {what} of {shape[-1]} rows, not {found}"
            )
        return given.detach().to("cpu", torch.float64)


def checked_weights(weights: object, n: int) -> Tensor:
    """`weights`, a tensor or a sequence of n numbers, as [n] float64; `RuleError` if they are no weights."""
    wrong = RuleError(f"weights must be {n} finite numbers that are not negative")
    if isinstance(weights, Tensor) and (weights.is_complex() or weights.device.type == "meta"):
        raise wrong
    try:
        declared = torch.as_tensor(weights, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise wrong from error
    if declared.shape != (n,) or not bool((declared.isfinite() & (declared >= 0)).all()):
        raise wrong
    return declared


def _normalised(weights: Tensor) -> Tensor:
    greatest = weights.max()
    if greatest == 0:
        raise RuleError(f"the weights of the {len(weights)} updates that count must not all be zero")
    total = weights.sum()
    return weights / total if total.isfinite() else weights / greatest / (weights / greatest).sum()
