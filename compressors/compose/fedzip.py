"""FedZip: top-k, two centroids for what is kept, coded indices, entropy coding; by itself 30 to 50 times smaller.

Malekijoo et al. 2021: of each layer the largest values are kept, clustered around three centroids of which one is zero,
and coded as positions, whichever coding is smallest. Here the chunk is the layer; what top-k leaves out is the cluster
of zero, so two centroids are left for what is kept and nothing that was kept becomes zero again. It is the composition
"topk:FRACTION+kmeans:2+auto+zstd" under the name that it is known by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from compressors.compose.composed import Composed, Parts
from compressors.core.entropy import Zstd
from compressors.quantizers.kmeans import KMeans
from compressors.sparsifiers.sparsifier import check_fraction, fraction_of
from compressors.sparsifiers.topk import TopK


class FedZip(Composed):
    example = "fedzip:0.01"
    source = "Malekijoo et al. 2021"

    knobs: ClassVar[Mapping[str, str]] = {
        "fraction": "share of coordinates to keep, above 0 and up to 1",
    }

    @dataclass(frozen=True, kw_only=True)
    class Options:
        fraction: float

        def __post_init__(self) -> None:
            check_fraction("fedzip", self.fraction)

    def __init__(self, fraction: float) -> None:
        """The fraction of coordinates to keep, above 0 and up to 1."""
        super().__init__(Parts(sparsifier=TopK(fraction), values=KMeans(2), zstd=Zstd()))
        self.fraction = fraction
        self.spelling = f"fedzip:{fraction!r}"

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        return cls(fraction_of("fedzip", argument))

    def sharing(self, share: Callable[[float], float]) -> FedZip:
        return FedZip(share(self.fraction))
