"""MASHA's server: extragradient whose half steps are compressed, see `compressors.feedback.masha`.

Its deltas are -F, the operator at the version that the round began with.

at an anchor  w = base;  slope = delta;  half = w + lr slope
else          z = base + lr (delta - slope), base being the last half step
              the next version is z itself where it is to be an anchor, else half = tau z + (1 - tau) w + lr slope

tau is `server.momentum`. Beznosikov et al. 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from compressors.core.registry import build
from compressors.feedback.feedback import DELTA_ENOUGH
from compressors.feedback.masha import is_anchor
from exchange.optimizers.base import ServerOptimizer
from methods import Requirement, SpecValues, demand
from muster.model.layout import CHUNK_COORDINATES
from muster.spec.model import REPLAY

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Masha(ServerOptimizer):
    """Extragradient with compressed half steps; `momentum` is tau, the chance that an anchor stays."""

    state_names: ClassVar[tuple[str, ...]] = ("anchor", "slope")

    knobs: ClassVar[Mapping[str, str]] = {
        **ServerOptimizer.knobs,
        "momentum": "tau, the chance that an anchor stays, above 0 and below 1",
    }

    lr: float = 1.0
    momentum: float = 0.9

    def requires(self, spec: SpecValues) -> Iterator[Requirement]:
        """Half steps at the server, and of each peer its operator's difference from an anchor."""
        feedback = f"masha:{self.momentum!r}"
        yield from demand(
            spec,
            f"masha needs compression.feedback {feedback}, of server.momentum as its tau",
            {"compression.feedback": feedback},
        )
        operator = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
        yield from demand(
            spec,
            "masha needs of each peer its operator and no more: train.steps 1, train.lr 1, optimizer sgd without "
            "momentum and weight_decay, and a batch_size that takes in all examples, which each peer checks",
            {
                "train.epochs": None,
                "train.steps": 1,
                "train.lr": 1.0,
                **{f"train.{key}": value for key, value in operator.items()},
            },
        )
        yield from demand(
            spec,
            "masha compares operators as they are, and train.clip_norm shortens some of them: leave it out",
            {"train.clip_norm": None},
        )
        everybody = {"sampling.policy": "uniform", "sampling.count": None}
        if spec["sampling"]["fraction"] != 1:
            everybody["sampling.fraction"] = None
        yield from demand(
            spec,
            "masha compares each peer with its own anchor, so every round asks all: leave out [sampling]",
            everybody,
        )
        yield from demand(
            spec,
            "masha compares each peer with its own anchor, so every round waits for all: round.quorum 1",
            {"round.quorum": 1.0},
        )
        yield from demand(
            spec,
            "masha extrapolates at the server, and train.worker_momentum would do so too: 0",
            {"train.worker_momentum": 0.0},
        )
        yield from _goes_down_whole(spec)

    def step(self, base: Tensor, delta: Tensor, state: Mapping[str, Tensor], out: Tensor) -> None:
        anchor, slope = state["anchor"], state["slope"]
        lr, tau = self.lr, self.momentum
        if is_anchor(tau, self.version):
            anchor.copy_(base)
            slope.copy_(delta)
            torch.add(base, slope, alpha=lr, out=out)
            return
        torch.add(base, delta.sub_(slope), alpha=lr, out=out)
        if not is_anchor(tau, self.version + 1):
            torch.lerp(anchor, out, tau, out=out).add_(slope, alpha=lr)


def _goes_down_whole(spec: SpecValues) -> Iterator[Requirement]:
    """What goes down is the whole step, the way to and from the anchor with it, and not, as in the paper, only the
    answer to what came up: where a good part of that stays behind, nothing pulls a saddle's wrong step back."""
    if spec["compression"]["down"] == REPLAY:  # no codec, and refused for what it is
        return
    down = build(spec["compression"]["down"])
    if not down.contractive or down.delta(CHUNK_COORDINATES) < DELTA_ENOUGH:
        yield Requirement(
            "masha's step must go down nearly whole, or it runs away: compression.down identity, bf16 or int8, "
            f"not {down.spelling}",
            {"compression.down": "identity"},
        )
