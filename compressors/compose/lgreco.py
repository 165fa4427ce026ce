"""L-GreCo: for each layer the codec with which all together are smallest, at no more error than one codec for all.

    minimise sum_l size[l, c_l]  subject to  sum_l error[l, c_l] <= budget = alpha sum_l error[l, default]

Markov et al. 2024. Errors are rounded up to buckets of budget / B, so the budget holds for certain; then dynamic
programming over the layers finds the best choice among those, in O(layers * codecs * B).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compressors.core.codec import CodecError

BUCKETS = 10_000
ROUNDING = 1 + 1e-12  # more than the sums and quotients of float64 lose

Table = NDArray[np.float64]  # [layers, codecs]


def choose(
    errors: Table, sizes: Table, *, default: int, alpha: float = 1.0, buckets: int = BUCKETS
) -> tuple[int, ...]:
    """The codec's column for each layer. Raises `CodecError` if none keeps the budget.

    The default for every layer is itself a candidate where alpha is at least 1, so it is never done worse.
    """
    if errors.ndim != 2 or errors.shape != sizes.shape:
        raise ValueError(f"the tables have shapes {errors.shape} and {sizes.shape}")
    if not (np.isfinite(errors).all() and (errors >= 0).all()):
        raise CodecError("an error in the table is negative, infinite or not a number")
    budget = alpha * float(errors[:, default].sum())
    found = _solve(_rounded_up(errors, budget, buckets), sizes, buckets)
    uniform = (default,) * len(errors) if alpha >= 1 else None
    if found is None and uniform is None:
        raise CodecError(f"no choice of these codecs keeps the sum of squared errors within {budget:.3g}")
    candidates = [choice for choice in (found, uniform) if choice is not None]
    rows = np.arange(len(errors))
    return min(candidates, key=lambda choice: float(sizes[rows, np.array(choice, dtype=np.intp)].sum()))


def _rounded_up(errors: Table, budget: float, buckets: int) -> NDArray[np.int64]:
    """In buckets; buckets + 1 for what is more than the whole budget."""
    if budget == 0:
        return np.where(errors > 0, buckets + 1, 0).astype(np.int64)
    scaled = np.ceil(errors / budget * buckets * ROUNDING)
    return np.minimum(scaled, buckets + 1).astype(np.int64)


def _solve(costs: NDArray[np.int64], sizes: Table, buckets: int) -> tuple[int, ...] | None:
    """Least sum of sizes with a sum of costs of at most `buckets`; None if there is none."""
    layers, codecs = costs.shape
    least = np.zeros(buckets + 1)  # [b] the least size of the layers so far at a cost of at most b
    choices = np.zeros((layers, buckets + 1), dtype=np.uint8 if codecs < 256 else np.int32)
    for layer in range(layers):
        following = np.full(buckets + 1, np.inf)
        for codec in range(codecs):
            cost = costs[layer, codec]
            if cost > buckets:
                continue
            total = least[: buckets + 1 - cost] + sizes[layer, codec]
            better = total < following[cost:]
            following[cost:][better] = total[better]
            choices[layer, cost:][better] = codec
        least = following
    if np.isinf(least[buckets]):
        return None
    chosen: list[int] = []
    left = buckets
    for layer in reversed(range(layers)):
        codec = int(choices[layer, left])
        chosen.append(codec)
        left -= int(costs[layer, codec])
    return tuple(reversed(chosen))
