"""EControl: EF21 whose gap also holds a share eta of what was never sent.

    sender      m = C(eta e + x - h);  e += x - h - m;  h += m
    receiver    H += share * mean(m);  the estimate of the mean of all x is H

No bias, as EF21, and noise in x is averaged over time, as in EF14: Gao, Islamov, Stich 2024. With eta = 0 it is
EF21 to the byte. Measured on a heterogeneous quadratic with top-k: eta = delta, the codec's contraction, is as
quick as anything; 2 delta diverges with a large step size, 6 delta and more with any. The error comes to lie where the
codec is at its worst, of top-k and of signs too (with 8 times its delta a sign no longer converges), so what it does to
usual values counts for nothing. Only k-means is never led there: `Codec.usual_delta`; by its own delta of 1 / size^2
eta would be 0 in all but name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from compressors.core.codec import Codec, CodecError
from compressors.core.scratch import scratch
from compressors.feedback.ef21 import Ef21, encode_bounded
from compressors.feedback.feedback import contractive_only, is_bounded

DIVERGES = 6  # times delta


class EControl(Ef21):
    source = "Gao, Islamov, Stich 2024"
    state_names: ClassVar[tuple[str, ...]] = ("estimate", "error")

    knobs: ClassVar[Mapping[str, str]] = {
        "eta": (
            "share of what was never sent that goes up again, from 0 to 1; "
            "None: the codec's usual delta for the chunk's size"
        ),
    }

    @dataclass(frozen=True, kw_only=True)
    class Options:
        eta: float | None = None

    def __init__(self, eta: float | None = None) -> None:
        """eta; if not said the codec's usual delta for the chunk's size, the largest seen to be safe."""
        if eta is not None and not 0 <= eta <= 1:
            raise CodecError(f"econtrol's eta lies from 0 to 1, not at {eta}")
        self.eta = eta
        self.spelling = "econtrol" if eta is None else f"econtrol:{eta!r}"

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        try:
            return cls(None if argument is None else float(argument))
        except CodecError:
            raise
        except ValueError:
            raise CodecError(
                f"econtrol takes eta, such as econtrol:0.01, or nothing, not {argument!r}"
            ) from None

    def refuse(self, codec: Codec, size: int) -> str | None:
        refusal = contractive_only("econtrol", codec)
        if refusal is not None or self.eta is None:
            return refusal
        delta = codec.usual_delta(size)
        if self.eta < DIVERGES * delta:
            return None
        return (
            f"econtrol's eta of {self.eta:g} is {DIVERGES} or more times the usual delta {delta:.3g} of "
            f"{codec.spelling}, with which it was seen to diverge with any step size; leave it out to have eta = delta"
        )

    def warn(self, codec: Codec, size: int) -> str | None:
        delta = codec.usual_delta(size)
        if self.eta is None or self.eta <= delta:
            return None
        return (
            f"econtrol's eta of {self.eta:g} is above the usual delta {delta:.3g} of {codec.spelling}: "
            "large steps may diverge"
        )

    def encode(self, codec: Codec, x: Tensor, state: dict[str, Tensor], seed: int) -> bytes:
        estimate, error = state["estimate"], state["error"]
        eta = codec.usual_delta(x.numel()) if self.eta is None else self.eta
        gap = scratch("econtrol.gap", x.numel(), torch.float32, x.device)
        torch.sub(x.detach(), estimate, out=gap)
        pending = scratch("econtrol.pending", x.numel(), torch.float32, x.device).copy_(gap)
        if eta:  # not only for speed: adding a zero would change the sign of another
            pending.add_(error, alpha=eta)
        sent = scratch("econtrol.sent", x.numel(), torch.float32, x.device)
        body = encode_bounded(codec, pending, sent, seed)
        if is_bounded(pending):
            estimate.add_(sent)
            error.add_(gap.sub_(sent))
        return body
