"""The pieces of a chunk, and the randomness that both ends of a link derive."""

from __future__ import annotations

import pytest

from compressors import Piece
from muster import places
from muster.layout import ParameterLayout, TensorSpec
from muster.places import Places


def make_layout(*shapes: tuple[int, ...]) -> ParameterLayout:
    return ParameterLayout(
        tensors=tuple(TensorSpec(name=f"t{i}", shape=shape, dtype="F32") for i, shape in enumerate(shapes))
    )


def test_a_small_model_is_one_chunk_of_its_own_tensors() -> None:
    layout = make_layout((4, 6), (4,), (2, 3, 5), (), (0, 3), (7, 1))
    found = places.pieces(layout, 0)
    assert found == (Piece(0, 4, 6), Piece(24, 1, 4), Piece(28, 2, 15), Piece(58, 1, 1), Piece(59, 7, 1))


@pytest.mark.parametrize("columns", [1, 3, 7, 10, 64])
def test_a_tensor_is_cut_where_its_chunk_ends(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr("muster.layout.CHUNK_COORDINATES", 10)
    layout = make_layout((3,), (6, columns), (5,))
    for index in range(layout.chunk_count):
        start, stop = layout.chunk_bounds(index)
        found = places.pieces(layout, index)
        assert [0, *(piece.stop for piece in found)] == [*(piece.start for piece in found), stop - start]
        for piece in found:
            assert piece.rows == 1 or piece.columns == columns
            assert piece.rows == 1 or (start + piece.start - 3) % columns == 0
    whole = [piece.rows for index in range(layout.chunk_count) for piece in places.pieces(layout, index)]
    assert columns > 3 or max(whole) > 1


def test_chunks_rounds_and_bases_have_randomness_of_their_own_and_senders_share_what_is_common() -> None:
    layout = make_layout((600_000,))
    here = Places(layout=layout, base_digest="b3:00", round=1, sender=5)
    others = [
        Places(layout=layout, base_digest="b3:00", round=2, sender=5).place(0),
        Places(layout=layout, base_digest="b3:01", round=1, sender=5).place(0),
        here.place(1),
    ]
    assert here.place(0) == here.place(0)
    for other in others:
        assert other.common != here.place(0).common
        assert other.own != here.place(0).own
    beside = Places(layout=layout, base_digest="b3:00", round=1, sender=6).place(0)
    assert beside.common == here.place(0).common
    assert beside.own != here.place(0).own
