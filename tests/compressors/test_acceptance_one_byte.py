"""SPSA on scikit-learn's digits: 8 peers of 16 samples, 200 rounds, a perceptron 64-64-10 of 4,810 parameters.

Accuracy on a fifth that is held out          expected    reached
    one byte a sample, 16 a peer and round    .942        .944, mean of two seeds
    float32 numbers, 64 bytes                 .944        .944, mean of two seeds
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import compressors
from compressors.core.context import ChunkContext
from compressors.sketches.one_byte import GRID, OneByte, to_bytes

PEERS, SAMPLES, ROUNDS, BATCH, LR, EPS = 8, 16, 200, 32, 0.2, 1e-3
HIDDEN, SIZE = 64, 64 * 64 + 64 + 64 * 10 + 10

Numbers = np.ndarray[tuple[int], np.dtype[np.float64]]


class Digits:
    def __init__(self, seed: int) -> None:
        pixels, digits = load_digits(return_X_y=True)
        images, labels = torch.from_numpy(pixels).float() / 16, torch.from_numpy(digits)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(2026))
        self._test = images[order[:360]], labels[order[:360]]
        self._parts = [(images[part], labels[part]) for part in order[360:].chunk(PEERS)]
        self._generator = torch.Generator().manual_seed(seed)
        self.vector = (2 * torch.rand(SIZE, generator=self._generator) - 1) / 8

    def slopes(self, peer: int, z: Tensor) -> Numbers:
        """[16] along z [16, 4810], each from a batch of its own."""
        images, labels = self._parts[peer]
        chosen = torch.randint(len(labels), (SAMPLES, BATCH), generator=self._generator)
        above, below = (
            losses(self.vector + sign * EPS * z, images[chosen], labels[chosen]) for sign in (1, -1)
        )
        found: Numbers = ((above - below).double() / (2 * EPS)).numpy()
        return found

    def accuracy(self) -> float:
        images, labels = self._test
        found = logits(self.vector[None], images[None])[0].argmax(1)
        return float((found == labels).float().mean())


def logits(vectors: Tensor, images: Tensor) -> Tensor:
    """Of many perceptrons [n, 4810] at once, each on its own images [n, b, 64]: [n, b, 10]."""
    first, bias, second, last = torch.split(vectors, [64 * HIDDEN, HIDDEN, HIDDEN * 10, 10], dim=1)
    hidden = torch.baddbmm(bias[:, None], images, first.view(-1, 64, HIDDEN)).relu_()
    return torch.baddbmm(last[:, None], hidden, second.view(-1, HIDDEN, 10))


def losses(vectors: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """[n] mean cross entropies."""
    found = logits(vectors, images).flatten(0, 1)
    return (
        torch.nn.functional.cross_entropy(found, labels.flatten(), reduction="none")
        .view(labels.shape)
        .mean(1)
    )


def train(seed: int, rounded: Callable[[Numbers], Numbers]) -> float:
    """Accuracy when the coefficients are sent as `rounded` gives them."""
    digits, codec = Digits(seed), compressors.build(f"one-byte:{SAMPLES}")
    assert isinstance(codec, OneByte)
    for number in range(ROUNDS):
        moved = torch.zeros(SIZE)
        for peer in range(PEERS):
            bound = codec.at(ChunkContext(common=0, own=1000 * number + peer))
            bits = torch.stack([bound.signs(s // 8, SIZE) >> s % 8 & 1 for s in range(SAMPLES)])
            z = 2 * bits.float() - 1
            sent = rounded(-LR / SAMPLES * digits.slopes(peer, z))
            moved += torch.from_numpy(sent).float() @ z
        digits.vector += moved / PEERS
    return digits.accuracy()


def on_the_grid(coefficients: Numbers) -> Numbers:
    found: Numbers = GRID[to_bytes(coefficients)].astype(np.float64)
    return found


def as_it_is(coefficients: Numbers) -> Numbers:
    return coefficients


def test_a_byte_a_sample_is_as_good_as_a_float() -> None:
    one_byte, floats = train(0, on_the_grid), train(0, as_it_is)
    assert floats > 0.92
    assert one_byte > floats - 0.01
