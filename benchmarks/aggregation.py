"""What a rule costs, in multiples of reading its input once.

The floor is one read pass (a sum; on a CUDA device half of a copy there) over the same matrix, measured in the same run
before and after each rule. A rule runs as the coordinator runs it: admitted updates, every pass that it takes, its
result in memory that is there. With `--versus PYTHON`, an interpreter of an environment that has ByzFL, its rules are
timed on matrices of the same shape.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import aggregators
from aggregators.core import registry
from aggregators.core.rule import Needs
from benchmarks.common import machine, parser, report, say

SHAPES = (
    (16, 1_000_000),
    (20, 1_000_000),
    (32, 1_000_000),
    (64, 1_000_000),
    (256, 1_000_000),
    (20, 11_700_000),
)
QUICK = ((20, 1_000_000),)
PRE = (("arc",), ("nnm",), ("bucketing:2",), ("clipping:2.0",), ("arc", "nnm"))
BEHIND_PRE = (
    *("trimmed-mean", "geometric-median", "multi-krum", "median", "meamed"),
    *("krum", "rfa", "caf", "dnc"),
)
SECONDS_EACH = 1.0
REPEATS = (3, 25)
# In multiples of the floor, for n = 20 and d = 1e6 on two cores; of a composition, see `_aim`.
AIMS = {
    "mean": 1.3,
    **dict.fromkeys(("median", "trimmed-mean", "meamed", "phocas", "sign-vote"), 2.0),
    **dict.fromkeys(
        ("krum", "multi-krum", "geometric-median", "rfa", "nna", "caf", "dnc", "fltrust", "flag"), 5.0
    ),
    "bulyan": 8.0,
    "mda": 100.0,
    "smea": 300.0,
}
ORDER_AIMS = {32: 3.0, 64: 6.0}


@dataclass(frozen=True)
class Case:
    rule: str
    pre: tuple[str, ...]
    n: int
    faults: int

    @property
    def name(self) -> str:
        return " + ".join((*self.pre, self.rule))

    def pipeline(self) -> aggregators.Pipeline:
        return aggregators.build(self.rule, pre=self.pre, faults=self.faults)


def cases(n: int, only: Sequence[str]) -> Iterator[Case]:
    """Every rule alone and every composition, where n updates are enough for f = n // 5."""
    names = registry.names(registry.RULES)
    chosen = [(name, ()) for name in names] + [(rule, pre) for pre in PRE for rule in BEHIND_PRE]
    for rule, pre in chosen:
        faults = 0 if rule == "mean" and not pre else n // 5
        case = Case(rule, pre, n, faults)
        if only and case.name not in only and rule not in only:
            continue
        if refusal := case.pipeline().refuse(n):
            say(f"left out: {case.name}: {refusal}")
            continue
        yield case


def best(run: Callable[[], object]) -> float:
    """Seconds of the quickest of several runs: these machines are shared, and noise only adds."""
    run()
    least, began, count = float("inf"), time.perf_counter(), 0
    while count < REPEATS[0] or (count < REPEATS[1] and time.perf_counter() - began < SECONDS_EACH):
        start = time.perf_counter()
        run()
        least = min(least, time.perf_counter() - start)
        count += 1
    return least


def finishing(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`run`, waiting for what it has started on `device`."""
    if device.type != "cuda":
        return run

    def whole() -> None:
        run()
        torch.cuda.synchronize(device)

    return whole


def floor_of(X: Tensor) -> float:
    """Seconds of one read pass; on a device half of those of a copy, which reads as much as it writes."""
    if X.device.type == "cpu":
        return best(lambda: X.view(-1).sum())
    there = torch.empty_like(X)
    return best(finishing(lambda: there.copy_(X), X.device)) / 2


def measure(X: Tensor, case: Case) -> dict[str, Any]:
    out = torch.empty(X.shape[1], device=X.device)
    needs = case.pipeline().needs
    trusted = 0 if Needs.TRUSTED in needs else None

    def once() -> None:
        aggregators.aggregate(
            X, case.rule, case.pre, faults=case.faults, trusted=trusted, admitted=True, out=out
        )

    run = finishing(once, X.device)
    start = time.perf_counter()
    run()
    first_seconds = time.perf_counter() - start
    before = floor_of(X)
    resident = _reset_peak()
    seconds = best(run)
    peak = _status("VmHWM") - resident
    floor = min(before, floor_of(X))
    return {
        "rule": case.name,
        "device": X.device.type,
        "n": case.n,
        "d": X.shape[1],
        "f": case.faults,
        "milliseconds": seconds * 1e3,
        "gb_per_second": X.numel() * 4 / seconds / 1e9,
        "floor_milliseconds": floor * 1e3,
        "times_floor": seconds / floor,
        "aim": _aim(case) if X.device.type == "cpu" else None,
        "extra_mb": peak / 1e6,
        "first_use_seconds": first_seconds,
    }


def _aim(case: Case) -> float | None:
    if case.n not in {20, 32, 64} or (case.n != 20 and (case.pre or AIMS.get(case.rule) != 2.0)):
        return None
    if case.n != 20:
        return ORDER_AIMS[case.n]
    return 8.0 if case.pre else AIMS.get(case.rule)


def _status(field: str) -> int:
    """A figure of this process in bytes; 0 where the system does not tell."""
    path = Path("/proc/self/status")
    if not path.exists():
        return 0
    line = next(line for line in path.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _reset_peak() -> int:
    """Forgets the greatest resident size so far; gives the present one."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return _status("VmRSS")


def versus(
    python: str, shapes: Sequence[tuple[int, int]], only: Sequence[str]
) -> dict[tuple[str, int, int], float]:
    """Seconds of ByzFL's rules by (name, n, d), measured by that interpreter."""
    script = Path(__file__).with_name("byzfl_timing.py")
    found: dict[tuple[str, int, int], float] = {}
    for n, d in shapes:
        done = subprocess.run(
            [python, str(script), str(n), str(d), str(n // 5), *only],
            check=True,
            capture_output=True,
            text=True,
        )
        for line in done.stdout.splitlines():
            row = json.loads(line)
            found[row["rule"], n, d] = row["seconds"]
    return found


def main() -> None:
    arguments = parser("What a rule costs, in multiples of one read pass.")
    arguments.add_argument(
        "--versus", metavar="PYTHON", help="an interpreter that has ByzFL: its rules beside ours"
    )
    arguments.add_argument(
        "--only", nargs="*", default=[], metavar="RULE", help="only these rules or compositions"
    )
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the updates are")
    arguments.add_argument("--n", type=int, nargs="*", help="only these numbers of updates")
    chosen = arguments.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        arguments.error("torch finds no CUDA device here")
    shapes = [shape for shape in (QUICK if chosen.quick else SHAPES) if not chosen.n or shape[0] in chosen.n]
    say(f"{machine()}")
    rows: list[dict[str, Any]] = []
    for n, d in shapes:
        X = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).to(chosen.device)
        for case in cases(n, chosen.only):
            rows.append(measure(X, case))
            say(
                f"{case.name} n={n} d={d}: {rows[-1]['milliseconds']:.1f} ms, {rows[-1]['times_floor']:.1f} x"
            )
        del X
    if chosen.versus:
        theirs = versus(chosen.versus, shapes, chosen.only)
        for row in rows:
            seconds = theirs.get((row["rule"], row["n"], row["d"]))
            row["byzfl_milliseconds"] = None if seconds is None else seconds * 1e3
            row["times_faster"] = None if seconds is None else seconds * 1e3 / row["milliseconds"]
    report(rows, as_json=chosen.json)


if __name__ == "__main__":
    main()
