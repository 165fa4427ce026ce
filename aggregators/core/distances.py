"""Distances whose sums and products cannot overflow."""

from __future__ import annotations

from torch import Tensor

from aggregators.core.rule import Geometry


def scaled_distances(geometry: Geometry) -> tuple[Tensor, float]:
    """Squared distances [n, n], none above 4, of the rows divided by the longest, and how long that is.

    Those of a row that is not finite are 4.
    """
    longest = float(geometry.gram.diagonal().max().clamp(min=0).sqrt())
    if longest == 0:
        return geometry.distances.clamp(max=4.0), 1.0
    return (geometry.distances / longest / longest).clamp(max=4.0), longest
