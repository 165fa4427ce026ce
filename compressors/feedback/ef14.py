"""EF14: what the codec loses is kept and added to the next round's update.

    p = x + e;  send C(p);  e = p - C(p)

Sent so far and residual together are always all that was put in. With a contractive codec the residual stays
bounded and SGD converges, with a bias of order step size squared. What is decoded is itself an update, so any
rule goes with it. Seide et al. 2014; Stich et al. 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compressors.core.codec import Codec
from compressors.core.scratch import scratch
from compressors.feedback.feedback import Feedback, contractive_only, is_bounded


class Ef14(Feedback):
    spelling = "ef14"
    source = "Seide et al. 2014; Stich et al. 2018"
    state_names = ("residual",)

    def refuse(self, codec: Codec, size: int) -> str | None:
        return contractive_only(self.spelling, codec)

    def encode(self, codec: Codec, x: Tensor, state: dict[str, Tensor], seed: int) -> bytes:
        residual = state["residual"]
        pending = scratch("ef14.pending", x.numel(), torch.float32, x.device)
        torch.add(x.detach(), residual, out=pending)
        body = codec.encode(pending, seed)
        if is_bounded(pending):
            decoded = scratch("ef14.decoded", x.numel(), torch.float32, x.device)
            codec.decode(body, decoded)
            torch.sub(pending, decoded, out=residual)
        return body
