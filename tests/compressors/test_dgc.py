"""DGC against its equations written out."""

import math

import pytest
import torch

import compressors
from compressors import CodecError, build_feedback
from compressors.compose.planned import SPELLING_MAX
from compressors.feedback.dgc import Dgc, warm_up


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
    assert build_feedback("dgc:0.9:clip=2").spelling == "dgc:0.9:clip=2.0"
    for spelling in ("dgc:0:clip=0.5:nesterov", "dgc:0:nesterov:clip=0.5"):
        assert build_feedback(spelling).spelling == "dgc:0.0:nesterov:clip=0.5"
        assert build_feedback(build_feedback(spelling).spelling).spelling == "dgc:0.0:nesterov:clip=0.5"
    assert build_feedback("dgc").needs_mean is False


@pytest.mark.parametrize(
    "argument",
    [
        *(
            "",
            "x",
            "1",
            "-0.1",
            "nan",
            "0.9:",
            "0.9:polyak",
            "0.9:nesterov:nesterov",
            "0.9:clip",
            "0.9:clip=",
        ),
        *("0.9:clip=x", "0.9:clip=0", "0.9:clip=-1", "0.9:clip=nan", "0.9:clip=inf", "0.9:clip=1:clip=1"),
        "0.9:clip=1:",
    ],
)
def test_spellings_that_are_refused(argument: str) -> None:
    with pytest.raises(CodecError, match="dgc"):
        build_feedback(f"dgc:{argument}")


def test_each_of_n_senders_is_clipped_to_the_threshold_by_the_root_of_n() -> None:
    clipping = build_feedback("dgc:0.9:clip=3")
    assert [clipping.norm_max(senders) for senders in (1, 4, 9)] == [3.0, 1.5, 1.0]
    for spelling in ("dgc", "dgc:0.9:nesterov", "ef14", "none"):
        assert build_feedback(spelling).norm_max(4) == math.inf


@pytest.mark.parametrize(
    ("codec", "rounds", "wanted"),
    [
        ("topk:0.01+int8", 1, ["topk:0.1+int8+auto"]),
        ("topk:0.01+int8+rice+zstd:9", 1, ["topk:0.1+int8+rice+zstd:9"]),
        ("topk:0.0001", 3, ["topk:0.1", "topk:0.01", "topk:0.001"]),
        ("topk:0.001", 5, ["topk:0.3162", "topk:0.1", "topk:0.03162", "topk:0.01", "topk:0.003162"]),
        ("randk:0.01:unscaled", 1, ["randk:0.1:unscaled"]),
        ("randk:0.01:common:unscaled+int8", 1, ["randk:0.1:common:unscaled+int8"]),
        ("fedzip:0.01", 1, ["fedzip:0.1"]),
        # A choice: each its own share, what has none stays, and what becomes the same is there once.
        ("topk:0.01+int8|topk:0.1+int8", 1, ["topk:0.1+int8+auto|topk:0.3162+int8+auto"]),
        ("topk:0.01|topk:0.04|sign", 1, ["topk:0.1|topk:0.2|sign"]),
        ("topk:0.01|topk:0.0100000001|topk:0.04", 1, ["topk:0.1|topk:0.2"]),
        ("topk:0.01|topk:0.0100000001", 1, ["topk:0.1"]),
        # Without a share, without loss.
        *(
            (codec, 2, ["identity", "identity"])
            for codec in ("sign", "int8|sign", "powersgd:1", "kmeans:2", "int8+zstd")
        ),
    ],
)
def test_the_codecs_of_the_first_rounds(codec: str, rounds: int, wanted: list[str]) -> None:
    feedback = build_feedback("dgc:0")
    assert [feedback.codec_in(codec, step, rounds) for step in range(1, rounds + 1)] == wanted
    assert feedback.codec_in(codec, rounds + 1, rounds) == codec
    for spelling in wanted:
        assert compressors.build(spelling).spelling == spelling


@pytest.mark.parametrize(
    "codec",
    [
        "topk:1e-07|randk:0.3:unscaled|topk:0.999999999999|fedzip:1.234567e-05|int8",
        "topk:1e-300",
        "|".join(f"topk:{share}+int8+rice+zstd" for share in (0.0012345, 0.01, 0.02, 0.03, 0.04, 0.05)),
    ],
)
@pytest.mark.parametrize("rounds", [1, 13])
def test_what_is_not_refused_can_be_built_in_every_one_of_them(codec: str, rounds: int) -> None:
    feedback = build_feedback("dgc")
    assert isinstance(feedback, Dgc)
    assert feedback.refuse_warm_up(compressors.build(codec)) is None
    for step in range(1, rounds + 2):
        spelling = feedback.codec_in(codec, step, rounds)
        assert feedback.codec_in(compressors.build(codec).spelling, step, rounds) in (
            spelling,
            compressors.build(codec).spelling,
        )
        built = compressors.build(spelling).spelling
        assert len(built) <= SPELLING_MAX
        assert step > rounds or built == spelling


def test_a_choice_that_would_be_spelled_too_long_is_refused() -> None:
    feedback = build_feedback("dgc")
    assert isinstance(feedback, Dgc)
    codec = compressors.build("|".join(f"topk:0.{number}+qsgd:101+rice+zstd:19" for number in range(1, 9)))
    assert len(codec.spelling) <= SPELLING_MAX
    with pytest.raises(CodecError, match="256"):
        compressors.build(feedback.codec_in(codec.spelling, 1, 1))
    assert "larger shares of its first rounds" in (feedback.refuse_warm_up(codec) or "")


def test_warm_up_is_geometric() -> None:
    shares = [warm_up(0.001, epoch) for epoch in range(8)]
    assert shares == pytest.approx([0.3162, 0.1, 0.03162, 0.01, 0.003162, 0.001, 0.001, 0.001], rel=1e-3)
    assert warm_up(0.25, 0, epochs=0) == 0.25
    assert warm_up(0.123456789, 4) == 0.175  # so that no machine's power function shows
    assert warm_up(0.123456789, 5) == 0.123456789
    for fraction, epoch, epochs in ((0.0, 1, 5), (1.5, 1, 5), (0.1, -1, 5), (0.1, 0, -1)):
        with pytest.raises(ValueError, match="no share"):
            warm_up(fraction, epoch, epochs)
