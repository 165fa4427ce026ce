"""What a run sends up and down at equal accuracy: compression settings over real processes, against the dense run.

    python -m benchmarks.traffic --json
    python -m benchmarks.traffic --workloads digits --settings dense 'bf16 both ways' --seeds 1

A coordinator and five peers as processes that talk gRPC through a proxy. Each setting trains a task to its end; bytes
are those that the rounds report (files, with their headers) and those that passed the proxy (with gRPC's and
the session's own). A ratio is the dense run's bytes over the setting's; the first model, which peers draw
themselves, is in neither. Then a few rounds with each peer's link throttled tell the seconds a round. In attacked
settings one of the five sends its update sign-flipped and ten times over, and the rule is arc+nnm+trimmed-mean.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import parser, report, say
from benchmarks.traffic_settings import DENSE, DENSE_ATTACKED, SETTINGS, WORKLOADS, Setting, Workload, named
from protos.v1 import admin_pb2 as pb
from simulator.processes import ProcessFederation
from simulator.proxy import ChaosProxy, Link

ROOT = Path(__file__).parent.parent
PEERS = 5
LIAR = {"name": "sign-flip", "options": {"scale": 10}}
LINKS_MBIT = (10, 100)
ROUNDS_TIMED = 8
WARM_UP_ROUNDS = 2  # the first draws the model and has no step to fetch
POINTS_NEAR = 0.5
QUICK = 4  # so many of the first settings,
QUICK_ROUNDS = 40  # each for so many rounds


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What one run sent, and what came out."""

    accuracy: float
    bytes_up: int
    bytes_down: int
    wire_up: int
    wire_down: int
    rounds: int
    round_seconds: float


class Cluster:
    """A federation whose peers all go through one proxy."""

    def __init__(self, federation: ProcessFederation, proxy: ChaosProxy) -> None:
        self._federation = federation
        self._proxy = proxy

    async def train(
        self, workload: Workload, setting: Setting, seed: int, rounds: int | None = None
    ) -> Trained:
        spec = workload.spec(setting, PEERS, seed, rounds)
        up, down = self._proxy.bytes_up, self._proxy.bytes_down
        run = await self._federation.run_to_end(spec)
        if run.state != "FINISHED":
            raise RuntimeError(f"{spec.name!r} ended {run.state}: {run.reason}")
        found = await self._federation.rounds(run.run_id)
        return trained(run, found, wire=(self._proxy.bytes_up - up, self._proxy.bytes_down - down))


def trained(run: pb.Run, rounds: Sequence[pb.Round], *, wire: tuple[int, int]) -> Trained:
    ends = [each.ended_at for each in rounds]
    seconds = [after - before for before, after in pairwise(ends)][WARM_UP_ROUNDS - 1 :]
    return Trained(
        accuracy=run.metrics.get("accuracy", 0.0),
        bytes_up=run.bytes_up,
        bytes_down=run.bytes_down,
        wire_up=wire[0],
        wire_down=wire[1],
        rounds=run.rounds_committed,
        round_seconds=statistics.median(seconds),
    )


@asynccontextmanager
async def cluster(*, attacked: bool, mbit: float | None = None) -> AsyncGenerator[Cluster]:
    settings = {"updates_keep_rounds": 1, "models_keep": 1}
    link = Link(bits_per_second=None if mbit is None else mbit * 1e6)
    with tempfile.TemporaryDirectory(dir=ROOT.parent) as folder:
        async with ProcessFederation(Path(folder), task_folders=[ROOT], coordinator=settings) as federation:
            await federation.start_coordinator()
            async with ChaosProxy(federation.address, script=[link]) as proxy:
                for index in range(PEERS):
                    federation.start_peer(
                        f"peer-{index + 1}",
                        data={"index": index, "count": PEERS},
                        attack=LIAR if attacked and index == PEERS - 1 else None,
                        through=proxy.address,
                    )
                yield Cluster(federation, proxy)


def row(workload: str, setting: Setting, runs: Sequence[Trained], dense: Sequence[Trained]) -> dict[str, Any]:
    """One line of the table: means over the seeds, ratios of the dense runs' totals to these."""

    def total(of: Sequence[Trained], *names: str) -> float:
        return sum(float(getattr(each, name)) for each in of for name in names) / len(of)

    def ratio(*names: str) -> float:
        return total(dense, *names) / total(runs, *names)

    lost = 100 * (total(dense, "accuracy") - total(runs, "accuracy"))
    return {
        "workload": workload,
        "setting": setting.name,
        "rounds": runs[0].rounds,
        "accuracy": total(runs, "accuracy"),
        "points_lost": lost,
        "within_half_a_point": lost <= POINTS_NEAR,
        "kb_up": total(runs, "bytes_up") / 1e3,
        "kb_down": total(runs, "bytes_down") / 1e3,
        "ratio_up": ratio("bytes_up"),
        "ratio_down": ratio("bytes_down"),
        "ratio_both": ratio("bytes_up", "bytes_down"),
        "ratio_wire": ratio("wire_up", "wire_down"),
        "round_seconds": statistics.median(each.round_seconds for each in runs),
    }


async def measure(
    workload: Workload,
    settings: Sequence[Setting],
    seeds: int,
    links: Sequence[int],
    rounds: int | None = None,
) -> list[dict[str, Any]]:
    """All settings of one workload; the first of the honest and of the attacked ones is the dense one."""
    rows: dict[str, dict[str, Any]] = {}
    for attacked in sorted({setting.attacked for setting in settings}):
        chosen = [setting for setting in settings if setting.attacked == attacked]
        async with cluster(attacked=attacked) as together:
            dense: list[Trained] = []
            for setting in chosen:
                runs = [await together.train(workload, setting, seed, rounds) for seed in range(seeds)]
                dense = dense or runs
                rows[setting.name] = row(workload.name, setting, runs, dense)
                say(f"{workload.name}: {setting.name}: {told(rows[setting.name])}")
        for mbit in links:
            async with cluster(attacked=attacked, mbit=mbit) as together:
                for setting in chosen:
                    run = await together.train(workload, setting, 0, ROUNDS_TIMED)
                    rows[setting.name][f"round_seconds_{mbit}_mbit"] = run.round_seconds
                    say(
                        f"{workload.name}: {setting.name}: {run.round_seconds:.2f} s a round at {mbit} Mbit/s"
                    )
    return [rows[setting.name] for setting in settings]


def told(found: Mapping[str, Any]) -> str:
    return (
        f"accuracy {found['accuracy']:.4f} ({0 - found['points_lost']:+.2f} points), {found['ratio_up']:.1f} times "
        f"fewer bytes up, {found['ratio_down']:.1f} down, {found['round_seconds']:.2f} s a round"
    )


def installed(settings: Sequence[Setting]) -> list[Setting]:
    kept: list[Setting] = []
    for setting in settings:
        refusal = setting.refusal()
        if refusal is None:
            kept.append(setting)
        else:
            say(f"{setting.name} is left out: {refusal}")
    return kept


def with_dense(settings: Sequence[Setting]) -> list[Setting]:
    """Each kind of run behind its dense one, which the others are measured against."""
    first = [setting for setting in SETTINGS if setting.name in (DENSE, DENSE_ATTACKED)]
    kinds = {setting.attacked for setting in settings}
    dense = [setting for setting in first if setting.attacked in kinds]
    return [*dense, *(setting for setting in settings if setting not in dense)]


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def markdown(rows: Sequence[Mapping[str, Any]], links: Sequence[int]) -> str:
    seconds = [f"s a round, {mbit} Mbit/s" for mbit in links]
    heads = [
        "task",
        "setting",
        "rounds",
        "accuracy",
        "points",
        "MB up",
        "MB down",
        "times fewer up",
        "down",
        "both",
    ]
    lines = [[*heads, *seconds], ["---", "---", *["---:"] * (len(heads) + len(seconds) - 2)]]
    for each in rows:
        name = f"**{each['setting']}**" if each["within_half_a_point"] else each["setting"]
        cells = [each["workload"], name, str(each["rounds"]), f"{100 * each['accuracy']:.1f}"]
        cells += [
            f"{0 - each['points_lost']:+.1f}",
            _short(each["kb_up"] / 1e3),
            _short(each["kb_down"] / 1e3),
        ]
        cells += [f"{each[name]:.3g}" for name in ("ratio_up", "ratio_down", "ratio_both")]
        lines.append(cells + [f"{each[f'round_seconds_{mbit}_mbit']:.2f}" for mbit in links])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


async def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--workloads", nargs="+", choices=list(WORKLOADS))
    arguments.add_argument("--settings", nargs="+", metavar="NAME", help="by the names of the table")
    arguments.add_argument("--seeds", type=int, default=1)
    arguments.add_argument(
        "--links", type=int, nargs="*", help="Mbit/s that each peer's link is throttled to"
    )
    arguments.add_argument("--markdown", action="store_true", help="the table of the README")
    options = arguments.parse_args()
    links = options.links if options.links is not None else () if options.quick else LINKS_MBIT
    usual = SETTINGS[:QUICK] if options.quick else SETTINGS
    settings = with_dense(installed(named(options.settings) if options.settings else usual))
    rows: list[dict[str, Any]] = []
    for name in options.workloads or (["digits"] if options.quick else list(WORKLOADS)):
        workload = WORKLOADS[name]
        chosen = settings if options.settings else [each for each in settings if workload.runs(each)]
        rows += await measure(workload, chosen, options.seeds, links, QUICK_ROUNDS if options.quick else None)
    if options.markdown:
        print(markdown(rows, links))
    else:
        report(rows, as_json=options.json)


if __name__ == "__main__":
    asyncio.run(main())
