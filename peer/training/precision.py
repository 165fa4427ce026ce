"""Mixed precision where the device has it: forward and backward narrow, the parameters as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

_NARROW = {
    ("cuda", "bfloat16"): torch.bfloat16,
    ("cuda", "float16"): torch.float16,
    ("cpu", "bfloat16"): torch.bfloat16,
}


class Stepper:
    """One optimizer step at a time: backward, clip, step, in the wanted precision or else in float32.

    float16 gradients are scaled up so that they do not vanish, and a step whose gradients overflow is left
    out (Micikevicius et al., Mixed Precision Training, 2018).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Iterable[Tensor],
        *,
        device: torch.device,
        precision: str,
        clip_norm: float | None,
    ) -> None:
        self._optimizer = optimizer
        self._parameters = list(parameters)
        self._clip_norm = clip_norm
        self._device_type = device.type
        self._dtype = _NARROW.get((device.type, precision))
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype is torch.float16)

    def step(self, compute_loss: Callable[[], Tensor]) -> Tensor:
        """Takes one step down the loss; gives the loss before it, detached."""
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = compute_loss()
        torch.autograd.backward(self._scaler.scale(loss))
        if self._clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            clip_grad_norm_(self._parameters, self._clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device_type, dtype=self._dtype, enabled=self._dtype is not None)
