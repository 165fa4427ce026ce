"""What goes down to the peers: the server's step itself is compressed, so that a version is what peers can decode.

    p = step + e;  m = C(p);  e = p - m;  new version = base + m

The body of C(p) is kept beside the version as its delta. Whoever holds the base makes the new version of it to the last
bit, and the digest proves it; everybody else fetches the version whole. There is one model, the one that peers train
from, and e, the residual, is the coordinator's alone: EF14 (Seide et al. 2014) on the server's side. Whatever the rule
did, it did before.

`down = "replay"` sends, instead of a body of the step, the updates that it is a weighted sum of, each with its share,
see `compressors.core.replay`: the peers repeat the sum.

1-bit Adam's step is a momentum times a scale that has stayed as it is since the warm-up. Divided by it, the step is as
even as what comes up, and one bit will do (Tang et al. 2021); peers fetch the scale once. The warm-up goes down whole.
There all senders go on from the momentum that went down, c; here each goes on from its own. Where all of them are in
the round and the rule is a mean, theirs have the mean a, and what this makes of the next mean is added to it; for a
part of them or another rule it is an approximation, and what it adds up to is bounded:

    m = a + drift;  c = C(m + e);  e = m + e - c;  drift = beta1 (c - a)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

import compressors
from compressors.core.replay import PREFIX, Replay, Term, write
from compressors.feedback.feedback import LOSSLESS
from exchange import optimizers
from exchange.delta import DeltaWriter
from exchange.names import SCALE
from exchange.payload import SCALED
from muster.model.layout import CHUNK_COORDINATES, ParameterLayout
from muster.seeds import derive_seed
from muster.spec.model import REPLAY, RunSpec

DRIFT = "down/drift"


def state_names(spec: RunSpec, base_version: int) -> tuple[str, ...]:
    """The vectors [d] that the downlink keeps from this version to the next."""
    if not compresses(spec) or replays(spec):
        return ()
    names = compressors.build_feedback(spec.compression.down_feedback).state_names
    return (*(f"down/{name}" for name in names), *((SCALE, DRIFT) if _scales(spec, base_version) else ()))


def _scales(spec: RunSpec, base_version: int) -> bool:
    """Whether the step from this version goes down without its scale."""
    return optimizers.find(spec.server).learns_scale and base_version >= spec.compression.warm_up_rounds


def compresses(spec: RunSpec) -> bool:
    """Whether versions come down as encoded steps."""
    return spec.compression.down != LOSSLESS


def replays(spec: RunSpec) -> bool:
    """Whether versions come down as the updates that they are made of."""
    return spec.compression.down == REPLAY


class Downlink(DeltaWriter):
    """One version's step, encoded; where it is scaled, without its scale, which peers have."""

    def __init__(
        self,
        spec: RunSpec,
        layout: ParameterLayout,
        out: Path,
        *,
        base_digest: str,
        round: int,
        base_version: int,
    ) -> None:
        table = spec.compression
        self._scaled = _scales(spec, base_version)
        self._beta = spec.server.beta1
        whole = optimizers.find(spec.server).learns_scale and not self._scaled
        self._codec = compressors.build(LOSSLESS if whole else table.down)
        self._feedback = compressors.build_feedback(table.down_feedback)
        self._seed = derive_seed(spec.seed, "down", round)
        codec = f"{SCALED}{self._codec.spelling}" if self._scaled else self._codec.spelling
        self._step = torch.empty(min(CHUNK_COORDINATES, layout.size))
        super().__init__(codec, layout, out, base_digest=base_digest, round=round)

    def take(self, base: Tensor, new: Tensor, state: Mapping[str, Tensor]) -> None:
        """Makes of `new` [c] what the peers will decode from `base` [c]; `state` [c] each, in place."""
        step = self._step[: len(new)]
        torch.sub(new, base, out=step)
        kept = {name: state[f"down/{name}"] for name in self._feedback.state_names}
        scale, mean = (state[SCALE] if self._scaled else None), step
        if scale is not None:
            mean = step.div_(scale).masked_fill_(scale == 0, 0.0).clone()
            step.add_(state[DRIFT])
        codec = self._codec.at(self.context())
        body = self._feedback.encode(codec, step, kept, derive_seed(self._seed, "codec", self.index))
        codec.decode(body, step)
        if scale is not None:
            torch.sub(step, mean, out=state[DRIFT]).mul_(self._beta)
            step.mul_(scale)
            # Where nothing ever moves, nothing is left to be sent.
            for left in (*kept.values(), state[DRIFT]):
                left.masked_fill_(scale == 0, 0.0)
        torch.add(base, step, out=new)
        self.append(body)


class Replayed(DeltaWriter):
    """One version's step as the sum of the round's updates, which are encoded with `up`."""

    def __init__(self, up: str, layout: ParameterLayout, out: Path, *, base_digest: str, round: int) -> None:
        self._replay = Replay(compressors.build(up))
        self._step = torch.empty(min(CHUNK_COORDINATES, layout.size))
        super().__init__(f"{PREFIX}{up}", layout, out, base_digest=base_digest, round=round)

    def take(self, base: Tensor, new: Tensor, terms: Sequence[Term]) -> None:
        """Makes of `new` [c] what the peers will: `base` [c] and the sum of the terms."""
        body, step = write(terms), self._step[: len(new)]
        self._replay.at(self.context()).decode(body, step)
        torch.add(base, step, out=new)
        self.append(body)
