"""How far two versions made from the same base moved it, and how far apart they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from muster.model.layout import CHUNK_COORDINATES
from muster.model.modelfile import ModelFile


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far each moved the base (L2), the cosine between both moves and their distance over the committed one's."""

    norm_committed: float
    norm: float
    cosine: float
    distance: float


def compare(base: Path, committed: Path, other: Path) -> Comparison:
    """Of two versions made from the same base, in float64 and by chunks."""
    files = [ModelFile(path) for path in (base, committed, other)]
    try:
        products = torch.zeros(2, 2, dtype=torch.float64)
        apart = 0.0
        for start in range(0, files[0].layout.size, CHUNK_COORDINATES):
            origin, first, second = (
                file.vector[start : start + CHUNK_COORDINATES].double() for file in files
            )
            moves = torch.stack([first - origin, second - origin])
            products += moves @ moves.T
            apart += float((first - second).square().sum())
    finally:
        for file in files:
            file.close()
    one, two = math.sqrt(float(products[0, 0])), math.sqrt(float(products[1, 1]))
    both = one * two
    return Comparison(
        norm_committed=one,
        norm=two,
        cosine=float(products[0, 1]) / both if both else float(one == two),
        distance=math.sqrt(apart) / one if one else math.inf if apart else 0.0,
    )
