"""What a faulty peer may do, for demonstrations, simulations and tests of the rules.

    forged = forge("optimal-alie", honest, copies=f, pipeline=pipeline)   # honest [h, d]: all that is seen

or chunk by chunk, which holds h x chunk and no more:

    attack = build("optimal-alie")
    forgery = attack.plan(source, copies=f, pipeline=pipeline)            # decided
    for start, X in source.chunks(): forgery.forge(X, out, start)         # out [c] is written
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aggregators.attacks.attack import Aggregation, Attack, Forgery, Memory, View
from aggregators.attacks.backdoor import Backdoor
from aggregators.core import registry
from aggregators.core.pipeline import Pipeline
from aggregators.core.sources import MatrixSource, Source


def build(name: str, **options: Any) -> Attack:
    """The attack called `name`; `RuleError` if there is none or an option is wrong."""
    found = registry.find(registry.ATTACKS, name, Attack)  # type: ignore[type-abstract]
    return registry.construct(found, name, options)


def forge(
    attack: str | Attack,
    honest: Tensor | Source,
    *,
    copies: int = 1,
    pipeline: Pipeline | Aggregation | None = None,
    seed: int = 0,
    memory: Memory | None = None,
) -> Tensor:
    """The update [d] that all `copies` faulty peers send, from `honest` [h, d], as `Attack.plan` has them.

    >>> forge("sign-flip", torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [-2.0, -3.0]
    """
    made = build(attack) if isinstance(attack, str) else attack
    source = MatrixSource(honest) if isinstance(honest, Tensor) else honest
    forgery = made.plan(source, copies=copies, pipeline=pipeline, seed=seed, memory=memory)
    out: Tensor | None = None
    for start, chunk in source.chunks():
        if out is None:
            out = chunk.new_empty(source.size)
        forgery.forge(chunk, out[start : start + chunk.shape[1]], start)
    return torch.empty(0) if out is None else out


__all__ = ["Aggregation", "Attack", "Backdoor", "Forgery", "Memory", "View", "build", "forge"]
