"""Chunks are independent: of an update file any of them decode to their part of the whole, in any order and thread."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import compressors
from compressors.compose.planned import Planned
from exchange.contexts import ChunkContexts
from exchange.payload import GroupSpec, Manifest, PayloadReader, PayloadWriter
from muster.model.layout import ParameterLayout, TensorSpec
from muster.seeds import derive_seed

SPELLINGS = sorted(
    {each.spelling for each in compressors.everything() if isinstance(each, compressors.CodecDescription)}
    | {
        *("int8:stochastic", "qsgd:1", "randk:0.1:common", "randk:0.1:unscaled", "powersgd:2:common"),
        *("topk:0.01+auto", "topk:0.05+int8+rice", "topk:0.1+sign+varint+zstd", "topk:0.02+e4m3+rice+zstd"),
        *("randk:0.2+int8:stochastic", "randk:0.1:common:unscaled+int4+zstd", "kmeans:16+zstd", "bf16+zstd"),
        *("int8|int4|sign", "topk:0.01+int8|ferret:64|powersgd:2|randk:0.1", "fedzip:0.05|one-byte:4|qsgd:4"),
    }
)
SHAPES = ((300, 512), (64, 32, 3, 3), (700, 333), (333,), (7,), (512, 256), (111, 333))  # two cross a border


def layout() -> ParameterLayout:
    tensors = (TensorSpec(name=f"t{i}", shape=shape, dtype="F32") for i, shape in enumerate(SHAPES))
    return ParameterLayout(tensors=tuple(tensors))


LAYOUT = layout()
PLACES = ChunkContexts(layout=LAYOUT, base_digest="b" * 64, round=3, sender=99)


def update() -> Tensor:
    x = torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(0))
    for number, (offset, tensor) in enumerate(zip(LAYOUT.offsets, LAYOUT.tensors, strict=True)):
        x[offset : offset + tensor.size] *= 1e-3 * 3.0 ** (number % 4)
    x[: LAYOUT.size // 9] *= torch.arange(LAYOUT.size // 9) % 13 == 0
    return x


UPDATE = update()


def encode(spelling: str, index: int) -> bytes:
    codec = compressors.build(spelling)
    if isinstance(codec, Planned):
        codec = codec.planned(tuple(number % len(codec.codecs) for number in range(len(SHAPES))))
    start, stop = LAYOUT.chunk_bounds(index)
    place = PLACES.at(index)
    return codec.at(place).encode(UPDATE[start:stop], derive_seed(5, "codec", index))


def decode(path: Path, indices: Iterable[int]) -> Tensor:
    """These chunks of the file, decoded one after the other; everything else is NaN."""
    reader = PayloadReader(path)
    codec = compressors.build(reader.manifest.groups[0].codec)
    out = torch.full((LAYOUT.size,), torch.nan)
    for index in indices:
        start, stop = LAYOUT.chunk_bounds(index)
        place = PLACES.at(index)
        codec.at(place).decode(reader.chunk("params", index), out[start:stop])
    reader.close()
    return out


@pytest.fixture(params=SPELLINGS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An update file of three chunks, none of whose borders is a tensor's."""
    codec, digest = compressors.build(request.param), LAYOUT.digest
    manifest = Manifest(
        run_id="r",
        round=3,
        assignment_id="a",
        base_digest="b" * 64,
        layout_digest=digest,
        groups=(GroupSpec(name="params", codec=codec.spelling, size=LAYOUT.size),),
    )
    writer = PayloadWriter(tmp_path / "update", manifest)
    for index in range(LAYOUT.chunk_count):
        writer.append("params", encode(codec.spelling, index))
    writer.finish()
    return tmp_path / "update"


def test_any_chunks_are_their_part_of_the_whole(path: Path) -> None:
    assert LAYOUT.chunk_count == 3
    assert not {LAYOUT.chunk_bounds(index)[0] for index in (1, 2)} & set(LAYOUT.offsets)
    whole = decode(path, range(3))
    assert bool(torch.isfinite(whole).all())
    for first, last in ((0, 1), (1, 2), (2, 3), (0, 2), (1, 3)):
        part = decode(path, range(first, last))
        start, stop = LAYOUT.chunk_bounds(first)[0], LAYOUT.chunk_bounds(last - 1)[1]
        assert torch.equal(part[start:stop].view(torch.int32), whole[start:stop].view(torch.int32))
        assert bool(part[:start].isnan().all())
        assert bool(part[stop:].isnan().all())
    orders = ((2, 0, 1), (1, 2, 0))
    with ThreadPoolExecutor(2) as pool:
        for found in (decode(path, orders[0]), *pool.map(partial(decode, path), orders)):
            assert torch.equal(found.view(torch.int32), whole.view(torch.int32))


def test_chunks_are_encoded_in_any_order_and_thread(path: Path) -> None:
    reader = PayloadReader(path)
    spelling = reader.manifest.groups[0].codec
    with ThreadPoolExecutor(2) as pool:
        for index, body in zip((2, 1, 0), pool.map(partial(encode, spelling), (2, 1, 0)), strict=True):
            assert body == reader.chunk("params", index)
    reader.close()
