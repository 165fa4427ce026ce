"""The pieces of a chunk, and the randomness that both ends of a link derive."""

from __future__ import annotations

import pytest

from exchange import contexts
from exchange.contexts import ChunkContexts
from muster.model.layout import ParameterLayout, TensorSpec


def make_layout(*shapes: tuple[int, ...]) -> ParameterLayout:
    return ParameterLayout(
        tensors=tuple(TensorSpec(name=f"t{i}", shape=shape, dtype="F32") for i, shape in enumerate(shapes))
    )


def test_a_small_model_is_one_chunk_of_its_own_tensors() -> None:
    layout = make_layout((4, 6), (4,), (2, 3, 5), (), (0, 3), (7, 1))
    found, layers = contexts.pieces(layout, 0)
    assert layers == ((24, 0), (28, 1), (58, 2), (59, 3), (66, 5))
    assert found == ((0, 4, 6), (24, 1, 4), (28, 2, 15), (58, 1, 1), (59, 7, 1))


@pytest.mark.parametrize("columns", [1, 3, 7, 10, 64])
def test_a_tensor_is_cut_where_its_chunk_ends(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr("muster.model.layout.CHUNK_COORDINATES", 10)
    layout = make_layout((3,), (6, columns), (5,))
    for index in range(layout.chunk_count):
        start, stop = layout.chunk_bounds(index)
        found, layers = contexts.pieces(layout, index)
        assert layers[-1][0] == stop - start
        stops = [at + rows * width for at, rows, width in found]
        assert [0, *stops] == [*(at for at, _, _ in found), stop - start]
        for at, rows, width in found:
            assert rows == 1 or (width == columns and (start + at - 3) % columns == 0)
    whole = [rows for index in range(layout.chunk_count) for _, rows, _ in contexts.pieces(layout, index)[0]]
    assert columns > 3 or max(whole) > 1


def test_chunks_rounds_and_bases_have_randomness_of_their_own_and_senders_share_what_is_common() -> None:
    layout = make_layout((600_000,))
    here = ChunkContexts(layout=layout, base_digest="b3:00", round=1, sender=5)
    others = [
        ChunkContexts(layout=layout, base_digest="b3:00", round=2, sender=5).at(0),
        ChunkContexts(layout=layout, base_digest="b3:01", round=1, sender=5).at(0),
        here.at(1),
    ]
    common, own, *_ = here.at(0)
    for other in others:
        assert other[0] != common
        assert other[1] != own
    beside = ChunkContexts(layout=layout, base_digest="b3:00", round=1, sender=6).at(0)
    assert beside[0] == common
    assert beside[1] != own
