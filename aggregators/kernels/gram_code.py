"""Machine code for inner products of rows, as the text of an LLVM module.

The products of a few rows by a few rows run over a block of columns in vectors that stay in registers, in
float32; then each vector is summed in float64, and added to the matrix. So a float32 sum never has more than
`block / lanes` terms, and only the upper half of the matrix is worked out.

The module defines `kernel(rows, groups, block, out, start, stop)`: `rows` points to the addresses of
`groups * side` rows, `out` to matrices [groups * side, groups * side] of float64, one for each `slab` of
columns, to which the products of the columns from `start` to `stop` are added where the row's group is not
behind the column's. `start`, `stop` and `block` are multiples of `lanes`, `start` and `slab` of `block`.
"""

from __future__ import annotations

from itertools import product

from aggregators.kernels.writer import Writer

_FRAME = """
declare i64 @llvm.smin.i64(i64, i64)
declare double @llvm.vector.reduce.fadd.v{lanes}f64(double, <{lanes} x double>)
{declaration}

define void @kernel(ptr noalias readonly %rows, i64 %groups, i64 %block, ptr noalias %out, i64 %start, i64 %stop) {{
{text}
}}
"""


def side(lanes: int) -> int:
    """How many rows meet as many rows at a time: their products fill the registers."""
    return 3 if lanes == 8 else 5


def module(lanes: int, slab: int) -> str:
    """LLVM code of the inner products for vectors of so many lanes and slabs of so many columns."""
    writer = Writer(lanes)
    rows = side(lanes)
    writer.line(f"mul i64 %groups, {rows}", "%order")
    writer.line("mul i64 %order, %order", "%cells")
    writer.say("br label %blocks")
    writer.begin("blocks")
    writer.say("%first = phi i64 [%start, %entry], [%end, %blocked]")
    beyond = writer.line("add i64 %first, %block")
    writer.line(f"call i64 @llvm.smin.i64(i64 {beyond}, i64 %stop)", "%end")
    place = writer.line(f"mul i64 {writer.line(f'udiv i64 %first, {slab}')}, %cells")
    writer.line(f"getelementptr double, ptr %out, i64 {place}", "%matrix")
    writer.say("br label %down")
    writer.begin("down")
    writer.say("%g = phi i64 [0, %blocks], [%g1, %downed]")
    writer.say("br label %across")
    writer.begin("across")
    writer.say("%h = phi i64 [%g, %down], [%h1, %tiled]")
    _tile(writer, rows)
    _again(writer, "h", "across", "downed")
    writer.begin("downed")
    _again(writer, "g", "down", "blocked")
    writer.begin("blocked")
    more = writer.line("icmp slt i64 %end, %stop")
    writer.say(f"br i1 {more}, label %blocks, label %done")
    writer.begin("done")
    writer.say("ret void")
    return _FRAME.format(lanes=lanes, declaration=writer.declare_multiply_add, text=writer.text)


def _again(writer: Writer, counter: str, block: str, after: str) -> None:
    writer.line(f"add i64 %{counter}, 1", f"%{counter}1")
    more = writer.line(f"icmp slt i64 %{counter}1, %groups")
    writer.say(f"br i1 {more}, label %{block}, label %{after}")


def _tile(writer: Writer, rows: int) -> None:
    """Adds the products of the rows of groups %g and %h over the columns from %first to %end."""
    downs = writer.line(f"mul i64 %g, {rows}", "%top")
    acrosses = writer.line(f"mul i64 %h, {rows}", "%left")
    ups = [writer.address("%rows", writer.line(f"add i64 {downs}, {i}")) for i in range(rows)]
    sides = [writer.address("%rows", writer.line(f"add i64 {acrosses}, {j}")) for j in range(rows)]
    pairs = list(product(range(rows), repeat=2))
    writer.say("br label %tile")
    writer.begin("tile")
    writer.say("%at = phi i64 [%first, %across], [%on, %tile]")
    for i, j in pairs:
        writer.say(f"%s{i}_{j} = phi {writer.type} [zeroinitializer, %across], [%t{i}_{j}, %tile]")
    above = [writer.load(row, "%at") for row in ups]
    for j, row in enumerate(sides):
        beside = writer.load(row, "%at")
        for i in range(rows):
            writer.multiply_add(above[i], beside, f"%s{i}_{j}", f"%t{i}_{j}")
    writer.line(f"add i64 %at, {writer.lanes}", "%on")
    more = writer.line("icmp slt i64 %on, %end")
    writer.say(f"br i1 {more}, label %tile, label %tiled")
    writer.begin("tiled")
    wide = f"<{writer.lanes} x double>"
    for i, j in pairs:
        row = writer.line(f"add i64 {downs}, {i}")
        place = writer.line(f"add i64 {writer.line(f'mul i64 {row}, %order')}, {acrosses}")
        cell = writer.element("double", writer.element("double", "%matrix", place), j)
        before = writer.line(f"load double, ptr {cell}")
        terms = writer.line(f"fpext {writer.type} %t{i}_{j} to {wide}")
        total = writer.line(  # halves are added to halves, not one lane to the next
            f"call reassoc double @llvm.vector.reduce.fadd.v{writer.lanes}f64(double {before}, {wide} {terms})"
        )
        writer.say(f"store double {total}, ptr {cell}")
