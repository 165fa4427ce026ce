"""How well a model does on a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class HasLoss(Protocol):
    """A task, as far as evaluating a classifier goes."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor: ...


def evaluate_classifier(
    task: HasLoss, model: nn.Module, dataset: Dataset[Any], *, batch_size: int = 256
) -> dict[str, float]:
    """`loss` (mean of the task's own loss over the examples), `accuracy` and `examples`.

    Runs on the device that the model is on, in evaluation mode, without gradients; the model's mode is put
    back. An empty data set gives {}. `accuracy` is the share of targets met by the arg max of the model's
    output over its classes ([b, classes], [b, classes, ...] as `cross_entropy` has it, or [b, ...,
    classes]); it is left out where targets are not whole numbers of such a shape.
    """
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    last: list[Any] = [None]  # what the model gave when the loss asked it, so that it is asked once

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        last[0] = output

    loss_sum, examples, right, targets_seen = 0.0, 0, 0, 0
    was_training = model.training
    hook = model.register_forward_hook(keep)
    model.eval()
    try:
        with torch.no_grad():  # a tensor that is made in inference mode and kept could never be trained with
            for raw in DataLoader(dataset, batch_size=batch_size):
                batch = to_device(raw, device)
                size = batch_length(batch)
                last[0] = None
                loss_sum += float(task.loss(model, batch)) * size
                examples += size
                met = _targets_met(last[0], batch)
                if met is not None:
                    right += met[0]
                    targets_seen += met[1]
    finally:
        hook.remove()
        model.train(was_training)
    if examples == 0:
        return {}
    found = {"loss": loss_sum / examples, "examples": float(examples)}
    if targets_seen:
        found["accuracy"] = right / targets_seen
    return found


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor in it on `device`; tuples, lists and dicts keep their shape."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [to_device(value, device) for value in batch]
    return batch


def batch_length(batch: Any) -> int:
    """Examples in a batch: the length of its first tensor. Raises `TypeError` if it holds none."""
    if isinstance(batch, Tensor):
        return batch.shape[0]
    inner = list(batch.values()) if isinstance(batch, Mapping) else batch
    if isinstance(inner, Sequence) and inner:
        return batch_length(inner[0])
    raise TypeError(f"a batch must hold tensors, but is a {type(batch).__name__}")


def _targets_met(output: Any, batch: Any) -> tuple[int, int] | None:
    if not (isinstance(output, Tensor) and isinstance(batch, list) and len(batch) == 2):
        return None
    targets = batch[1]
    if not isinstance(targets, Tensor) or targets.is_floating_point() or output.ndim != targets.ndim + 1:
        return None
    if output.shape[:1] + output.shape[2:] == targets.shape:
        found = output.argmax(dim=1)
    elif output.shape[:-1] == targets.shape:
        found = output.argmax(dim=-1)
    else:
        return None
    return int((found == targets).sum()), targets.numel()
