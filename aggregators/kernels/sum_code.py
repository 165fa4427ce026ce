"""Machine code for one weighted sum of many rows, as the text of an LLVM module.

Few rows are read at a time, since a CPU follows few streams, and added to a tile of the result that stays in
the first-level cache. Each column's sum still runs over the rows in their order, one multiply-add to a row, so
it has the same bytes as the row of `column_code`.

The module defines `kernel(rows, count, weights, outs, start, stop)`, as `column_code` does; `stop - start` is
at least `TILE`, and the last tile is moved back to end at `stop`.
"""

from __future__ import annotations

from aggregators.kernels.writer import Writer

TILE = 4_096
_TOGETHER = 8  # rows

_FRAME = """
declare i64 @llvm.smin.i64(i64, i64)
{declaration}

define void @kernel(ptr noalias readonly %rows, i64 %count, ptr noalias readonly %weights,
                    ptr noalias readonly %outs, i64 %start, i64 %stop) {{
{text}
}}
"""


def module(lanes: int) -> str:
    """LLVM code of a weighted sum of rows for vectors of so many lanes."""
    writer = Writer(lanes)
    out = writer.address("%outs", 0)
    last = writer.line(f"sub i64 %stop, {TILE}")
    writer.say("br label %tile")
    writer.begin("tile")
    writer.say("%i = phi i64 [%start, %entry], [%next, %tiled]")
    writer.line(f"call i64 @llvm.smin.i64(i64 %i, i64 {last})", "%first")
    writer.line(f"add i64 %first, {TILE}", "%end")
    writer.say("br label %several")
    _rows(writer, out, "several", after="single", together=_TOGETHER)
    _rows(writer, out, "single", after="tiled", together=1)
    writer.begin("tiled")
    writer.line(f"add i64 %i, {TILE}", "%next")
    more = writer.line("icmp slt i64 %next, %stop")
    writer.say(f"br i1 {more}, label %tile, label %done")
    writer.begin("done")
    writer.say("ret void")
    return _FRAME.format(declaration=writer.declare_multiply_add, text=writer.text)


def _rows(writer: Writer, out: str, name: str, *, after: str, together: int) -> None:
    """Adds rows to the tile, `together` at a time, while there are so many; then goes on to `after`."""
    before = "0, %tile" if name == "several" else "%several_row, %several"
    writer.begin(name)
    writer.say(f"%{name}_row = phi i64 [{before}], [%{name}_on, %{name}_added]")
    writer.line(f"add i64 %{name}_row, {together}", f"%{name}_on")
    enough = writer.line(f"icmp sle i64 %{name}_on, %count")
    writer.say(f"br i1 {enough}, label %{name}_add, label %{after}")
    writer.begin(f"{name}_add")
    rows: list[tuple[str, str]] = []
    for offset in range(together):
        row = writer.line(f"add i64 %{name}_row, {offset}")
        share = writer.line(f"load float, ptr {writer.element('float', '%weights', row)}")
        rows.append((writer.address("%rows", row), writer.everywhere(share)))
    fresh = writer.line(f"icmp eq i64 %{name}_row, 0")
    writer.say(f"br label %{name}_columns")
    writer.begin(f"{name}_columns")
    at, on = f"%{name}_at", f"%{name}_further"
    writer.say(f"{at} = phi i64 [%first, %{name}_add], [{on}, %{name}_columns]")
    held = writer.load(out, at)
    total = writer.line(f"select i1 {fresh}, {writer.type} zeroinitializer, {writer.type} {held}")
    for row, share in rows:
        total = writer.multiply_add(share, writer.load(row, at), total)
    writer.store(total, out, at)
    writer.line(f"add i64 {at}, {writer.lanes}", on)
    more = writer.line(f"icmp slt i64 {on}, %end")
    writer.say(f"br i1 {more}, label %{name}_columns, label %{name}_added")
    writer.begin(f"{name}_added")
    writer.say(f"br label %{name}")
