"""The sender's momentum of 1-bit Adam, and what a feedback makes of the first rounds."""

import math

import pytest
import torch

import compressors
from compressors import CodecError, build_feedback


def test_it_follows_its_equations_and_its_mean_is_the_momentum_of_the_mean() -> None:
    sign, identity = compressors.build("sign"), compressors.build("identity")
    feedback, generator = build_feedback("momentum:0.8"), torch.Generator().manual_seed(0)
    states = [{name: torch.zeros(300) for name in feedback.state_names} for _ in range(3)]
    common, decoded = torch.zeros(300), torch.empty(300)
    for number in range(12):
        warm = number < 4
        xs = torch.randn(3, 300, generator=generator)
        common = 0.8 * common + 0.2 * xs.mean(0) + torch.stack([each["residual"] for each in states]).mean(0)
        for x, state in zip(xs, states, strict=True):
            m = 0.8 * state["momentum"] + 0.2 * x
            pending = m + state["residual"]
            body = feedback.encode(identity if warm else sign, x, state, number)
            (identity if warm else sign).decode(body, decoded)
            if warm:
                assert torch.equal(decoded, x)
                assert not state["residual"].any()
                torch.testing.assert_close(state["momentum"], m)
            else:
                torch.testing.assert_close(decoded + state["residual"], pending)
                torch.testing.assert_close(state["momentum"], decoded)
        common -= torch.stack([state["residual"] for state in states]).mean(0)
        mean = torch.stack([state["momentum"] for state in states]).mean(0)
        torch.testing.assert_close(mean, common, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 3e38])
@pytest.mark.parametrize("codec", ["sign", "identity"])
def test_values_that_are_not_finite_leave_the_state_alone(bad: float, codec: str) -> None:
    feedback = build_feedback("momentum:0.5")
    state = {name: torch.linspace(-1, 1, 300) for name in feedback.state_names}
    x = torch.ones(300)
    x[7] = bad
    feedback.encode(compressors.build(codec), x, state, 0)
    assert all(torch.equal(values, torch.linspace(-1, 1, 300)) for values in state.values())


def test_spellings() -> None:
    assert build_feedback("momentum").spelling == "momentum:0.9"
    assert build_feedback("momentum:0.50").spelling == "momentum:0.5"
    for argument in ("", "x", "0", "1", "nan"):
        with pytest.raises(CodecError, match="momentum"):
            build_feedback(f"momentum:{argument}")
    assert build_feedback("momentum").refuse(compressors.build("terngrad"), 9) is not None


def test_which_have_a_momentum() -> None:
    names = ("none", "ef14", "ef21", "econtrol", "dgc", "dgc:0", "momentum")
    assert [name for name in names if build_feedback(name).has_momentum] == ["dgc", "momentum"]


def test_the_first_rounds_lose_nothing() -> None:
    for name in ("none", "ef14", "momentum"):
        spellings = [build_feedback(name).codec_in("topk:0.1", round, 2) for round in (1, 2, 3, 4)]
        assert spellings == ["identity", "identity", "topk:0.1", "topk:0.1"]
        assert build_feedback(name).codec_in("topk:0.1", 1, 0) == "topk:0.1"


def test_of_dgc_they_send_ever_smaller_shares() -> None:
    dgc = build_feedback("dgc")
    shares = [float(dgc.codec_in("topk:0.001", round, 5).removeprefix("topk:")) for round in range(1, 9)]
    assert shares == pytest.approx([0.3162, 0.1, 0.03162, 0.01, 0.003162, 0.001, 0.001, 0.001], rel=1e-3)
    assert dgc.codec_in("topk:1e-3", 6, 5) == "topk:1e-3"
    assert dgc.codec_in("topk:1e-3+int8", 6, 5) == "topk:1e-3+int8"
    assert dgc.codec_in("topk:0.01+int8", 1, 1) == "topk:0.1+int8+auto"
    assert dgc.codec_in("sign", 1, 1) == "identity"
    assert all(compressors.build(dgc.codec_in("topk:0.001", round, 5)) for round in range(1, 7))
