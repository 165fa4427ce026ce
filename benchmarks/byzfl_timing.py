"""Times ByzFL's rules (github.com/LPD-EPFL/byzfl), run by `benchmarks.aggregation --versus` with an interpreter that
has it, and by that alone: it imports nothing of this project.

Arguments: n d f [names]. A JSON object a line: {"rule": our name, "seconds": the quickest of several runs}.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

# Of the rules that `benchmarks.aggregation` puts behind pre-rules, those that ByzFL has.
BEHIND_PRE = (
    *("trimmed-mean", "geometric-median", "multi-krum", "median", "meamed"),
    *("krum", "rfa", "caf"),
)


def byzfl_rules() -> Any:
    """ByzFL's aggregators alone: its package imports its plots and data sets along, which have needs of their own."""
    found = importlib.util.find_spec("byzfl")
    if found is None or found.submodule_search_locations is None:
        sys.exit("this interpreter has no byzfl: pip install byzfl, in an environment of its own")
    package = ModuleType("byzfl")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators")


def rules(f: int) -> dict[str, Callable[[Any], Any]]:
    byzfl = byzfl_rules()

    def after(*steps: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(x: Any) -> Any:
            for step in steps:
                x = step(x)
            return x

        return run

    alone: dict[str, Callable[[Any], Any]] = {
        "mean": byzfl.Average(),
        "median": byzfl.Median(),
        "trimmed-mean": byzfl.TrMean(f=f),
        "meamed": byzfl.Meamed(f=f),
        "geometric-median": byzfl.GeometricMedian(),
        "rfa": byzfl.GeometricMedian(),
        "krum": byzfl.Krum(f=f),
        "multi-krum": byzfl.MultiKrum(f=f),
        "centered-clipping": byzfl.CenteredClipping(),
        "mda": byzfl.MDA(f=f),
        "nna": byzfl.MoNNA(f=f, idx=0),
        "caf": byzfl.CAF(f=f),
        "smea": byzfl.SMEA(f=f),
    }
    before: dict[str, Callable[[Any], Any]] = {
        "arc": byzfl.ARC(f=f),
        "nnm": byzfl.NNM(f=f),
        "bucketing:2": byzfl.Bucketing(s=2),
        "clipping:2.0": byzfl.Clipping(c=2.0),
    }
    composed = {
        f"{name} + {rule}": after(pre, alone[rule]) for name, pre in before.items() for rule in BEHIND_PRE
    }
    both = {f"arc + nnm + {rule}": after(before["arc"], before["nnm"], alone[rule]) for rule in BEHIND_PRE}
    return alone | composed | both


def main() -> None:
    n, d, f = map(int, sys.argv[1:4])
    only = set(sys.argv[4:])
    import torch

    X = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    for name, rule in rules(f).items():
        if (
            (only and name not in only)
            or (name in {"mda", "smea"} and n > 20)
            or (name == "smea" and d > 10**6)
        ):
            continue
        if name == "smea" and not only:  # minutes for one call
            continue
        least, spent = float("inf"), 0.0
        for _ in range(4):
            start = time.perf_counter()
            try:
                rule(X.clone() if "arc" in name or "clipping" in name else X)
            except (MemoryError, RuntimeError, ValueError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                break
            least, spent = min(least, time.perf_counter() - start), spent + time.perf_counter() - start
            if spent > 5:
                break
        if least < float("inf"):
            print(json.dumps({"rule": name, "seconds": least}), flush=True)


if __name__ == "__main__":
    main()
