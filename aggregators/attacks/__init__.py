"""What a faulty peer may do, for demonstrations, simulations and tests of the rules.

attack = attacks.build("optimal-alie")
forgery = attack.plan(chunks, copies=f, pipeline=pipeline)      # decided, from all that is seen
for X, out, start in columns: forgery.forge(X, out, start)    # written, chunk by chunk

forged = attacks.forge("optimal-alie", honest, copies=f, pipeline=pipeline)   # [h, d] to [d], in one go
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aggregators import registry
from aggregators.attacks.attack import Aggregation, Attack, Columns, Forgery, Memory, View
from aggregators.attacks.backdoor import Backdoor
from aggregators.pipeline import Pipeline

_CHUNK_COLUMNS = 1 << 18


def build(name: str, **options: Any) -> Attack:
    """The attack called `name`; `RuleError` if there is none or an option is wrong."""
    found = registry.find(registry.ATTACKS, name, Attack)  # type: ignore[type-abstract]
    return registry.construct(found, name, options)


def forge(
    attack: str | Attack,
    honest: Tensor,
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
    chunks = torch.split(honest, _CHUNK_COLUMNS, dim=1)
    forgery = made.plan(chunks, copies=copies, pipeline=pipeline, seed=seed, memory=memory)
    out = honest.new_empty(honest.shape[1])
    start = 0
    for chunk in chunks:
        stop = start + chunk.shape[1]
        forgery.forge(chunk, out[start:stop], start)
        start = stop
    return out


__all__ = ["Aggregation", "Attack", "Backdoor", "Columns", "Forgery", "Memory", "View", "build", "forge"]
