"""MASHA on an easy bilinear saddle in single precision, from its ends: feedback, server's optimizer and downlink.

8 senders, 60 coordinates, 6 of them in a message, singular values from .8 to 1; reached is where |z - best| is 1e-5 of
its beginning. In vectors of 60 values extragradient needs 748, MASHA1 138, MASHA2 443. `test_masha_saddle` has the
figures that compare with the prototype's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import compressors
from compressors import ChunkContext, Codec, CodecError, Feedback
from compressors.feedback.feedback import NoFeedback
from compressors.feedback.masha import Masha, is_anchor
from coordinator.submission.checks import check_spec
from exchange import downlink, optimizers
from muster.errors import ConfigError
from muster.model.layout import ParameterLayout, TensorSpec
from muster.spec.model import RunSpec, ServerTable

PEERS, SIZE, KEPT = 8, 60, 6
TOLERANCE = 1e-5
MakeSpec = Callable[..., RunSpec]


Down = Callable[[int, Tensor, Tensor], None]  # version, base and the new one, which it changes


class Saddle:
    """min over x, max over y of mean_m (x^T A_m y + b_m^T (x, -y)); F_m is its gradient, with the sign turned for y."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        half = SIZE // 2
        left = torch.linalg.qr(torch.randn(half, half, generator=generator))[0]
        right = torch.linalg.qr(torch.randn(half, half, generator=generator))[0]
        own = 0.3 * torch.randn(PEERS, half, half, generator=generator) / half**0.5
        matrices = left * torch.linspace(0.8, 1, half) @ right.T + own - own.mean(0)
        self._jacobians = torch.zeros(PEERS, SIZE, SIZE)
        self._jacobians[:, :half, half:] = matrices
        self._jacobians[:, half:, :half] = -matrices.transpose(1, 2)
        self._offsets = torch.randn(PEERS, SIZE, generator=generator)
        mean, offset = self._jacobians.mean(0).double(), self._offsets.mean(0).double()
        self._best = torch.linalg.solve(mean, offset).float()

    def operators(self, z: Tensor) -> Tensor:
        """[PEERS, SIZE]"""
        return self._jacobians @ z - self._offsets

    def error(self, z: Tensor) -> float:
        return float((z - self._best).norm() / self._best.norm())


def vectors(names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: torch.zeros(SIZE) for name in names}


def masha_errors(
    codec: Codec, gamma: float, saddle: Saddle, tau: float = 0.9, down: Down | None = None
) -> Iterator[tuple[float, float]]:
    """After each round: the uplinks so far, in dense vectors, and the error of the version that it made, which `down`
    changes to what peers decode."""
    feedback, identity = Masha(tau), compressors.build("identity")
    senders = [vectors(feedback.state_names) for _ in range(PEERS)]
    receivers = [vectors(feedback.receiver_state_names) for _ in range(PEERS)]
    optimizer = optimizers.build(
        ServerTable.model_validate({"optimizer": "masha", "lr": gamma, "momentum": tau})
    )
    server, model, uplinks = vectors(optimizer.state_names), torch.zeros(SIZE), 0.0
    decoded = torch.empty(PEERS, SIZE)
    for version in range(100_000):
        dense = feedback.codec_in(codec.spelling, version + 1, 0) == "identity"
        uplinks += 1 if dense else KEPT / SIZE
        for sender, operator in enumerate(saddle.operators(model)):
            place = ChunkContext(common=version, own=PEERS * version + sender)
            bound = identity if dense else codec.at(place)
            bound.decode(feedback.encode(bound, -operator, senders[sender], version), decoded[sender])
            if dense:
                receivers[sender]["anchor"].copy_(decoded[sender])
            else:
                feedback.receive(decoded[sender], receivers[sender])
            assert torch.equal(receivers[sender]["anchor"], senders[sender]["anchor"])
        optimizer = replace(optimizer, version=version)
        moved = torch.empty(SIZE)
        optimizer.step(model, decoded.mean(0), server, moved)
        if down is not None:
            down(version, model, moved)
        model = moved
        yield uplinks, saddle.error(model)


def naive_errors(codec: Codec, feedback: Feedback, step: float, saddle: Saddle) -> Iterator[float]:
    """Extragradient with each operator compressed."""
    first, second = ([vectors(feedback.state_names) for _ in range(PEERS)] for _ in range(2))
    z, decoded, round = torch.zeros(SIZE), torch.empty(PEERS, SIZE), 0

    def mean(at: Tensor, states: list[dict[str, Tensor]], seed: int) -> Tensor:
        for sender, operator in enumerate(saddle.operators(at)):
            bound = codec.at(ChunkContext(common=0, own=seed + sender))
            bound.decode(feedback.encode(bound, step * operator, states[sender], 0), decoded[sender])
        return decoded.mean(0)

    while True:
        half = z - mean(z, first, round)
        z = z - mean(half, second, round + PEERS)
        round += 2 * PEERS
        yield saddle.error(z)


def make_good(**compression: str) -> RunSpec:
    tables = {**GOOD, "compression": {**GOOD["compression"], **compression}}
    return RunSpec.model_validate({"task": "a:B", "rounds": 1, **tables})


def goes_down(codec: str, feedback: str, out: Path) -> Down:
    """The coordinator's own downlink."""
    spec = RunSpec.model_validate(
        {"task": "a:B", "rounds": 1, "compression": {"down": codec, "down_feedback": feedback}}
    )
    layout = ParameterLayout(tensors=(TensorSpec(name="z", shape=(SIZE,), dtype="F32"),))
    state = vectors(downlink.state_names(spec, 0))

    def change(version: int, base: Tensor, new: Tensor) -> None:
        digest = f"base {version}"
        link = downlink.Downlink(spec, layout, out, base_digest=digest, round=version, base_version=version)
        link.take(base, new, state)
        link.close()

    return change


def uplinks_needed(errors: Iterator[tuple[float, float]], rounds_max: int) -> float:
    for uplinks, error in islice(errors, rounds_max):
        assert error < 1e3
        if error < TOLERANCE:
            return uplinks
    raise AssertionError(f"not there after {rounds_max} rounds")


def test_masha_needs_fewer_uplinks_than_extragradient() -> None:
    saddle = Saddle()
    z, dense = torch.zeros(SIZE), 0
    while saddle.error(z) >= TOLERANCE:
        z = z - 0.3 * saddle.operators(z - 0.3 * saddle.operators(z).mean(0)).mean(0)
        dense += 2
    first = uplinks_needed(masha_errors(compressors.build("randk:0.1"), 0.2, saddle), 1500)
    second = uplinks_needed(masha_errors(compressors.build("topk:0.1"), 0.1, saddle), 3000)
    assert 700 < dense < 860
    assert first < 0.3 * dense
    assert second < 0.8 * dense


@pytest.mark.parametrize(
    ("codec", "feedback"),
    [("randk:0.1", NoFeedback()), ("topk:0.1", compressors.build_feedback("ef14"))],
)
def test_naive_compression_diverges(codec: str, feedback: Feedback) -> None:
    reached = list(islice(naive_errors(compressors.build(codec), feedback, 0.3, Saddle()), 600))
    assert min(reached) > 0.5
    assert max(reached) > 10


@pytest.mark.parametrize(("codec", "feedback"), [("int8", "ef14"), ("e4m3", "none")])
def test_a_downlink_that_loses_little_costs_nothing(tmp_path: Path, codec: str, feedback: str) -> None:
    check_spec(make_good(down=codec, down_feedback=feedback))
    saddle, up, down = (
        Saddle(),
        compressors.build("randk:0.1"),
        goes_down(codec, feedback, tmp_path / "delta"),
    )
    assert uplinks_needed(masha_errors(up, 0.2, saddle, down=down), 1000) < 145  # 138 without


@pytest.mark.parametrize("codec", ["topk:0.1", "sign"])
def test_a_downlink_that_loses_much_is_refused_as_it_runs_away(tmp_path: Path, codec: str) -> None:
    with pytest.raises(ConfigError, match="down identity, bf16 or int8, not"):
        check_spec(make_good(down=codec))
    up, down = compressors.build("randk:0.1"), goes_down(codec, "ef14", tmp_path / "delta")
    errors = [error for _, error in islice(masha_errors(up, 0.2, Saddle(), down=down), 500)]
    assert errors[-1] > 10


def test_without_any_loss_it_is_the_method_written_out() -> None:
    saddle, gamma, tau = Saddle(), 0.2, 0.8
    z = torch.zeros(SIZE)
    anchor, version, points = z, 0, list[Tensor]()  # the versions, as the method's own variables have them
    while len(points) < 50:
        if is_anchor(tau, version):
            anchor = z
            points.append(anchor - gamma * saddle.operators(anchor).mean(0))
            version += 1
        slope = saddle.operators(anchor).mean(0)
        while True:
            z = points[-1] - gamma * (saddle.operators(points[-1]).mean(0) - slope)
            version += 1
            if is_anchor(tau, version):
                points.append(z)
                break
            points.append(tau * z + (1 - tau) * anchor - gamma * slope)
    made = list(islice(masha_errors(compressors.build("topk:1.0"), gamma, saddle, tau), 50))
    for point, (_, error) in zip(points, made, strict=False):
        assert error == pytest.approx(saddle.error(point), rel=1e-3)


def test_the_coin_is_common_and_as_likely_as_said() -> None:
    tosses = [is_anchor(0.9, version) for version in range(4000)]
    assert tosses[0]
    assert not any(before and after for before, after in pairwise(tosses))
    assert 0.085 < sum(tosses) / tosses.count(False) < 0.115


@pytest.mark.parametrize("wrong", ["masha", "masha:1", "masha:0", "masha:nan", "masha:often"])
def test_a_chance_that_is_none(wrong: str) -> None:
    with pytest.raises(CodecError, match="tau"):
        compressors.build_feedback(wrong)


GOOD: dict[str, Any] = {
    "aggregation": {"rule": "mean"},
    "train": {"steps": 1, "lr": 1.0},
    "round": {"quorum": 1.0},
    "server": {"optimizer": "masha", "lr": 0.1},
    "compression": {"up": "topk:0.1", "feedback": "masha:0.9"},
}


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ({"server": {"optimizer": "sgd"}}, "masha:0.9 belongs to server.optimizer masha"),
        ({"server": {"optimizer": "masha", "momentum": 0.8}}, "needs compression.feedback masha:0.8"),
        ({"compression": {"up": "topk:0.1", "feedback": "ef21"}}, "needs compression.feedback masha:0.9"),
        ({"compression": {"up": "identity", "feedback": "masha:0.9"}}, "identity does not"),
        ({"compression": {**GOOD["compression"], "warm_up_rounds": 3}}, "no compression.warm_up_rounds"),
        ({"compression": {**GOOD["compression"], "down": "replay"}}, "masha makes more of it"),
        ({"compression": {**GOOD["compression"], "down": "int4"}}, "int8, not int4"),
        (
            {"compression": {**GOOD["compression"], "down": "randk:0.5", "down_feedback": "none"}},
            "not randk:0.5",
        ),
        ({"train": {"steps": 1, "lr": 1.0, "clip_norm": 1.0}}, "train.clip_norm shortens"),
        ({"round": {"quorum": 0.8}}, "every round waits for all"),
        ({"sampling": {"fraction": 0.5}}, "every round asks all"),
        ({"sampling": {"count": 3}}, "every round asks all"),
        ({"train": {"steps": 2, "lr": 1.0}}, "its operator and no more"),
        ({"train": {"steps": 1}}, "its operator and no more"),
        ({"train": {"steps": 1, "lr": 1.0, "momentum": 0.9}}, "its operator and no more"),
        ({"train": {"steps": 1, "lr": 1.0, "worker_momentum": 0.5}}, "would do so too"),
    ],
)
def test_what_does_not_go_together_is_refused(make_spec: MakeSpec, tables: dict[str, Any], why: str) -> None:
    check_spec(make_spec(**GOOD))
    with pytest.raises(ConfigError, match=why):
        check_spec(make_spec(**{**GOOD, **tables}))
