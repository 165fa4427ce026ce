"""EF21 and EControl: both ends agree, H is the mean of what the senders hold, and trouble leaves no trace."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import compressors
from compressors import Codec, CodecError, DecodeError, Feedback

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=12)
DIFFERENCES = ["ef21", "econtrol", "econtrol:0.03"]


def zeros(names: tuple[str, ...], size: int) -> dict[str, Tensor]:
    return {name: torch.zeros(size) for name in names}


class Link:
    """One sender and its receiver with a state of its own."""

    def __init__(self, feedback: Feedback, size: int) -> None:
        self.feedback = feedback
        self.state = zeros(feedback.state_names, size)
        self.receiver = zeros(feedback.receiver_state_names, size)

    def send(self, codec: Codec, x: Tensor, seed: int) -> Tensor:
        decoded = torch.empty_like(x)
        codec.decode(self.feedback.encode(codec, x, self.state, seed), decoded)
        self.feedback.receive(decoded, self.receiver)
        return decoded


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("spelling", ["identity", "bf16", "int8", "sign", "topk:0.1"])
@PROPERTY
@given(seed=st.integers(0, 2**31), size=st.integers(1, 700), rounds=st.integers(1, 6))
def test_both_ends_hold_the_same_estimate_to_the_last_bit(
    name: str, spelling: str, seed: int, size: int, rounds: int
) -> None:
    codec, link = compressors.build(spelling), Link(compressors.build_feedback(name), size)
    generator = torch.Generator().manual_seed(seed)
    for number in range(rounds):
        x = torch.randn(size, generator=generator)
        before = x.clone()
        estimate = link.send(codec, x, number)
        assert torch.equal(x, before)
        assert torch.equal(estimate, link.state["estimate"])
        assert torch.equal(estimate, link.receiver["estimate"])


@pytest.mark.parametrize("name", DIFFERENCES)
def test_the_estimate_of_a_constant_becomes_exact(name: str) -> None:
    codec, link = compressors.build("topk:0.1"), Link(compressors.build_feedback(name), 200)
    x = torch.randn(200, generator=torch.Generator().manual_seed(3))
    errors = [float((link.send(codec, x, number) - x).norm() / x.norm()) for number in range(400)]
    assert errors[0] > 0.5
    assert errors[-1] < 1e-5


@PROPERTY
@given(seed=st.integers(0, 2**31), rounds=st.integers(1, 12))
@pytest.mark.parametrize("spelling", ["identity", "int8", "sign", "topk:0.1"])
def test_econtrol_without_eta_is_ef21_to_the_byte(spelling: str, seed: int, rounds: int) -> None:
    codec = compressors.build(spelling)
    plain, controlled = compressors.build_feedback("ef21"), compressors.build_feedback("econtrol:0.0")
    states = [zeros(feedback.state_names, 90) for feedback in (plain, controlled)]
    generator = torch.Generator().manual_seed(seed)
    for number in range(rounds):
        x = torch.randn(90, generator=generator) * (torch.rand(90, generator=generator) > 0.3)
        bodies = [
            f.encode(codec, x, state, number) for f, state in zip((plain, controlled), states, strict=True)
        ]
        assert bodies[0] == bodies[1]
        assert torch.equal(states[0]["estimate"], states[1]["estimate"])


def test_econtrol_follows_its_equations() -> None:
    """Against the published update written out in float64, with the codec's own decoding."""
    codec, feedback = compressors.build("topk:0.1"), compressors.build_feedback("econtrol")
    generator = torch.Generator().manual_seed(5)
    state, m = zeros(feedback.state_names, 50), torch.empty(50)
    e, h = torch.zeros(50).double(), torch.zeros(50).double()
    for number in range(20):
        x = torch.randn(50, generator=generator)
        pending = codec.delta(50) * e + x - h
        codec.decode(feedback.encode(codec, x, state, number), m)
        kept = m != 0
        assert int(kept.sum()) == 5
        assert float(pending[kept].abs().min()) > float(pending[~kept].abs().max()) - 1e-5
        torch.testing.assert_close(m[kept].double(), pending[kept], rtol=1e-5, atol=1e-5)
        e += x - h - m
        h += m
        torch.testing.assert_close(state["error"].double(), e, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state["estimate"].double(), h, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_one_h_for_all_stays_the_mean_of_what_all_hold_whoever_takes_part(name: str) -> None:
    codec, feedback = compressors.build("topk:0.1"), compressors.build_feedback(name)
    generator = torch.Generator().manual_seed(8)
    states = [zeros(feedback.state_names, 60) for _ in range(7)]
    receiver, m = zeros(feedback.receiver_state_names, 60), torch.empty(60)
    for number in range(40):
        taking_part = torch.randperm(7, generator=generator)[: 1 + number % 7].tolist()
        total = torch.zeros(60)
        for peer in taking_part:
            x = peer + torch.randn(60, generator=generator)
            codec.decode(feedback.encode(codec, x, states[peer], number), m)
            total += m
        estimate = total / len(taking_part)
        feedback.receive(estimate, receiver, share=len(taking_part) / 7)
        held = torch.stack([state["estimate"] for state in states]).mean(0)
        torch.testing.assert_close(estimate, held, rtol=1e-5, atol=1e-5)
        assert torch.equal(estimate, receiver["estimate"])
        assert estimate.data_ptr() != receiver["estimate"].data_ptr()


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("spelling", ["identity", "bf16", "int8", "topk:0.2"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -3e38])
def test_what_the_sender_cannot_follow_no_receiver_takes(name: str, spelling: str, bad: float) -> None:
    codec, feedback = compressors.build(spelling), compressors.build_feedback(name)
    state = {key: torch.linspace(-1, 1, 300) for key in feedback.state_names}
    x = torch.ones(300)
    x[7] = bad
    body = feedback.encode(codec, x, state, 0)
    assert all(torch.equal(values, torch.linspace(-1, 1, 300)) for values in state.values())
    out = torch.zeros(300)
    try:
        codec.decode(body, out)
    except DecodeError:
        return
    assert not bool(torch.isfinite(out).all())


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_body_that_loses_nothing_resynchronises(name: str) -> None:
    feedback, codec = compressors.build_feedback(name), compressors.build("identity")
    link = Link(feedback, 30)
    x = torch.randn(30, generator=torch.Generator().manual_seed(1))
    assert torch.equal(link.send(codec, x, 0), x)
    assert torch.equal(link.state["estimate"], x)
    assert not link.state.get("error", torch.zeros(1)).any()


@pytest.mark.parametrize("name", DIFFERENCES)
def test_an_empty_chunk(name: str) -> None:
    assert (
        Link(compressors.build_feedback(name), 0)
        .send(compressors.build("identity"), torch.empty(0), 0)
        .numel()
        == 0
    )


@PROPERTY
@given(st.lists(st.sampled_from(["counted", "dropped", "state lost"]), max_size=30))
def test_whatever_gets_lost_both_ends_stay_equal(fates: list[str]) -> None:
    """The caller's part played through: what did not count leaves both as they were, what was lost begins anew."""
    codec, identity = compressors.build("topk:0.2"), compressors.build("identity")
    feedback, generator = compressors.build_feedback("econtrol"), torch.Generator().manual_seed(2)
    link, decoded, begins = Link(feedback, 25), torch.empty(25), False
    for number, fate in enumerate(fates):
        used = identity if begins else codec
        after = {name: values.clone() for name, values in link.state.items()}
        body = feedback.encode(used, torch.randn(25, generator=generator), after, number)
        if fate == "dropped":
            continue
        if fate == "state lost":
            link, begins = Link(feedback, 25), True
            continue
        used.decode(body, decoded)
        feedback.receive(decoded, link.receiver)
        link.state, begins = after, False
        assert torch.equal(link.state["estimate"], link.receiver["estimate"])


def test_spellings() -> None:
    for name in ("none", "ef14", "ef21", "econtrol", "econtrol:0.03"):
        assert compressors.build_feedback(name).spelling == name
    assert compressors.build_feedback("econtrol:5e-2").spelling == "econtrol:0.05"


@pytest.mark.parametrize(
    ("spelling", "said"),
    [
        ("ef21:1", "ef21 takes no argument, but '1' was given"),
        ("ef14:", "ef14 takes no argument, but '' was given"),
        ("econtrol:x", "econtrol takes eta, such as econtrol:0.01, or nothing, not 'x'"),
        ("econtrol:nan", "econtrol's eta lies from 0 to 1, not at nan"),
        ("econtrol:-0.1", "econtrol's eta lies from 0 to 1, not at -0.1"),
        ("ef12", "there is no error feedback 'ef12' (did you mean"),
    ],
)
def test_spellings_that_are_refused(spelling: str, said: str) -> None:
    with pytest.raises(CodecError) as caught:
        compressors.build_feedback(spelling)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("name", ["ef14", "ef21", "econtrol", "econtrol:0.01"])
def test_a_codec_that_does_not_contract_is_refused(name: str) -> None:
    feedback = compressors.build_feedback(name)
    said = feedback.refuse(compressors.build("terngrad"), 100)
    assert said is not None
    assert "contractive" in said
    assert feedback.refuse(compressors.build("topk:0.1"), 100) is None


def test_eta_is_held_against_delta() -> None:
    codec = compressors.build("topk:0.05")

    def said(eta: str) -> tuple[bool, bool]:
        feedback = compressors.build_feedback(f"econtrol{eta}")
        return feedback.refuse(codec, 40) is not None, feedback.warn(codec, 40) is not None

    assert said("") == (False, False)
    assert said(":0.05") == (False, False)
    assert said(":0.1") == (False, True)
    assert said(":0.29") == (False, True)
    assert said(":0.31") == (True, True)


def test_which_go_with_every_rule() -> None:
    flags = {
        name: compressors.build_feedback(name).needs_mean for name in ("none", "ef14", "ef21", "econtrol")
    }
    assert flags == {"none": False, "ef14": False, "ef21": True, "econtrol": True}


def test_none_warns_of_what_is_lost_for_good() -> None:
    none = compressors.build_feedback("none")
    for harmless in (
        "identity",
        "identity+zstd",
        "topk:1",
        "terngrad",
        "qsgd:7",
        "natural",
        "bf16",
        "int8",
        "one-byte:4",
    ):
        assert none.warn(compressors.build(harmless), 10) is None, harmless
    for lossy in ("sign", "topk:0.9", "int4", "topk:0.1+int8+auto", "int8|sign"):
        said = none.warn(compressors.build(lossy), 10)
        assert said == f"{lossy} is biased, and what it leaves out is lost; ef14 keeps it and sends it later"
