"""SPSA: descent without a gradient, from losses on both sides of the round's base along random directions.

    g_s = (L(w + eps z_s; batch_s) - L(w - eps z_s; batch_s)) / (2 eps),   s = 1 .. P, all from the same w
    w <- w - lr / P sum_s g_s z_s;   z_s of +-1, so that E g_s z_s is the gradient, as eps vanishes

Spall, Multivariate Stochastic Approximation Using a Simultaneous Perturbation Gradient Approximation, 1992. The
coordinator derives the directions too, so the P numbers -lr g_s / P are all that has to be sent: one byte each, see
`compressors.sketches.one_byte` (Zelikman et al., Just One Byte (per gradient), 2023). They are rounded to its grid
here, so that the coordinator moves by what this model moved by.

The directions' variance is that of a gradient times (parameters / samples of all peers): small models, or many
samples and a small lr. No memory for a backward pass is needed: beside the model a copy of it, and a byte and a
float32 for each coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

import compressors
from compressors.sketches.one_byte import GROUP, NOT_FINITE, OneByte, to_bytes
from exchange.contribution import Contribution
from methods import Requirement, SpecValues, demand
from muster.errors import ConfigError
from muster.model.layout import ParameterLayout
from muster.seeds import derive_seed
from muster.spec.model import TrainTable
from muster.task.evaluation import to_device
from muster.task.task import ChunkContexts, FitContext, FitReport, Task
from peer.training.batches import Batches

PROGRESS_CALLS_MAX = 50  # a round; more would only make work
UNREAD = ("optimizer", "momentum", "weight_decay", "epochs", "steps", "clip_norm", "precision")  # of [train]


@dataclass(frozen=True, kw_only=True)
class Spsa:
    """Reads lr and batch_size from the run spec's `[train]`, and P from compression.up = "one-byte:P"."""

    name: ClassVar[str] = "spsa"
    asks_gradient: ClassVar[bool | None] = False
    knobs: ClassVar[Mapping[str, str]] = {
        "eps": "how far to both sides of the base the loss is asked, above 0. Smaller, and float32 losses drown the "
        "difference; larger, and it is no slope any more",
    }

    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps is above 0, not {self.eps}")

    def requires(self, spec: SpecValues) -> Iterator[Requirement]:
        """The codec that sends its directions, and nothing that would make an update other than their sum."""
        table = spec["compression"]
        if not isinstance(compressors.build(table["up"]), OneByte):
            yield Requirement(
                "spsa needs compression.up one-byte:P, P samples a round, such as one-byte:16, not "
                + table["up"],
                {"compression.up": "one-byte:16"},
            )
        yield from demand(
            spec,
            f"spsa loses nothing that a feedback could keep: compression.feedback none, not {table['feedback']}",
            {"compression.feedback": "none"},
        )
        yield from demand(
            spec,
            "spsa has no first rounds that are different: compression.warm_up_rounds 0",
            {"compression.warm_up_rounds": 0},
        )
        yield from demand(
            spec,
            "spsa has other directions in each round, so train.worker_momentum could not be sent: 0, and "
            "server.optimizer momentum instead",
            {"train.worker_momentum": 0.0},
        )
        for name in UNREAD:
            yield from demand(
                spec,
                f"spsa knows no train.{name}: it reads lr and batch_size, and eps in train.options",
                {f"train.{name}": TrainTable.model_fields[name].default},
            )

    def fit(self, task: Task, model: nn.Module, data: Dataset[Any], context: FitContext) -> Contribution:
        """Metric `loss`: the mean over all samples and both sides. The model is in evaluation mode, so that both
        sides differ by the direction only.

        Raises `ConfigError` `train.needs_one_byte`, `train.unsuited_model`.
        """
        codec, places = _sent_by(context)
        batches = Batches(data, context.train["batch_size"], derive_seed(context.seed, "batches"))
        directions = _Directions(codec, places, context.device)
        weights = _Weights(model, places.layout)
        model.eval()
        slopes, losses, seen = np.empty(codec.count), 0.0, 0
        stride = -(-codec.count // PROGRESS_CALLS_MAX)
        with torch.no_grad():
            for s, (batch, count) in zip(range(codec.count), _endless(batches), strict=False):
                inputs, signs = to_device(batch, context.device), directions.signs(s)
                weights.lean(signs, self.eps)
                above = float(task.loss(model, inputs))
                weights.lean(signs, -self.eps)
                below = float(task.loss(model, inputs))
                slopes[s] = (above - below) / (2.0 * self.eps)
                losses += count * (above + below) / 2.0
                seen += count
                if (s + 1) % stride == 0:
                    context.progress((s + 1) / codec.count)
            weights.move(directions.sum(to_bytes(slopes * (-context.train["lr"] / codec.count))))
        report = FitReport(examples=batches.examples, steps=codec.count, metrics={"loss": losses / seen})
        return Contribution.of(report)


def _sent_by(context: FitContext) -> tuple[OneByte, ChunkContexts]:
    codec = compressors.build(context.codec)
    if not isinstance(codec, OneByte) or context.places is None:
        raise ConfigError(
            "train.needs_one_byte",
            f"spsa moves the model along directions that only the codec one-byte sends, not {context.codec}",
            fix="set compression.up to one-byte:P in the run spec, P samples a round, such as one-byte:16",
        )
    return codec, context.places


def _endless(batches: Batches) -> Iterator[tuple[Any, int]]:
    while True:
        yield from batches.one_pass()


class _Directions:
    """The codec's directions over the whole vector."""

    def __init__(self, codec: OneByte, places: ChunkContexts, device: torch.device) -> None:
        layout = places.layout
        self._chunks = [
            (codec.at(places.at(index)), *layout.chunk_bounds(index)) for index in range(layout.chunk_count)
        ]
        self._size = layout.size
        self._device = device
        self._group = -1
        self._signs = torch.empty(0, dtype=torch.uint8)

    def signs(self, s: int) -> Tensor:
        """[size] uint8 on the device: 1 where direction `s` is +1, 0 where it is -1. Quick in order of `s`."""
        group, bit = divmod(s, GROUP)
        if group != self._group:
            self._group = group
            parts = [codec.signs(group, stop - start) for codec, start, stop in self._chunks]
            self._signs = torch.cat(parts).to(self._device)
        return (self._signs >> bit) & 1

    def sum(self, codes: NDArray[np.uint8]) -> Tensor:
        """[size] what these bytes stand for, as it is decoded; NaN if a coefficient is not finite."""
        if bool((codes == NOT_FINITE).any()):
            # Which is told of where the update is written.
            return torch.full((self._size,), math.nan, dtype=torch.float32)
        found, body = torch.empty(self._size, dtype=torch.float32), codes.tobytes()
        for codec, start, stop in self._chunks:
            codec.decode(body, found[start:stop])
        return found


class _Weights:
    """The model's tensors, which are moved from where they were at first."""

    def __init__(self, model: nn.Module, layout: ParameterLayout) -> None:
        """Raises `ConfigError` `train.unsuited_model` if they are not what the layout's vector is made of."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._rows: list[tuple[Tensor, Tensor, int, int]] = []
        for spec, offset in zip(layout.tensors, layout.offsets, strict=True):
            parameter = parameters.get(spec.name)
            if parameter is None or not parameter.requires_grad or spec.dtype != "F32":
                raise _unsuited(spec.name, parameter)
            self._rows.append((parameter.data, parameter.detach().clone(), offset, offset + spec.size))

    def lean(self, signs: Tensor, distance: float) -> None:
        """To the first values and `distance` along a direction, signs [size] of 0 and 1."""
        for values, first, start, stop in self._rows:
            step = signs[start:stop].to(torch.float32).mul_(2.0 * distance).sub_(distance)
            torch.add(first, step.view(first.shape), out=values)

    def move(self, by: Tensor) -> None:
        """To the first values and `by` [size]."""
        for values, first, start, stop in self._rows:
            torch.add(first, by[start:stop].view(first.shape).to(first.device), out=values)


def _unsuited(name: str, parameter: Tensor | None) -> ConfigError:
    what = (
        "is no parameter"
        if parameter is None
        else f"is {parameter.dtype}"
        if parameter.requires_grad
        else "is frozen"
    )
    return ConfigError(
        "train.unsuited_model",
        f"spsa cannot train this model: its {name!r} {what}",
        cause="its directions move all that is trained; rounded to less than float32, or held still in part, the "
        "update would be no sum of directions any more",
        fix="train another model, in float32, or with train.algorithm sgd",
    )
