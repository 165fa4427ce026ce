"""DGC and 1-bit Adam on scikit-learn's digits: 4 senders, a perceptron 64-64-10 of 4,810 parameters.

Accuracy on a fifth that is held out; differences below .01 are noise.

    500 steps, lr .2, 5 of 4,810 sent       expected    reached, mean of ten seeds      least and most
    dense momentum                          .981        .979, of five seeds             .975  .981
    DGC, gradients clipped                  -           .965                            .956  .975
    DGC                                     .974        .954                            .900  .972
    EF14 and momentum at the receiver       .946        .929                            .847  .967
    the same, gradients clipped             -           .938                            .903  .969
    top-k without feedback                  .869        .850, of one seed
    500 steps, lr .01, 100 of them dense
    Adam                                    .979        .986
    1-bit Adam, one bit up                  -           .986
    1-bit Adam, one bit up and down         .976        .986
    1-bit Adam, one bit down, int8 up       -           .986
    EF14 of signs, and Adam                 .961        .972
    1-bit Adam with v = 0 let in            not finite  not finite
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import compressors
from exchange import downlink, optimizers
from exchange.names import SCALE
from muster.model.layout import ParameterLayout, TensorSpec
from muster.spec.model import RunSpec

PEERS, BATCH, STEPS, DENSE = 4, 32, 500, 100
LR, BETA1, BETA2, EPSILON = 0.01, 0.9, 0.999, 1e-8


class Digits:
    """The vector that is trained, and the senders' gradients there."""

    def __init__(self, seed: int) -> None:
        pixels, digits = load_digits(return_X_y=True)
        images, labels = torch.from_numpy(pixels).float() / 16, torch.from_numpy(digits)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(2026))
        held_out, training = order[:360], order[360:]
        self._test = images[held_out], labels[held_out]
        self._generator = torch.Generator().manual_seed(seed)
        shuffled = training[torch.randperm(len(training), generator=self._generator)]
        self._parts = [(images[part], labels[part]) for part in shuffled.chunk(PEERS)]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self._parameters = list(self._model.parameters())
        self.vector = nn.utils.parameters_to_vector(self._parameters).detach().clone()
        nn.utils.vector_to_parameters(self.vector, self._parameters)  # from now on views of it
        self.size = self.vector.numel()

    def gradients(self) -> Iterator[Tensor]:
        for images, labels in self._parts:
            chosen = torch.randint(len(labels), (BATCH,), generator=self._generator)
            loss = nn.functional.cross_entropy(self._model(images[chosen]), labels[chosen])
            yield torch.cat([part.flatten() for part in torch.autograd.grad(loss, self._parameters)])

    def accuracy(self) -> float:
        images, labels = self._test
        with torch.no_grad():
            return float((self._model(images).argmax(1) == labels).float().mean())


def mean_accuracy(train: Callable[[Digits], None], seeds: tuple[int, ...] = (0, 1)) -> float:
    reached: list[float] = []
    for seed in seeds:
        digits = Digits(seed)
        train(digits)
        reached.append(digits.accuracy())
    return sum(reached) / len(reached)


def with_feedback(name: str, spelling: str, server_momentum: float) -> Callable[[Digits], None]:
    codec, feedback = compressors.build(spelling), compressors.build_feedback(name)

    def train(digits: Digits) -> None:
        size = digits.size
        states = [{key: torch.zeros(size) for key in feedback.state_names} for _ in range(PEERS)]
        momentum, mean, decoded = torch.zeros(size), torch.empty(size), torch.empty(size)
        for step in range(STEPS):
            mean.zero_()
            for gradient, state in zip(digits.gradients(), states, strict=True):
                gradient.mul_(min(1.0, feedback.norm_max(PEERS) / float(gradient.norm())))
                codec.decode(feedback.encode(codec, gradient, state, step), decoded)
                mean.add_(decoded, alpha=1 / PEERS)
            momentum.mul_(server_momentum).add_(mean)
            digits.vector.sub_(momentum, alpha=0.2)

    return train


def test_dgc_at_a_thousandth_is_near_dense_and_ahead_of_naive_compression() -> None:
    """By .036. Without clipping it would be by .025, and by less than .015 with some seeds: where a large gradient has
    gone into the momentum, the last steps go far astray. Ten seeds, as naive compression ends anywhere in .12: with
    three it is the seeds, and how a CPU rounds, that decide."""
    seeds = tuple(range(10))
    dgc = mean_accuracy(with_feedback("dgc:0.9:clip=0.5", "topk:0.001", 0.0), seeds)
    dense = mean_accuracy(with_feedback("none", "identity", 0.9))
    naive = mean_accuracy(with_feedback("ef14", "topk:0.001", 0.9), seeds)
    assert dense > 0.97
    assert dgc > 0.955
    assert dgc > dense - 0.025
    assert dgc >= naive + 0.015
    lossy = Digits(seed=0)
    with_feedback("none", "topk:0.001", 0.9)(lossy)
    assert lossy.accuracy() < min(0.9, dgc - 0.015)


def federated(run: RunSpec, folder: Path) -> Callable[[Digits], None]:
    """The coordinator's optimizer and downlink, the peers' feedback and codec, as a run has them."""
    optimizer, feedback = optimizers.build(run.server), compressors.build_feedback(run.compression.feedback)
    warm_up = run.compression.warm_up_rounds

    def train(digits: Digits) -> None:
        size = digits.size
        layout = ParameterLayout(tensors=(TensorSpec(name="all", shape=(size,), dtype="F32"),))
        peers = [{name: torch.zeros(size) for name in feedback.state_names} for _ in range(PEERS)]
        names = (*optimizer.state_names, *downlink.state_names(run, STEPS))
        server = {name: torch.zeros(size) for name in names}
        mean, decoded, new = torch.empty(size), torch.empty(size), torch.empty(size)
        for version in range(STEPS):
            codec = compressors.build(feedback.codec_in(run.compression.up, version + 1, warm_up))
            stepping = replace(optimizer, warming_up=version < warm_up)
            mean.zero_()
            for gradient, state in zip(digits.gradients(), peers, strict=True):
                body = feedback.encode(codec, -gradient, state, version)
                assert len(body) <= codec.bytes_max(size)
                codec.decode(body, decoded)
                mean.add_(decoded, alpha=1 / PEERS)
            scale = stepping.step(digits.vector, mean, server, new)
            if downlink.compresses(run):
                if scale is not None:
                    server[SCALE].copy_(scale)
                down = downlink.Downlink(
                    run, layout, folder / "delta", base_digest="", round=version, base_version=version
                )
                down.take(digits.vector, new, server)
                down.close()
            digits.vector.copy_(new)

    return train


def spec(optimizer: str, **compression: Any) -> RunSpec:
    server = {"optimizer": optimizer, "lr": LR, "beta1": BETA1, "beta2": BETA2, "tau": EPSILON}
    tables = {"server": server, "compression": compression}
    return RunSpec.model_validate({"task": "digits:Digits", "rounds": STEPS, **tables})


ONE_BIT = {"up": "sign", "feedback": f"momentum:{BETA1}", "warm_up_rounds": DENSE}


def test_one_bit_adam_is_as_good_as_adam(tmp_path: Path) -> None:
    """On the way up, where 28 times less than float32 is sent, on both ways, and on the way down alone."""
    assert compressors.build("sign").bytes_max(4810) < 4 * 4810 / 28
    runs = (
        spec("adam"),
        spec("onebit-adam", **ONE_BIT),
        spec("onebit-adam", **ONE_BIT, down="sign"),
        spec("onebit-adam", **{**ONE_BIT, "up": "int8"}, down="sign"),
        spec("adam", up="sign", feedback="ef14"),
    )
    dense, up, both, down, naive = (mean_accuracy(federated(run, tmp_path), (0,)) for run in runs)
    assert dense > 0.97
    assert min(up, both, down) > 0.975
    assert min(up, both, down) > dense - 0.01
    assert min(up, both, down) > naive + 0.005


def test_one_bit_where_the_variance_is_zero_is_a_trap_and_not_fallen_into(tmp_path: Path) -> None:
    """A pixel in a corner is black in every image: its weights have no gradient, and one bit cannot say 0."""
    digits = Digits(seed=0)
    before = digits.vector.clone()
    federated(spec("onebit-adam", **ONE_BIT, down="sign"), tmp_path)(digits)
    still = digits.vector[: 64 * 64].view(64, 64)[:, 0]
    assert torch.equal(still, before[: 64 * 64].view(64, 64)[:, 0])
    assert bool(torch.isfinite(digits.vector).all())

    digits = Digits(seed=0)
    m, v, error = torch.zeros(digits.size), torch.zeros(digits.size), torch.zeros(digits.size)
    for step in range(DENSE + 150):
        gradient = torch.stack(list(digits.gradients())).mean(0)
        pending = BETA1 * m + (1 - BETA1) * gradient + error
        m = pending
        if step < DENSE:
            v = BETA2 * v + (1 - BETA2) * gradient.square()
        else:  # as it was published, one scale for all coordinates
            m = torch.where(pending < 0, -1.0, 1.0) * float(pending.norm() / pending.numel() ** 0.5)
            error = pending - m
        digits.vector.sub_(LR * m / (v.sqrt() + EPSILON))
    assert not bool(v[0])
    assert not bool(torch.isfinite(digits.vector).all())
    assert digits.accuracy() < 0.2
