"""The run spec, a TOML file: its model, how it is read, and what is wrong with it in one list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods.lazy import reexport

if TYPE_CHECKING:
    from muster.spec.load import load_spec, parse_spec, spec_schema
    from muster.spec.model import RunSpec
    from muster.spec.problems import Problem

__all__ = ["Problem", "RunSpec", "load_spec", "parse_spec", "spec_schema"]

__getattr__, __dir__ = reexport(
    __name__,
    {
        "muster.spec.load": (
            "load_spec",
            "parse_spec",
            "spec_schema",
        ),
        "muster.spec.model": ("RunSpec",),
        "muster.spec.problems": ("Problem",),
    },
)
