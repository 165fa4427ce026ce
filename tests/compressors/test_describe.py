"""What is said of codecs and feedbacks is so of those that are built."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import pytest
import torch

import compressors
from compressors import Codec, CodecDescription, CodecError, Feedback, FeedbackDescription
from compressors.core.describe import CHUNK_SIZE
from methods.kinds import CODECS, FEEDBACKS
from tests.fake_plugins import PlugIn


def shipped(group: str) -> list[str]:
    return sorted(each.name for each in entry_points(group=group) if each.value.startswith("compressors."))


@pytest.mark.parametrize("name", shipped("muster.codecs"))
def test_every_codec_does_what_its_description_says(name: str) -> None:
    found = compressors.describe(name)
    assert isinstance(found, CodecDescription)
    assert (found.name, found.lacking) == (name, "")
    assert found.summary.endswith(".")
    assert found.text.startswith(found.summary)
    codec = compressors.build(found.spelling)
    assert codec.spelling == found.spelling
    assert (codec.unbiased, codec.contractive, codec.linear) == (
        found.unbiased,
        found.contractive,
        found.linear,
    )
    chunk = torch.randn(CHUNK_SIZE, generator=torch.Generator().manual_seed(5))
    body, decoded = codec.encode(chunk, 3), torch.empty(CHUNK_SIZE)
    codec.decode(body, decoded)
    assert found.bytes_max is not None
    assert len(body) <= found.bytes_max
    assert found.bits_max == 8 * found.bytes_max / CHUNK_SIZE
    assert found.times_smaller == pytest.approx(4 * CHUNK_SIZE / found.bytes_max)
    lost = float((decoded - chunk).double().square().sum() / chunk.double().square().sum())
    assert (found.omega is None) == (not found.unbiased)
    assert (found.delta is None) == (not found.contractive)
    assert found.omega is None or lost <= 1.05 * found.omega  # random: near its mean in so many coordinates
    assert found.delta is None or lost <= 1 - found.delta


@pytest.mark.parametrize("name", shipped("muster.feedbacks"))
def test_every_feedback_does_what_its_description_says(name: str) -> None:
    found = compressors.describe(name)
    assert isinstance(found, FeedbackDescription)
    assert (found.name, found.lacking) == (name, "")
    assert found.summary.endswith(".")
    assert found.text.startswith(found.summary)
    feedback = compressors.build_feedback(found.spelling)
    assert feedback.spelling == found.spelling
    assert feedback.has_momentum == found.has_momentum

    chunk = torch.randn(1000, generator=torch.Generator().manual_seed(5))
    state = {each: torch.zeros(1000) for each in found.sender_state}
    for codec in ("identity", "topk:0.1"):  # some begin without loss
        feedback.encode(compressors.build(codec), 2 * chunk if codec == "identity" else chunk, state, 0)
    assert all(bool(each.any()) for each in state.values())
    received = {each: torch.zeros(1000) for each in found.receiver_state}
    feedback.receive(chunk.clone(), received)
    assert all(bool(each.any()) == feedback.receiver_follows for each in received.values())
    assert found.needs_mean == bool(received) == ("the mean alone" in found.rules)


def test_everything_is_there_once() -> None:
    found = compressors.everything()
    assert [each.name for each in found if each.kind == "codec"] == shipped("muster.codecs")
    assert [each.name for each in found if each.kind == "feedback"] == shipped("muster.feedbacks")
    told = {each.name: each for each in found}
    assert told["topk"].spelling == "topk:0.01"
    assert "fraction" in told["topk"].argument
    assert told["econtrol"].source == "Gao, Islamov, Stich 2024"
    assert told["none"].summary == "Sends each chunk as it is; what the codec loses is lost."


def test_a_spelling_is_described_as_it_is_spelled() -> None:
    stochastic, plain = compressors.describe("int8:stochastic"), compressors.describe("int8")
    assert isinstance(stochastic, CodecDescription)
    assert isinstance(plain, CodecDescription)
    assert (stochastic.unbiased, plain.unbiased) == (True, False)
    assert (stochastic.omega, plain.omega) == (0.004, None)
    topk = compressors.describe("topk:0.25")
    assert isinstance(topk, CodecDescription)
    assert topk.delta == 0.25
    assert topk.bytes_max == 4 * 4 + 6 * CHUNK_SIZE // 4
    assert compressors.describe("dgc:0.0").spelling == "dgc:0.0"


def test_a_composition_tells_its_parts() -> None:
    found = compressors.describe("topk:0.01+int8+zstd")
    assert isinstance(found, CodecDescription)
    assert found.summary == "Composed of topk:0.01, int8, auto and zstd."
    assert list(found.parts) == ["topk:0.01", "int8", "auto", "zstd"]
    assert found.parts["int8"] == compressors.describe("int8").summary
    assert found.delta == compressors.build("topk:0.01+int8+zstd").delta(CHUNK_SIZE)
    choice = compressors.describe("topk:0.1+int8|int4")
    assert isinstance(choice, CodecDescription)
    assert choice.summary == "For each layer topk:0.1+int8+auto or int4."
    assert choice.parts["topk:0.1+int8+auto"] == "Composed of topk:0.1, int8 and auto."
    single = compressors.describe("topk:0.1|topk:0.1+identity+rice")
    assert isinstance(single, CodecDescription)
    assert list(single.parts) == ["topk:0.1", "topk:0.1+rice"]


@pytest.mark.parametrize(
    ("spelling", "why"),
    [
        ("topkk:0.1", "there is no codec 'topkk' .did you mean 'topk'"),
        ("ef144", "there is no error feedback 'ef144' .did you mean 'ef14'"),
        ("", "the name of a codec is missing"),
        ("topk:2", "above 0 and up to 1"),
        ("ef14:1", "ef14 takes no argument"),
        ("topk:0.01+ef14", "'ef14' is a kind of error feedback, and a kind of codec was asked for"),
        ("topk+int8", "needs the fraction to keep"),
    ],
)
def test_what_is_nothing_says_why(spelling: str, why: str) -> None:
    with pytest.raises(CodecError, match=why):
        compressors.describe(spelling)


@pytest.fixture
def plugged_in(plug_in: PlugIn) -> None:
    """A user's codec and feedback that need an argument, declare no more than they must and have no docstrings."""

    class Half(Codec):
        unbiased = False
        contractive = False
        linear = False
        spelling = "half:2"

        @classmethod
        def parse(cls, argument: str | None) -> Half:
            if argument is None:
                raise CodecError("half needs a number")
            return cls()

        def bytes_max(self, size: int) -> int:
            return 2 * size

        def encode_host(self, x: Any, seed: int) -> bytes:
            raise NotImplementedError

        def decode_host(self, body: Any, out: Any) -> None:
            raise NotImplementedError

    class Mine(Feedback):
        spelling = "mine:1"
        state_names = ()

        @classmethod
        def parse(cls, argument: str | None) -> Mine:
            if argument is None:
                raise CodecError("mine needs a number")
            return cls()

        def encode(self, codec: Codec, x: Any, state: Any, seed: int) -> bytes:
            raise NotImplementedError

    Half.__module__ = Mine.__module__ = "a_users_own"  # which says nothing of itself
    plug_in(CODECS, "half", Half)
    plug_in(FEEDBACKS, "mine", Mine)


@pytest.mark.usefixtures("plugged_in")
def test_what_declares_nothing_is_described_all_the_same() -> None:
    told = {each.name: each for each in compressors.everything()}
    assert {"topk", "half", "mine"} <= set(told)
    half, mine = told["half"], told["mine"]
    assert (half.spelling, half.summary, half.source, half.lacking) == ("", "", "", "half needs a number")
    assert (mine.spelling, mine.kind, mine.lacking) == ("", "feedback", "mine needs a number")
    assert isinstance(half, CodecDescription)
    assert half.bits_max is None
    with_argument = compressors.describe("half:2")
    assert isinstance(with_argument, CodecDescription)
    assert (with_argument.spelling, with_argument.bits_max, with_argument.delta) == ("half:2", 16, None)
    assert compressors.describe("mine:1").spelling == "mine:1"
