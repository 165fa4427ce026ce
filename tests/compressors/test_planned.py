"""A codec for each layer: what is sent keeps the first codec's error and is smaller, and any choice decodes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import compressors
from compressors import ChunkContext, DecodeError
from compressors.compose.planned import LAYER_MIN, Planned, Planner

SPELLING = "topk:0.02+int8|topk:0.005+int8|topk:0.1+int8|int4"
PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=60)


def planned(spelling: str = SPELLING) -> Planned:
    codec = compressors.build(spelling)
    assert isinstance(codec, Planned)
    return codec


def place(*sizes: int, first: int = 0) -> ChunkContext:
    stops = itertools.accumulate(sizes)
    return ChunkContext(5, 6, layers=tuple((stop, first + number) for number, stop in enumerate(stops)))


def layers(*sizes: int) -> Tensor:
    """Some even, some with heavy tails; their scales differ as in a network."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(size, generator=generator)
        * torch.exp(number % 3 * torch.randn(size, generator=generator)) * 3.0 ** (number % 4)
        for number, size in enumerate(sizes)
    ]  # fmt: skip
    return torch.cat(parts)


def trip(codec: compressors.Codec, x: Tensor) -> tuple[int, float]:
    """Bytes, and the squared error."""
    body, out = codec.encode(x, 1), torch.full_like(x, math.nan)
    assert len(body) <= codec.bytes_max(x.numel())
    codec.decode(memoryview(body), out)
    return len(body), float((out - x).double().square().sum())


SIZES = (3000, 40, 5000, 1500, 20_000, 10, 7, 4000, 9000, 2000, 64)


def test_a_planned_update_is_smaller_at_no_more_error() -> None:
    codec, here, x = planned(), place(*SIZES), layers(*SIZES)
    planner = Planner(codec, len(SIZES))
    assert planner.at(here).encode(x, 1) == codec.at(here).encode(x, 1)
    choice = planner.choice()
    assert len(set(choice)) > 1
    uniform = trip(codec.at(here), x)
    sent = trip(codec.planned(choice).at(here), x)
    assert sent[1] <= uniform[1]
    assert sent[0] < 0.9 * uniform[0]


def test_one_plan_is_made_of_all_chunks() -> None:
    """Within one layer a chunk has nothing to choose; the layers of several chunks have."""
    codec = planned("topk:0.02|topk:0.001|topk:0.022|topk:0.025|topk:0.03")
    planner = Planner(codec, 2)
    chunks = [layers(6000), 30 * layers(6000, 6000)[6000:], layers(5000)]
    places = [place(6000), place(6000, first=1), place(5000, first=1)]
    for x, here in zip(chunks, places, strict=True):
        planner.at(here).encode(x, 1)
    choice = planner.choice()
    totals = [
        [
            sum(each)
            for each in zip(*(trip(c.at(p), x) for x, p in zip(chunks, places, strict=True)), strict=True)
        ]
        for c in (codec, codec.planned(choice))
    ]
    assert totals[1][0] < totals[0][0]
    assert totals[1][1] <= totals[0][1]


def test_small_layers_are_joined_to_the_next() -> None:
    here = planned().at(place(*SIZES))
    found = here.stretches(sum(SIZES))
    assert [(each.layer, each.stop - each.start) for each in found] == [
        (0, 3000), (1, 5040), (3, 1500), (4, 20_000), (5, 4017), (8, 9000), (9, 2000), (10, 64),
    ]  # fmt: skip
    assert len({each.place.own for each in found}) == len(found)


def test_a_layer_of_matrices_keeps_them() -> None:
    here = ChunkContext(
        1, 2, pieces=((0, 30, 50), (1500, 1, 50), (1550, 40, 40)), layers=((1500, 0), (3150, 2))
    )
    first, second = planned().at(here).stretches(3150)
    assert first.place.pieces == ((0, 30, 50),)
    assert second.place.pieces == ((0, 1, 50), (50, 40, 40))


def test_without_a_place_or_a_plan_the_chunk_is_one_layer_of_the_first_codec() -> None:
    x = layers(700)
    body = planned().encode(x, 0)
    assert body[0] == 0
    assert body[2:] == compressors.build("topk:0.02+int8").encode(x, 0)
    with pytest.raises(ValueError, match="700 coordinates, and its place is for 800"):
        planned().at(place(800)).encode(x, 0)


@PROPERTY
@given(data=st.data())
def test_every_choice_decodes_within_the_largest_size(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 3 * LAYER_MIN), min_size=1, max_size=12))
    choice = tuple(data.draw(st.integers(0, 3)) for _ in sizes)
    x = layers(*sizes)
    trip(planned().planned(choice).at(place(*sizes)), x)


@PROPERTY
@given(data=st.data())
def test_damage_never_crashes(data: st.DataObject) -> None:
    codec, x = planned().planned((1, 0, 2, 3)).at(place(1500, 1500, 1100, 30)), layers(1500, 1500, 1100, 30)
    body = bytearray(codec.encode(x, 0))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, 8 * len(body) - 1))
        body[at // 8] ^= 1 << at % 8
    cut = data.draw(st.integers(0, len(body)))
    for hostile in (bytes(body), bytes(body[:cut]), bytes(body) + b"\0", data.draw(st.binary(max_size=50))):
        out = torch.full_like(x, 7.0)
        try:
            codec.decode(hostile, out)
        except DecodeError:
            assert bool((out == 7.0).all())
        else:
            assert bool(torch.isfinite(out).all())


def test_a_body_with_another_codec_than_the_runs_is_refused() -> None:
    codec = planned().at(place(1500, 1500))
    body = bytearray(codec.encode(layers(1500, 1500), 0))
    for number, why in (
        (4, "not among those of the run"),
        (255, "not among those of the run"),
        (3, "bytes where"),
    ):
        body[0] = number
        with pytest.raises(DecodeError, match=why):
            codec.decode(bytes(body), torch.empty(3000))


def test_what_is_not_finite_makes_no_plan() -> None:
    planner, x = Planner(planned(), 1), layers(2000)
    x[3] = math.nan
    planner.at(place(2000)).encode(x, 0)
    assert planner.choice() == ()


@pytest.mark.parametrize(
    ("spelling", "why"),
    [
        ("int8|int8", "has the same codec twice"),
        ("topk:0.1+auto|topk:0.10+rice|topk:0.1+identity", "has the same codec twice"),
        ("|".join(f"topk:0.{number}" for number in range(1, 10)), "2 to 8 codecs, not 9"),
        ("int8|", r"nothing stands after the \| of 'int8\|'"),
        ("|".join(f"topk:0.{number}23456789012345+stochastic" for number in range(1, 8)), "no codec"),
        (
            "|".join(f"topk:0.{number}2345678901234567+qsgd:101+rice+zstd:19" for number in range(1, 8)),
            "256 char",
        ),
    ],
)
def test_wrong_choices_say_what_is_wrong(spelling: str, why: str) -> None:
    with pytest.raises(compressors.CodecError, match=why):
        compressors.build(spelling)


def test_a_choice_is_what_all_of_its_codecs_are() -> None:
    mixed, good = planned("int8|terngrad"), planned("int8|topk:0.01|e3m0")
    assert not mixed.contractive
    assert not planned("terngrad|qsgd:4").unbiased  # the plan looks at how their draws came out
    assert good.contractive
    assert good.delta(1 << 18) == compressors.build("topk:0.01").delta(1 << 18)
    assert compressors.build(good.spelling).spelling == good.spelling
