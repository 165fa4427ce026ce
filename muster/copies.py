"""A copy of a module for evaluation to do with as it likes: what it keeps in the module is made without gradients, in
another mode or for other examples, and training, or the next version's evaluation, would take it for its own."""

from __future__ import annotations

import copy

from torch import Tensor, nn


def copied(model: nn.Module) -> nn.Module | None:
    """The copy, with what the module keeps outside its `state_dict` too; None where it cannot be copied or there is no
    room for two."""
    # What training left with a graph behind it cannot be copied, and evaluation needs no graph.
    kept = (value for module in model.modules() for value in vars(module).values())
    memo = {id(value): value.detach() for value in kept if isinstance(value, Tensor) and not value.is_leaf}
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, MemoryError, TypeError, NotImplementedError):
        return None
