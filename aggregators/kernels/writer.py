"""The text of LLVM instructions on vectors of float32, line by line."""

from __future__ import annotations

import math


class Writer:
    """Collects the instructions of one function; each method writes one and gives the name of its value.

    No fast-math flag is used: a minimum is `a < b ? a : b`, which is one instruction where the CPU has it,
    sums keep their order, and multiply-add rounds once on every machine.
    """

    def __init__(self, lanes: int) -> None:
        """`lanes` values to a vector; LLVM makes several registers of one that is wider than the CPU's."""
        self.lanes = lanes
        self.type = f"<{lanes} x float>"
        self.mask = f"<{lanes} x i1>"
        self.block = "entry"
        self._lines: list[str] = ["entry:"]
        self._names = 0

    @property
    def text(self) -> str:
        return "\n".join(self._lines)

    def begin(self, block: str) -> None:
        """Starts a basic block; the one before must have ended with a branch."""
        self._lines.append(f"{block}:")
        self.block = block

    def say(self, instruction: str) -> None:
        """An instruction without a value."""
        self._lines.append(f"  {instruction}")

    def line(self, expression: str, name: str = "") -> str:
        if not name:
            self._names += 1
            name = f"%v{self._names}"
        self._lines.append(f"  {name} = {expression}")
        return name

    def element(self, type_: str, array: str, index: int | str) -> str:
        """The address of array[index]."""
        return self.line(f"getelementptr {type_}, ptr {array}, i64 {index}")

    def address(self, array: str, index: int | str) -> str:
        """array[index] of an array of addresses."""
        return self.line(f"load ptr, ptr {self.element('ptr', array, index)}")

    def load(self, array: str, index: str) -> str:
        """The vector that begins at array[index]."""
        return self.line(f"load {self.type}, ptr {self.element('float', array, index)}, align 4")

    def store(self, value: str, array: str, index: str) -> None:
        self.say(f"store {self.type} {value}, ptr {self.element('float', array, index)}, align 4")

    def compare(self, comparison: str, a: str, b: str) -> str:
        return self.line(f"fcmp {comparison} {self.type} {a}, {b}")

    def select(self, mask: str, a: str, b: str) -> str:
        return self.line(f"select {self.mask} {mask}, {self.type} {a}, {self.type} {b}")

    def minimum(self, a: str, b: str) -> str:
        return self.select(self.compare("olt", a, b), a, b)

    def maximum(self, a: str, b: str) -> str:
        return self.select(self.compare("ogt", a, b), a, b)

    def compute(self, operation: str, a: str, b: str) -> str:
        return self.line(f"{operation} {self.type} {a}, {b}")

    def multiply_add(self, a: str, b: str, total: str, name: str = "") -> str:
        """a * b + total, rounded once."""
        arguments = ", ".join(f"{self.type} {each}" for each in (a, b, total))
        return self.line(f"call {self.type} @llvm.fma.v{self.lanes}f32({arguments})", name)

    @property
    def declare_multiply_add(self) -> str:
        return f"declare {self.type} @llvm.fma.v{self.lanes}f32({self.type}, {self.type}, {self.type})"

    def constant(self, value: float) -> str:
        one = "0x7FF8000000000000" if math.isnan(value) else f"{float(value):.1f}"
        return "<" + ", ".join([f"float {one}"] * self.lanes) + ">"

    def everywhere(self, scalar: str) -> str:
        """A vector of one float."""
        first = self.line(f"insertelement {self.type} poison, float {scalar}, i64 0")
        return self.line(
            f"shufflevector {self.type} {first}, {self.type} poison, <{self.lanes} x i32> zeroinitializer"
        )
