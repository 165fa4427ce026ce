"""Seconds from a trained model to an update file, feedback's and momentum's state with it, by number of threads.

    python -m benchmarks.update_speed --json

The model is one matrix whose training changed it with lognormal tails; codecs other than int8 have the feedback ef14.
Numbers of threads take turns, write after write. Files lie in memory (`--folder`), since a disk's sync is the disk's.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import parser, report, say
from benchmarks.compression import lognormal_tailed
from exchange.contribution import Contribution
from exchange.request import UpdateRequest
from exchange.update import WrittenUpdate, write_update
from muster.model.modelfile import ModelFile, layout_of, write_initial
from muster.task.task import FitReport

CODECS = ("int8", "topk:0.01+int8+rice", "int4+zstd", "powersgd:4")
SIZES = (4_810, 25_000_000)
QUICK = (4_810, 2_500_000)
ROWS = 10


def request(folder: Path, codec: str, before: WrittenUpdate | None) -> UpdateRequest:
    name = "first" if before is None else "next"
    return UpdateRequest(
        seed=3,
        assignment_id="a",
        run_id="run",
        round=1,
        base_version=0,
        base_digest="b" * 64,
        worker_momentum=0.9,
        codec=codec,
        feedback="none" if codec == "int8" else "ef14",
        update=folder / name,
        state={} if before is None else before.staged,
        staged=str(folder / f"{name}.state"),
    )


def measure(folder: Path, codec: str, size: int, threads: list[int], repeats: int) -> dict[str, Any]:
    model = nn.Linear(size // ROWS, ROWS, bias=False)
    write_initial(folder / "base", layout_of(model), model)
    with torch.no_grad():
        model.weight.add_(lognormal_tailed(size).view_as(model.weight), alpha=1e-3)
    base, fit = ModelFile(folder / "base"), Contribution.of(FitReport(examples=1, steps=1))
    seconds: dict[int, list[float]] = {count: [] for count in threads}
    try:
        first = write_update(request(folder, codec, None), model, base, fit)
        for _ in range(repeats):
            for count in threads:
                torch.set_num_threads(count)
                began = time.perf_counter()
                written = write_update(request(folder, codec, first), model, base, fit)
                seconds[count].append(time.perf_counter() - began)
                for path in written.staged.values():
                    path.unlink()
    finally:
        base.close()
    medians = {f"ms_{count}": 1000 * statistics.median(each) for count, each in seconds.items()}
    bests = {f"best_ms_{count}": 1000 * min(each) for count, each in seconds.items()}
    return {"codec": codec, "coordinates": size, **medians, **bests}


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--codecs", nargs="+", default=CODECS)
    arguments.add_argument("--coordinates", type=int, nargs="+")
    arguments.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    arguments.add_argument("--repeats", type=int, default=15)
    arguments.add_argument(
        "--folder", type=Path, default=Path("/dev/shm"), help="where the files are written"
    )
    chosen = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    for size in chosen.coordinates or (QUICK if chosen.quick else SIZES):
        for codec in chosen.codecs:
            say(f"{codec}, {size} coordinates")
            with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
                rows.append(measure(Path(folder), codec, size, chosen.threads, chosen.repeats))
    report(rows, as_json=chosen.json)


if __name__ == "__main__":
    main()
