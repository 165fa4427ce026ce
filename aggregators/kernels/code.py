"""Machine code for one shape of column kernel, as the text of an LLVM module.

The network is written out as straight-line minimum and maximum of vectors: one vector holds the values of one
row in neighbouring columns, every row of those columns is loaded once, and what fits stays in registers. No
fast-math flag is used: a minimum is `a < b ? a : b`, which is one instruction where the machine has it, NaN is
looked for by comparing the loaded rows with themselves, and sums keep their order.

The module defines `kernel(rows, outs, start, stop)`, where `rows` points to the addresses of the rows and
`outs` to that of the result, and `stop - start` is at least `lanes`: the last vector is moved back to end at
`stop`, so some columns may be worked out twice, to the same value.
"""

from __future__ import annotations

from aggregators.kernels.network import pruned
from aggregators.kernels.stages import Middle, Nearest, Stage

_FRAME = """
declare i64 @llvm.smin.i64(i64, i64)

define void @kernel(ptr noalias readonly %rows, ptr noalias %out, i64 %start, i64 %stop) {{
entry:
  %last = sub i64 %stop, {lanes}
  br label %loop
loop:
  %i = phi i64 [%start, %entry], [%next, %loop]
  %at = call i64 @llvm.smin.i64(i64 %i, i64 %last)
{body}
  %next = add i64 %i, {lanes}
  %more = icmp slt i64 %next, %stop
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""


def reduction(m: int, stage: Stage, lanes: int) -> str:
    """The module that makes one value of m, `lanes` columns to a vector."""
    body = _Body(m, lanes)
    match stage:
        case Middle(low, high):
            body.sort(low, high)
            result = body.mean(body.values[low:high])
        case Nearest():
            result = body.nearest(stage)
        case _:
            result = body.vote()
    body.store(body.unless_nan(result))
    return _FRAME.format(lanes=lanes, body=body.text)


class _Body:
    """The loop's body, line by line; `values` are the wires."""

    def __init__(self, m: int, lanes: int) -> None:
        self._lanes = lanes
        self._lines: list[str] = []
        self._type = f"<{lanes} x float>"
        self._mask = f"<{lanes} x i1>"
        self._loaded = [self._load(row) for row in range(m)]
        self.values = list(self._loaded)

    @property
    def text(self) -> str:
        return "\n".join(self._lines)

    def sort(self, low: int, high: int) -> None:
        """Puts the ranks `low` to `high - 1` on their wires."""
        for kept in pruned(len(self.values), low, high):
            a, b = self.values[kept.i], self.values[kept.j]
            if kept.lesser:
                self.values[kept.i] = self._choose("olt", a, b)
            if kept.greater:
                self.values[kept.j] = self._choose("ogt", a, b)

    def mean(self, values: list[str]) -> str:
        total = "zeroinitializer"
        for value in values:
            total = self._float("fadd", total, value)
        return self._float("fdiv", total, self._constant(len(values))) if len(values) > 1 else total

    def nearest(self, stage: Nearest) -> str:
        m, keep = len(self.values), stage.keep
        self.sort(0, m)
        centre = self.mean(self.values[stage.low : stage.high])
        kept = self.values[:keep]
        for k in range(m - keep):
            above = self._float("fsub", self.values[k + keep], centre)
            below = self._float("fsub", centre, self.values[k])
            farther = self._compare("olt", above, below)
            kept[k % keep] = self._select(farther, self.values[k + keep], kept[k % keep])
        return self.mean(kept)

    def vote(self) -> str:
        counts = f"<{self._lanes} x i32>"
        count = "zeroinitializer"
        for value in self.values:
            for name, operation in (("ogt", "sub"), ("olt", "add")):  # a true mask is -1 in every bit
                mask = self._compare(name, value, "zeroinitializer")
                wide = self._line(f"sext {self._mask} {mask} to {counts}")
                count = self._line(f"{operation} {counts} {count}, {wide}")
        votes = self._line(f"sitofp {counts} {count} to {self._type}")
        positive = self._compare("ogt", votes, "zeroinitializer")
        negative = self._compare("olt", votes, "zeroinitializer")
        sign = self._select(negative, self._constant(-1), "zeroinitializer")
        return self._select(positive, self._constant(1), sign)

    def unless_nan(self, value: str) -> str:
        """`value`, or NaN in the columns that hold a NaN."""
        lost = ""
        for a, b in zip(self._loaded[::2], [*self._loaded[1::2], self._loaded[-1]], strict=False):
            pair = self._compare("uno", a, b)
            lost = self._line(f"or {self._mask} {lost}, {pair}") if lost else pair
        return self._select(lost, self._constant(float("nan")), value)

    def store(self, value: str) -> None:
        address = self._line("getelementptr float, ptr %out, i64 %at")
        self._lines.append(f"  store {self._type} {value}, ptr {address}, align 4")

    def _load(self, row: int) -> str:
        place = self._line(f"getelementptr ptr, ptr %rows, i64 {row}")
        start = self._line(f"load ptr, ptr {place}")
        address = self._line(f"getelementptr float, ptr {start}, i64 %at")
        return self._line(f"load {self._type}, ptr {address}, align 4")

    def _choose(self, comparison: str, a: str, b: str) -> str:
        return self._select(self._compare(comparison, a, b), a, b)

    def _compare(self, comparison: str, a: str, b: str) -> str:
        return self._line(f"fcmp {comparison} {self._type} {a}, {b}")

    def _select(self, mask: str, a: str, b: str) -> str:
        return self._line(f"select {self._mask} {mask}, {self._type} {a}, {self._type} {b}")

    def _float(self, operation: str, a: str, b: str) -> str:
        return self._line(f"{operation} {self._type} {a}, {b}")

    def _constant(self, value: float) -> str:
        one = "0x7FF8000000000000" if value != value else f"{float(value):.1f}"  # noqa: PLR0124 - NaN
        return "<" + ", ".join([f"float {one}"] * self._lanes) + ">"

    def _line(self, expression: str) -> str:
        name = f"%v{len(self._lines)}"
        self._lines.append(f"  {name} = {expression}")
        return name
