"""EControl: EF21 whose gap also holds a share eta of what was never sent.

    sender      m = C(eta e + x - h);  e += x - h - m;  h += m
    receiver    H += share * mean(m);  the estimate of the mean of all x is H

No bias, as EF21, and noise in x is averaged over time, as in EF14: Gao, Islamov, Stich 2024. With eta = 0 it is
EF21 to the byte. Measured on a heterogeneous quadratic with top-k: eta = delta, the codec's contraction, is as
quick as anything; 2 delta diverges with a large step size, 6 delta and more with any.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from compressors._scratch import scratch
from compressors.codec import Codec, CodecError
from compressors.ef21 import Ef21, encode_bounded
from compressors.feedback import contractive_only, is_bounded

DIVERGES = 6  # times delta


class EControl(Ef21):
    source = "Gao, Islamov, Stich 2024"
    state_names: ClassVar[tuple[str, ...]] = ("estimate", "error")

    def __init__(self, eta: float | None = None) -> None:
        """eta; if not said the delta that the codec declares for the chunk's size, the largest known to be safe."""
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
        delta = codec.delta(size)
        if self.eta < DIVERGES * delta:
            return None
        return (
            f"econtrol's eta of {self.eta:g} is {DIVERGES} or more times the delta {delta:.3g} of {codec.spelling}, "
            "which diverges with any step size; leave it out to have eta = delta"
        )

    def warn(self, codec: Codec, size: int) -> str | None:
        if self.eta is None or self.eta <= codec.delta(size):
            return None
        return (
            f"econtrol's eta of {self.eta:g} is above the delta {codec.delta(size):.3g} of {codec.spelling}: "
            "large steps may diverge"
        )

    def encode(self, codec: Codec, x: Tensor, state: dict[str, Tensor], seed: int) -> bytes:
        estimate, error = state["estimate"], state["error"]
        eta = codec.delta(x.numel()) if self.eta is None else self.eta
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
