"""Updates in mapped files, far more than memory should hold: the speed of a rule, and the memory that it takes.

32 updates of 400 MB each lie in files, as the coordinator's blob store keeps them. The floor reads every byte of them
once by a plain sum. Memory is the peak of this process's anonymous memory above what it had before (mapped pages
belong to the page cache, which the system takes back when it likes).
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import aggregators
from benchmarks.common import parser, report, say

CASES = (
    ("mean", ()),
    ("median", ()),
    ("trimmed-mean", ()),
    ("multi-krum", ()),
    ("trimmed-mean", ("arc", "nnm")),
)
INTERVAL_SECONDS = 0.005


class AnonymousPeak:
    """The greatest anonymous memory while it is open, in bytes above that at its start."""

    def __enter__(self) -> AnonymousPeak:
        self._done = threading.Event()
        self._start = self._peak = _anonymous()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        return self._peak - self._start

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL_SECONDS):
            self._peak = max(self._peak, _anonymous())


def _anonymous() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("RssAnon:")).split()[1]) * 1024


def mapped(path: Path, size: int) -> Tensor:
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.float32)


def write_updates(folder: Path, n: int, size: int) -> list[Path]:
    """Values of one normal block, turned by another step in each file: making them must not take all day."""
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    paths: list[Path] = []
    for row in range(n):
        path = folder / f"{row:03}.bin"
        with path.open("wb") as file:
            for start in range(0, size, len(block)):
                turned = block.roll(7919 * (row + 1) + 13 * start // len(block))
                file.write(turned[: size - start].numpy().tobytes())
        paths.append(path)
    return paths


def main() -> None:
    arguments = parser("Rules over mapped files.")
    arguments.add_argument(
        "--folder", type=Path, help="where to put the files (default: the temporary folder)"
    )
    chosen = arguments.parse_args()
    n, size = (8, 10_000_000) if chosen.quick else (32, 100_000_000)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        say(f"writing {n} files of {size * 4 // 10**6} MB")
        paths = write_updates(Path(name), n, size)
        start = time.perf_counter()
        for path in paths:
            mapped(path, size).sum()
        floor = time.perf_counter() - start
        result = Path(name) / "result.bin"
        result.write_bytes(bytes(4 * size))  # its blocks and pages are there before anything is timed
        out = mapped(result, size)
        for rule, pre in CASES:
            faults = 0 if rule == "mean" else n // 5
            with AnonymousPeak() as peak:
                start = time.perf_counter()
                source = aggregators.RowsSource([mapped(path, size) for path in paths])
                aggregators.aggregate(source, rule, pre, faults=faults, admitted=True, out=out)
                spent = time.perf_counter() - start
            rows.append(
                {
                    "rule": " + ".join((*pre, rule)),
                    "n": n,
                    "mb_each": size * 4 / 1e6,
                    "seconds": spent,
                    "gb_per_second": n * size * 4 / spent / 1e9,
                    "times_floor": spent / floor,
                    "anonymous_mb": peak.bytes / 1e6,
                }
            )
            say(f"{rows[-1]}")
    report(rows, as_json=chosen.json)


if __name__ == "__main__":
    main()
