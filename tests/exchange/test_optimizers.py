"""Three steps of each server optimizer against values worked out by hand in float64, chunked and whole."""

from __future__ import annotations

import math

import pytest
import torch

from exchange import optimizers
from muster.spec.model import ServerTable

DELTAS = ([0.5, -1.0, 0.0], [0.25, 2.0, 1.0], [-1.0, 0.75, -3.0])
LR, BETA, BETA1, BETA2, TAU = 0.1, 0.9, 0.8, 0.95, 1e-2


def reference(name: str) -> list[float]:
    weights, first, second = [1.0, -2.0, 3.0], [0.0] * 3, [0.0] * 3
    for delta in DELTAS:
        for i, d in enumerate(delta):
            if name == "sgd":
                weights[i] += LR * d
            elif name in ("momentum", "nesterov"):
                first[i] = BETA * first[i] + d
                weights[i] += LR * (first[i] if name == "momentum" else d + BETA * first[i])
            else:
                first[i] = BETA1 * first[i] + (1 - BETA1) * d
                square = d * d
                if name == "adam":
                    second[i] = BETA2 * second[i] + (1 - BETA2) * square
                elif name == "yogi":
                    sign = (second[i] > square) - (second[i] < square)
                    second[i] -= (1 - BETA2) * square * sign
                else:
                    second[i] += square
                weights[i] += LR * first[i] / (math.sqrt(second[i]) + TAU)
    return weights


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "yogi", "adagrad"])
@pytest.mark.parametrize("width", [3, 1])
def test_three_steps_equal_the_published_rule(name: str, width: int) -> None:
    table = ServerTable.model_validate(
        {"optimizer": name, "lr": LR, "momentum": BETA, "beta1": BETA1, "beta2": BETA2, "tau": TAU}
    )
    optimizer = optimizers.build(table)
    weights = torch.tensor([1.0, -2.0, 3.0])
    state = {key: torch.zeros(3) for key in optimizer.state_names}
    for delta in DELTAS:
        moved = torch.empty(3)
        for start in range(0, 3, width):
            part = slice(start, start + width)
            chunk_state = {key: value[part].clone() for key, value in state.items()}
            optimizer.step(weights[part], torch.tensor(delta)[part].clone(), chunk_state, moved[part])
            for key, value in chunk_state.items():
                state[key][part] = value
        weights = moved
    torch.testing.assert_close(weights.double(), torch.tensor(reference(name)).double(), rtol=1e-5, atol=1e-6)


def test_the_base_is_only_read() -> None:
    optimizer = optimizers.build(ServerTable.model_validate({"optimizer": "adam"}))
    base = torch.ones(4)
    state = {key: torch.zeros(4) for key in optimizer.state_names}
    optimizer.step(base, torch.ones(4), state, torch.empty(4))
    assert torch.equal(base, torch.ones(4))
