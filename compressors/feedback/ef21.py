"""EF21: what is sent is the step from the receiver's estimate towards the update.

    sender      m = C(x - h);  h += m
    receiver    H += share * mean(m);  the estimate of the mean of all x is H

The estimate becomes exact where the updates settle, so there is no bias, however different the senders are:
Richtarik, Sokolov, Fatkhullin 2021. Noise in x is not averaged over time: see `EControl`.
The sender's h and a receiver's own H of that link are the same to the last bit.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from compressors.core.codec import Codec
from compressors.core.scratch import scratch
from compressors.feedback.feedback import Feedback, contractive_only, is_bounded


class Ef21(Feedback):
    spelling = "ef21"
    source = "Richtarik, Sokolov, Fatkhullin 2021"
    state_names: ClassVar[tuple[str, ...]] = ("estimate",)
    receiver_state_names = ("estimate",)
    needs_mean = True

    def refuse(self, codec: Codec, size: int) -> str | None:
        return contractive_only(self.spelling, codec)

    def encode(self, codec: Codec, x: Tensor, state: dict[str, Tensor], seed: int) -> bytes:
        estimate = state["estimate"]
        gap = scratch("ef21.gap", x.numel(), torch.float32, x.device)
        torch.sub(x.detach(), estimate, out=gap)
        sent = scratch("ef21.sent", x.numel(), torch.float32, x.device)
        body = encode_bounded(codec, gap, sent, seed)
        if is_bounded(gap):
            estimate.add_(sent)
        return body

    def receive(self, decoded: Tensor, state: dict[str, Tensor], share: float = 1.0) -> None:
        decoded.copy_(state["estimate"].add_(decoded, alpha=share))


def encode_bounded(codec: Codec, pending: Tensor, sent: Tensor, seed: int) -> bytes:
    """The body of `pending` [size], and in `sent` [size] what it decodes to.

    Where `pending` is not bounded it becomes NaN throughout, so that no receiver takes what the sender cannot
    follow: an EF14 would lose one residual, but here the two ends would differ from then on.
    """
    if not is_bounded(pending):
        pending.fill_(math.nan)
        return codec.encode(pending, seed)
    body = codec.encode(pending, seed)
    codec.decode(body, sent)
    return body
