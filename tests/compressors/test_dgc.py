"""DGC against its equations written out."""

import math

import pytest
import torch

import compressors
from compressors import CodecError, build_feedback
from compressors.dgc import warm_up


@pytest.mark.parametrize("nesterov", [False, True])
def test_it_follows_its_equations(nesterov: bool) -> None:
    codec = compressors.build("topk:0.1")
    feedback = build_feedback("dgc:0.8:nesterov" if nesterov else "dgc:0.8")
    state = {name: torch.zeros(50) for name in feedback.state_names}
    u, v, m = torch.zeros(50), torch.zeros(50), torch.empty(50)
    generator = torch.Generator().manual_seed(0)
    for number in range(30):
        g = torch.randn(50, generator=generator)
        before = g.clone()
        codec.decode(feedback.encode(codec, g, state, number), m)
        assert torch.equal(g, before)
        u = 0.8 * (u + g) if nesterov else 0.8 * u + g
        v = v + u + g if nesterov else v + u
        chosen = v.abs().topk(5).indices
        wanted = torch.zeros(50)
        wanted[chosen] = v[chosen]
        u[chosen], v[chosen] = 0, 0
        torch.testing.assert_close(m, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state["velocity"], u, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state["residual"], v, rtol=1e-5, atol=1e-5)
        u, v = state["velocity"].clone(), state["residual"].clone()


def test_without_momentum_it_is_ef14_to_the_byte() -> None:
    codec = compressors.build("topk:0.1")
    plain, feedback = build_feedback("ef14"), build_feedback("dgc:0")
    states = [{name: torch.zeros(80) for name in f.state_names} for f in (plain, feedback)]
    generator = torch.Generator().manual_seed(0)
    for number in range(10):
        x = torch.randn(80, generator=generator)
        assert plain.encode(codec, x, states[0], number) == feedback.encode(codec, x, states[1], number)
        assert torch.equal(states[0]["residual"], states[1]["residual"])


def test_a_sent_coordinate_forgets_its_momentum_and_a_waiting_one_keeps_it() -> None:
    codec, feedback = compressors.build("topk:0.5"), build_feedback("dgc:0.9")
    state = {name: torch.zeros(2) for name in feedback.state_names}
    feedback.encode(codec, torch.tensor([3.0, 1.0]), state, 0)
    assert state["velocity"].tolist() == [0.0, 1.0]
    assert state["residual"].tolist() == [0.0, 1.0]
    feedback.encode(codec, torch.tensor([5.0, 0.0]), state, 1)
    assert state["velocity"].tolist() == [0.0, pytest.approx(0.9)]
    assert state["residual"].tolist() == [0.0, pytest.approx(1.9)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 3e38])
@pytest.mark.parametrize("nesterov", ["", ":nesterov"])
def test_values_that_are_not_finite_leave_the_state_alone(bad: float, nesterov: str) -> None:
    codec, feedback = compressors.build("topk:0.2"), build_feedback(f"dgc:0.9{nesterov}")
    state = {name: torch.linspace(-1, 1, 300) for name in feedback.state_names}
    x = torch.ones(300)
    x[7] = bad
    feedback.encode(codec, x, state, 0)
    assert all(torch.equal(values, torch.linspace(-1, 1, 300)) for values in state.values())


@pytest.mark.parametrize(
    ("spelling", "codec", "said"),
    [
        ("dgc", "topk:0.001", None),
        ("dgc", "int8", "leaves coordinates out"),
        ("dgc", "identity", "leaves coordinates out"),
        ("dgc", "topk:1", "leaves coordinates out"),
        ("dgc:0", "int8", None),
        ("dgc", "terngrad", "contractive"),
    ],
)
def test_what_it_goes_with(spelling: str, codec: str, said: str | None) -> None:
    refusal = build_feedback(spelling).refuse(compressors.build(codec), 1 << 18)
    assert refusal is None if said is None else said in (refusal or "")


def test_spellings() -> None:
    assert build_feedback("dgc").spelling == "dgc:0.9"
    assert build_feedback("dgc:0.50:nesterov").spelling == "dgc:0.5:nesterov"
    assert build_feedback("dgc").needs_mean is False


@pytest.mark.parametrize("argument", ["", "x", "1", "-0.1", "nan", "0.9:", "0.9:polyak"])
def test_spellings_that_are_refused(argument: str) -> None:
    with pytest.raises(CodecError, match="dgc"):
        build_feedback(f"dgc:{argument}")


def test_warm_up_is_geometric() -> None:
    shares = [warm_up(0.001, epoch) for epoch in range(8)]
    assert shares == pytest.approx([0.3162, 0.1, 0.03162, 0.01, 0.003162, 0.001, 0.001, 0.001], rel=1e-3)
    assert warm_up(0.25, 0, epochs=0) == 0.25
    for fraction, epoch, epochs in ((0.0, 1, 5), (1.5, 1, 5), (0.1, -1, 5), (0.1, 0, -1)):
        with pytest.raises(ValueError, match="no share"):
            warm_up(fraction, epoch, epochs)
