"""Machine code for one shape of column kernel, as the text of an LLVM module.

The network is written out as straight-line minimum and maximum of vectors: one vector holds the values of one
row in neighbouring columns, every row of those columns is read once, and what fits stays in registers. The m
rows are read as they are, or made from any number of rows by a mixing matrix, and never written to memory in
between. NaN is looked for by comparing each row with itself.

The module defines `kernel(rows, count, weights, outs, start, stop)`: `rows` and `outs` point to the addresses
of rows, `count` is the number of rows, at least 1, and `weights` [count, m] the mixing matrix, transposed.
`stop - start` is at least the width of a vector: the last vector is moved back to end at `stop`, so that some
columns are worked out twice, to the same value.
"""

from __future__ import annotations

from itertools import pairwise

from aggregators.kernels.network import pruned
from aggregators.kernels.stages import Middle, Nearest, Stage
from aggregators.kernels.writer import Writer

_SUMS_MOST = {16: 24, 8: 12, 4: 20}  # running sums that stay in the registers of such vectors

_FRAME = """
declare i64 @llvm.smin.i64(i64, i64)
{declaration}

define void @kernel(ptr noalias readonly %rows, i64 %count, ptr noalias readonly %weights,
                    ptr noalias readonly %outs, i64 %start, i64 %stop) {{
{text}
}}
"""


def vector(m: int, stage: Stage | None, lanes: int) -> int:
    """How many columns the kernel works on at a time: of few sums, several registers full."""
    return lanes if stage is not None else lanes * max(1, min(4, 16 // m))


def module(m: int, stage: Stage | None, mixed: bool, lanes: int) -> str:
    """The module that makes `stage` of m rows, or (None) writes the m rows of W @ X."""
    writer = Writer(vector(m, stage, lanes))
    last = writer.line(f"sub i64 %stop, {writer.lanes}")
    writer.say("br label %loop")
    writer.begin("loop")
    writer.say("%i = phi i64 [%start, %entry], [%next, %latch]")
    at = writer.line(f"call i64 @llvm.smin.i64(i64 %i, i64 {last})")
    rows = _mixed(writer, m, at, _SUMS_MOST[lanes]) if mixed else _read(writer, m, at)
    results = rows if stage is None else [_reduced(writer, rows, stage)]
    for row, result in enumerate(results):
        writer.store(result, writer.address("%outs", row), at)
    writer.say("br label %latch")
    writer.begin("latch")
    writer.line(f"add i64 %i, {writer.lanes}", "%next")
    more = writer.line("icmp slt i64 %next, %stop")
    writer.say(f"br i1 {more}, label %loop, label %done")
    writer.begin("done")
    writer.say("ret void")
    return _FRAME.format(declaration=writer.declare_multiply_add if mixed else "", text=writer.text)


def _read(writer: Writer, m: int, at: str) -> list[str]:
    return [writer.load(writer.address("%rows", row), at) for row in range(m)]


def _mixed(writer: Writer, m: int, at: str, most: int) -> list[str]:
    """The m rows of W @ X, each summed in the order of the rows of X."""
    groups = -(-m // most)
    bounds = [m * group // groups for group in range(groups + 1)]
    sums: list[str] = []
    for first, end in pairwise(bounds):
        before, block = writer.block, f"mix{first}"
        writer.say(f"br label %{block}")
        writer.begin(block)
        writer.say(f"%j{first} = phi i64 [0, %{before}], [%k{first}, %{block}]")
        for i in range(first, end):
            writer.say(f"%s{i} = phi {writer.type} [zeroinitializer, %{before}], [%t{i}, %{block}]")
        value = writer.load(writer.address("%rows", f"%j{first}"), at)
        shares = writer.element("float", "%weights", writer.line(f"mul i64 %j{first}, {m}"))
        for i in range(first, end):
            share = writer.line(f"load float, ptr {writer.element('float', shares, i)}")
            sums.append(writer.multiply_add(writer.everywhere(share), value, f"%s{i}", f"%t{i}"))
        writer.line(f"add i64 %j{first}, 1", f"%k{first}")
        more = writer.line(f"icmp slt i64 %k{first}, %count")
        writer.say(f"br i1 {more}, label %{block}, label %mixed{first}")
        writer.begin(f"mixed{first}")
    return sums


def _reduced(writer: Writer, rows: list[str], stage: Stage) -> str:
    match stage:
        case Middle(low, high):
            result = _mean(writer, _sorted(writer, rows, low, high)[low:high])
        case Nearest():
            result = _nearest(writer, rows, stage)
        case _:
            result = _vote(writer, rows)
    lost = ""
    for a, b in zip(rows[::2], [*rows[1::2], rows[-1]], strict=False):
        pair = writer.compare("uno", a, b)
        lost = writer.line(f"or {writer.mask} {lost}, {pair}") if lost else pair
    return writer.select(lost, writer.constant(float("nan")), result)


def _sorted(writer: Writer, rows: list[str], low: int, high: int) -> list[str]:
    """Wires that hold the ranks `low` to `high - 1`, each on its own; the others hold anything."""
    wires = list(rows)
    for kept in pruned(len(rows), low, high):
        a, b = wires[kept.i], wires[kept.j]
        if kept.lesser:
            wires[kept.i] = writer.minimum(a, b)
        if kept.greater:
            wires[kept.j] = writer.maximum(a, b)
    return wires


def _mean(writer: Writer, values: list[str]) -> str:
    total = "zeroinitializer"
    for value in values:
        total = writer.compute("fadd", total, value)
    return writer.compute("fdiv", total, writer.constant(len(values))) if len(values) > 1 else total


def _nearest(writer: Writer, rows: list[str], stage: Nearest) -> str:
    ordered = _sorted(writer, rows, 0, len(rows))
    centre = _mean(writer, ordered[stage.low : stage.high])
    kept = ordered[: stage.keep]
    for least, greatest in zip(range(len(rows)), range(stage.keep, len(rows)), strict=False):
        above = writer.compute("fsub", ordered[greatest], centre)
        below = writer.compute("fsub", centre, ordered[least])
        nearer = writer.compare("olt", above, below)
        kept[least % stage.keep] = writer.select(nearer, ordered[greatest], kept[least % stage.keep])
    return _mean(writer, kept)


def _vote(writer: Writer, rows: list[str]) -> str:
    counts = f"<{writer.lanes} x i32>"
    count = "zeroinitializer"
    for row in rows:
        for comparison, operation in (("ogt", "sub"), ("olt", "add")):  # a true mask is -1
            mask = writer.compare(comparison, row, "zeroinitializer")
            wide = writer.line(f"sext {writer.mask} {mask} to {counts}")
            count = writer.line(f"{operation} {counts} {count}, {wide}")
    votes = writer.line(f"sitofp {counts} {count} to {writer.type}")
    one, minus = writer.constant(1), writer.constant(-1)
    return writer.maximum(writer.minimum(votes, one), minus)
