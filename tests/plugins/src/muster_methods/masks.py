"""Additive masks that cancel: the coordinator learns the mean of the updates, and no single one.

    sent_i = u_i + sum_{j > i} m_ij - sum_{j < i} m_ij        m_ij = m_ji, uniform in +-scale
    sum_i sent_i = sum_i u_i

Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017, without its key
agreement and its recovery of lost peers: here the pairs derive their masks from one secret in the peers' own site data
(`data.mask_secret`), which the coordinator never sees, and a round that lacks a peer is skipped. A mask is a float: it
hides an update so far as `scale` is larger than its values, and rounding stays in the sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from exchange import AggregationRefused, OpenContext, SealContext
from methods import Requirement, SpecValues, demand
from muster.errors import TaskError

SECRET = "mask_secret"
SECRET_CHARACTERS_MIN = 16


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Masks of pairs that cancel in the mean of all peers' updates."""

    name: ClassVar[str] = "masks"
    sums_only: ClassVar[bool] = True
    clip_norm: ClassVar[float] = math.inf
    knobs: ClassVar[dict[str, str]] = {
        "peers": "the sites' names: all of them are asked in each round, and nobody else",
        "scale": "of a mask's values; larger hides more and rounds more: 1e-7 of it stays in the mean",
    }
    peers: tuple[str, ...]
    scale: float = 10.0

    def __post_init__(self) -> None:
        if len(set(self.peers)) < max(2, len(self.peers)):
            raise ValueError(f"peers are two or more different names, not {list(self.peers)}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale is above 0 and finite, not {self.scale}")

    def requires(self, spec: SpecValues) -> Iterator[Requirement]:
        """One weight for all, no loss on the way, every peer in every round, and nothing beside the parameters that
        is made of the data."""
        wanted: dict[str, Any] = {
            "aggregation.rule": "mean",
            "aggregation.pre": (),
            "aggregation.weights": "uniform",
            "aggregation.norm_max": None,
            "compression.up": "identity",
            "compression.feedback": "none",
            "round.quorum": 1.0,
            "round.peers_min": len(self.peers),
            "sampling.policy": "uniform",
            "exchange.buffers": "coordinator",
        }
        for key, value in wanted.items():
            yield from demand(spec, f"masks cancel in a plain mean of all peers: {key} {value}", {key: value})

    def seal(self, values: Tensor, context: SealContext) -> Tensor:
        secret = str(context.site.data.get(SECRET, ""))
        name = context.site.name
        if name not in self.peers or context.senders != len(self.peers):
            raise TaskError(
                "masks.not_among",
                f"{name!r} and {context.senders - 1} others are not those of mechanism.options.peers",
            )
        if len(secret) < SECRET_CHARACTERS_MIN:
            raise TaskError(
                "masks.no_secret",
                f"this site's data have no {SECRET} of at least {SECRET_CHARACTERS_MIN} characters",
                fix="agree on one with the other peers, and set it in the peer's own settings: data.mask_secret",
            )
        sealed = values.double()
        own = self.peers.index(name)
        for other, their in enumerate(self.peers):
            if other != own:
                pair = sorted((name, their))
                parts = (secret, *pair, context.run_id, context.round, context.index)
                sealed.add_(self._mask(parts, len(values)), alpha=1.0 if own < other else -1.0)
        return sealed.float()

    def _mask(self, parts: tuple[Any, ...], size: int) -> Tensor:
        """float64 [size], uniform in +-scale, from the keyed hash as a stream: the same for both of the pair, and when
        a round is done again."""
        text = "\x1f".join(map(str, parts)).encode()
        stream = blake3(text, derive_key_context="muster-methods masks 1").digest(length=4 * size)
        drawn = torch.from_numpy(np.frombuffer(bytearray(stream), dtype="<i4").astype(np.float64))
        return drawn.mul_(self.scale / 2**31)

    def open(self, total: Tensor, context: OpenContext) -> None:
        missing = len(self.peers) - len(set(context.senders))
        if missing or len(context.senders) != len(self.peers):
            raise AggregationRefused(f"the masks of {missing} peers that sent no update do not cancel")
        if len(set(context.weights)) > 1 or len(set(context.rounds)) > 1:
            raise AggregationRefused("masks cancel in updates of one round that weigh alike")

    def norm_max(self, size: int) -> float:
        """Of masks alone the norm is below scale (n - 1) sqrt(d); an update is not longer than that again."""
        return 2 * self.scale * (len(self.peers) - 1) * math.sqrt(size)
