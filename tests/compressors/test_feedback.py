"""EF14 loses nothing over time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import compressors

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=40)


@pytest.mark.parametrize("spelling", ["identity", "bf16", "int8", "topk:0.01", "topk:0.2"])
@PROPERTY
@given(seed=st.integers(0, 2**31), size=st.integers(1, 900), rounds=st.integers(1, 8))
def test_what_was_sent_and_the_residual_are_all_that_was_put_in(
    spelling: str, seed: int, size: int, rounds: int
) -> None:
    codec, feedback = compressors.build(spelling), compressors.build_feedback("ef14")
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.zeros(size) for name in feedback.state_names}
    put_in, sent, out = torch.zeros(size).double(), torch.zeros(size).double(), torch.empty(size)
    for number in range(rounds):
        x = torch.randn(size, generator=generator)
        before = x.clone()
        codec.decode(feedback.encode(codec, x, state, number), out)
        assert torch.equal(x, before)
        put_in += x
        sent += out
    torch.testing.assert_close(sent + state["residual"], put_in, rtol=1e-5, atol=1e-5)


def test_the_residual_of_top_k_stays_bounded() -> None:
    """With delta = k/d the residual of unit inputs is at most 2 (1 - delta) / delta, Stich et al. lemma 3."""
    codec, feedback = compressors.build("topk:0.1"), compressors.build_feedback("ef14")
    generator = torch.Generator().manual_seed(0)
    state = {"residual": torch.zeros(200)}
    norms: list[float] = []
    for number in range(300):
        x = torch.randn(200, generator=generator)
        feedback.encode(codec, x / x.norm(), state, number)
        norms.append(float(state["residual"].norm()))
    assert max(norms) <= 2 * 0.9 / 0.1
    assert max(norms[200:]) < 1.5 * max(norms[100:200])


@pytest.mark.parametrize("spelling", ["identity", "bf16", "int8", "topk:0.2"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 3e38])
def test_values_that_are_not_finite_leave_the_residual_alone(spelling: str, bad: float) -> None:
    codec, feedback = compressors.build(spelling), compressors.build_feedback("ef14")
    state = {"residual": torch.linspace(-1, 1, 300)}
    x = torch.ones(300)
    x[7] = bad
    body = feedback.encode(codec, x, state, 0)
    assert torch.equal(state["residual"], torch.linspace(-1, 1, 300))
    assert body == codec.encode(x + state["residual"], 0)


def test_ef14_takes_an_empty_chunk() -> None:
    feedback = compressors.build_feedback("ef14")
    assert (
        feedback.encode(compressors.build("identity"), torch.empty(0), {"residual": torch.empty(0)}, 0) == b""
    )


def test_none_is_the_codec_alone() -> None:
    codec, feedback = compressors.build("topk:0.1"), compressors.build_feedback("none")
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert feedback.state_names == ()
    assert feedback.encode(codec, x, {}, 5) == codec.encode(x, 5)
