"""Machine code against torch, to the byte, and both against the definitions."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from threading import Thread
from typing import ClassVar

import pytest
import torch

from aggregators import kernels
from aggregators.kernels import column_code, columns, inner, native, reference
from aggregators.kernels.mixing import Mixing
from aggregators.kernels.stages import Middle, Nearest, Vote


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stages(m):
    middle = ((m - 1) // 2, m // 2 + 1)
    few, most = max(1, m // 4), m - m // 4
    return [
        Middle(*middle),
        Middle(0, m),
        Middle(m // 5, m - m // 5),
        Nearest(most, *middle),
        Nearest(few, *middle),
        Nearest(most, m // 5, m - m // 5),
        Nearest(m, *middle),
        Vote(),
    ]


def reduced(X, stage, mixing=None, reduce=kernels.reduce):
    out = torch.full((X.shape[1],), 7.0, dtype=X.dtype)
    reduce(X, out, stage, mixing)
    return out


def same(a, b):
    """Byte for byte, but for the payload of NaN."""
    return torch.equal(
        a.nan_to_num(7e7).view(torch.int32), b.nan_to_num(7e7).view(torch.int32)
    ) and torch.equal(a.isnan(), b.isnan())


@pytest.fixture
def forget():
    """What has been compiled is forgotten before and after."""

    def clear():
        for cache in (native.machine, columns._kernel, columns._sum_kernel, inner._kernel):
            cache.cache_clear()

    clear()
    yield
    clear()


def test_machine_code_is_made_where_the_tests_run():
    assert native.machine() is not None
    assert columns._kernel(20, Middle(4, 16), True) is not None


@pytest.mark.parametrize("m", [1, 2, 3, 4, 7, 16, 20, 33, 65])
@pytest.mark.parametrize("values", ["random", "ties", "hostile"])
def test_machine_code_and_torch_give_the_same_bytes(m, values):
    X = random(m, m, 333)
    if values == "ties":
        X = (2 * X).round() / 2  # with zeros of both signs
    if values == "hostile":
        X[:, ::3] *= 1e38
        X[0] = torch.inf
        X[m // 2, 5:40] = -torch.inf
        X[m // 3, 50:70] = torch.nan
        X[m // 3, 80:100] = 1e-42
    before = X.clone()
    for stage in stages(m):
        assert same(reduced(X, stage), reduced(X, stage, reduce=reference.reduce)), stage
    assert torch.equal(X.view(torch.int32), before.view(torch.int32))


def by_definition(column, stage):
    ordered = sorted(column)
    if isinstance(stage, Vote):
        votes = sum((x > 0) - (x < 0) for x in column)
        return (votes > 0) - (votes < 0)
    middle = ordered[stage.low : stage.high]
    if isinstance(stage, Middle):
        return sum(middle) / len(middle)
    centre = sum(middle) / len(middle)
    nearest = sorted(ordered, key=lambda x: (abs(x - centre), x))[: stage.keep]
    return sum(nearest) / len(nearest)


@pytest.mark.parametrize("m", [1, 2, 3, 5, 8, 13, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stages_are_what_their_definitions_say(m, dtype):
    # Small integers: all sums are exact, and many values are equally far from the centre.
    X = torch.randint(-6, 7, (m, 200), generator=torch.Generator().manual_seed(m)).to(dtype)
    for stage in stages(m):
        if isinstance(stage, Nearest) and stage.high - stage.low > 2:
            continue  # the centre is rounded: what is equally far is not the same in float64
        expected = torch.tensor([by_definition(column, stage) for column in X.T.tolist()], dtype=dtype)
        assert torch.allclose(reduced(X, stage), expected, rtol=1e-6, atol=1e-6), stage
    X = random(m, m, 200).to(dtype)
    for stage in stages(m):
        if isinstance(stage, Nearest) and stage.keep < stage.high - stage.low:
            continue  # the two middle values are equally far, but for rounding
        expected = torch.tensor([by_definition(column, stage) for column in X.T.tolist()], dtype=dtype)
        assert torch.allclose(reduced(X, stage), expected, rtol=1e-5, atol=1e-6), stage


def test_order_of_rows_does_not_matter_to_the_byte():
    X = random(1, 23, 500)
    shuffled = X[torch.randperm(23, generator=torch.Generator().manual_seed(2))]
    for stage in stages(23):
        assert same(reduced(X, stage), reduced(shuffled, stage))


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 31, 63, 64, 65, 100])
def test_any_number_of_columns_and_nothing_beside_them(count):
    X = random(count, 9, count)
    W = Mixing(random(3, 2, 9))
    for stage in stages(9):
        room = torch.full((count + 40,), 7.0)
        kernels.reduce(X, room[20:-20], stage)
        assert same(room[20:-20], reduced(X, stage, reduce=reference.reduce))
        assert bool((room[:20] == 7).all() and (room[-20:] == 7).all())
    room = torch.full((4, count + 40), 7.0)
    kernels.mix(X, room[1:3, 20:-20], W)
    assert torch.allclose(room[1:3, 20:-20], W._matrix @ X, atol=1e-5)
    room[1:3, 20:-20] = 7
    assert bool((room == 7).all())


def test_strides_cuts_and_threads_leave_the_bytes():
    n, d = 11, 70_001
    X = random(5, n, d)
    W = Mixing(random(6, n, n).abs())
    layouts = [X, random(7, n, d + 13)[:, 6:-7].copy_(X), X.T.contiguous().T]
    whole: dict[object, torch.Tensor] = {}
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for layout in layouts[:2]:
                for stage in (Middle(2, 9), Nearest(8, 5, 6), Vote()):
                    for mixing in (None, W):
                        out = reduced(layout, stage, mixing)
                        assert same(whole.setdefault((stage, mixing), out), out)
                mixed = torch.empty(n, d)
                kernels.mix(layout, mixed, W)
                assert same(whole.setdefault("mixed", mixed), mixed)
                assert torch.equal(whole.setdefault("gram", kernels.gram(layout)), kernels.gram(layout))
    finally:
        torch.set_num_threads(threads)
    for stage in (Middle(2, 9), Nearest(8, 5, 6), Vote()):
        assert same(reduced(layouts[2], stage), whole[stage, None])  # columns side by side: by torch
        cuts = [0, 1, 17, 40_000, 40_077, d]
        pieces = [reduced(X[:, a:b], stage, W) for a, b in pairwise(cuts)]
        assert same(torch.cat(pieces), whole[stage, W])


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_vectors_of_another_width_give_the_same_bytes(lanes, forget, monkeypatch):
    # LLVM splits or widens what this CPU does not have.
    X, W = random(8, 20, 1_003), random(9, 20, 20)
    expected = {stage: reduced(X, stage) for stage in stages(20)}
    mixed, gram = reduced(X, Middle(4, 16), Mixing(W)), kernels.gram(X)
    columns._kernel.cache_clear()
    inner._kernel.cache_clear()
    machine = native.machine()
    assert machine is not None
    monkeypatch.setattr(native, "machine", lambda: replace(machine, lanes=lanes))
    for stage, values in expected.items():
        assert same(reduced(X, stage), values)
    assert same(reduced(X, Middle(4, 16), Mixing(W)), mixed)
    assert torch.allclose(kernels.gram(X), gram, rtol=1e-6, atol=1e-4)
    monkeypatch.undo()


@pytest.mark.parametrize("loss", ["no llvmlite", "a module that does not compile", "too many rows"])
def test_torch_stands_in(loss, forget, monkeypatch):
    X, W = random(10, 12, 400), Mixing(random(11, 5, 12))
    expected = {stage: reduced(X, stage) for stage in stages(12)}
    mixed, gram = torch.empty(5, 400), kernels.gram(X)
    kernels.mix(X, mixed, W)
    for cache in (native.machine, columns._kernel, columns._sum_kernel, inner._kernel):
        cache.cache_clear()
    if loss == "no llvmlite":
        monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
        monkeypatch.delattr("llvmlite.binding", raising=False)
        assert native.machine() is None
    elif loss == "too many rows":
        monkeypatch.setattr(columns, "ROWS_MOST", 4)
    else:
        monkeypatch.setattr(column_code, "module", lambda *_: "define void @kernel() { nonsense }")
        monkeypatch.setattr(inner.gram_code, "module", lambda *_: "nonsense")
    for stage, values in expected.items():
        assert columns._kernel(12, stage, False) is None
        assert same(reduced(X, stage), values)
        assert torch.allclose(
            reduced(X, Middle(1, 4), W), mixed.sort(dim=0).values[1:4].mean(dim=0), atol=1e-5
        )
    other = torch.empty(5, 400)
    kernels.mix(X, other, W)
    assert torch.allclose(other, mixed, atol=1e-5)
    assert torch.allclose(kernels.gram(X), gram, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 20])
def test_a_weighted_sum_has_the_bytes_of_a_row_of_w_x(n):
    # Long rows go through a kernel of their own, tile by tile.
    X, W = random(21, n, 9_003), random(22, 3, n)
    rows = torch.empty(3, 9_003)
    kernels.mix(X, rows, Mixing(W))
    for row in range(3):
        for columns_ in (9_003, 8_192, 4_096, 4_095):
            room = torch.full((columns_ + 32,), 7.0)
            kernels.mix(X[:, :columns_], room[None, 16:-16], Mixing(W[row : row + 1]))
            assert torch.equal(room[16:-16], rows[row, :columns_])
            assert bool((room[:16] == 7).all() and (room[-16:] == 7).all())


def test_rows_without_a_share_are_not_read():
    X = random(12, 6, 100)
    clean, wrong = X.clone(), X.clone()
    wrong[[1, 4]] = torch.nan
    W = random(13, 3, 6).double()
    W[:, [1, 4]] = 0
    chosen = torch.eye(6, dtype=torch.float64)[[5, 0, 2]]
    for matrix in (W, W[:1], chosen, chosen[:1]):
        mixing = Mixing(matrix)
        out = torch.empty(len(matrix), 100)
        kernels.mix(wrong, out, mixing)
        assert torch.allclose(out, (matrix @ clean.double()).float(), atol=1e-5)
        assert same(reduced(wrong, Middle(0, 1), mixing), reduced(clean, Middle(0, 1), mixing))
    nothing = torch.full((2, 100), 7.0)
    kernels.mix(wrong, nothing, Mixing(torch.zeros(2, 6)))
    assert not nothing.any()


def test_chosen_rows_are_themselves():
    X = random(14, 8, 300)
    rows = [7, 2, 2, 5, 0]
    out = torch.empty(5, 300)
    mixing = Mixing(torch.eye(8)[rows])
    kernels.mix(X, out, mixing)
    assert torch.equal(out, X[rows])
    assert same(reduced(X, Nearest(3, 2, 3), mixing), reduced(X[rows], Nearest(3, 2, 3)))


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 20), (2, 5), (20, 20), (30, 9), (50, 50)])
def test_mixing_and_what_is_made_of_it(m, n):
    X, W = random(15, n, 501), random(16, m, n).double()
    out = torch.empty(m, 501)
    kernels.mix(X, out, Mixing(W))
    assert torch.allclose(out, (W @ X.double()).float(), rtol=1e-5, atol=1e-5)
    for stage in stages(m):
        assert same(reduced(X, stage, Mixing(W)), reduced(out, stage)) or Mixing(W).chosen
    wide = torch.empty(m, 501, dtype=torch.float64)
    kernels.mix(X.double(), wide, Mixing(W))
    assert torch.allclose(wide, W @ X.double(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 20, 41])
@pytest.mark.parametrize("count", [1, 16, 1_000, 70_003])
def test_gram_is_close_and_exactly_symmetric(n, count):
    X = random(n, n, count)
    K = kernels.gram(X)
    assert K.dtype == torch.float64
    assert torch.equal(K, K.T)
    exact = X.double() @ X.double().T
    norms = exact.diagonal().sqrt()
    assert float(((K - exact).abs() / (norms[:, None] * norms[None, :])).max()) < 1e-6
    assert torch.allclose(kernels.gram(X.double()), exact, rtol=1e-12, atol=1e-9)


def test_a_row_that_is_not_finite_spoils_its_own_inner_products():
    X = random(17, 7, 2_000)
    clean = kernels.gram(X)
    X[2, 100], X[5, 1_999], X[6] = torch.nan, torch.inf, 1e30
    K = kernels.gram(X)
    rest = torch.tensor([0, 1, 3, 4])
    assert torch.equal(K[rest][:, rest], clean[rest][:, rest])
    assert not K.diagonal()[[2, 5, 6]].isfinite().any()


def test_threads_that_need_the_same_kernel_at_once_all_get_it(forget):
    X = random(18, 37, 64)
    expected = reduced(X, Middle(5, 30), reduce=reference.reduce)
    results = [torch.zeros(64) for _ in range(6)]
    threads = [Thread(target=kernels.reduce, args=(X, out, Middle(5, 30))) for out in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(out, expected) for out in results)


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("columns_", [40, 1_000, 150_001])
def test_every_range_is_done_once_on_any_number_of_threads(threads, columns_):
    class Counts:
        """Stands for a kernel; the list's methods are whole steps to other threads."""

        done: ClassVar[list[tuple[int, int]]] = []

        def call(self, *arguments):
            assert arguments[:4] == (1, 2, 3, 4)
            self.done.append(arguments[4:])

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        Counts.done.clear()
        columns.over_columns(Counts(), (1, 2, 3, 4), columns_, 10**9, align=16)
    finally:
        torch.set_num_threads(before)
    ranges = sorted(Counts.done)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == columns_
    assert all(one[1] == other[0] and one[1] % 16 == 0 for one, other in pairwise(ranges))
    assert len(ranges) > 1
