"""`muster demo`: four runs on this machine, one peer lying in three of them.

Real processes that talk gRPC on loopback: a coordinator and five peers with a share of scikit-learn's digits each.
First everybody is honest; then one peer sends its update sign-flipped and ten times over, once against a plain mean
and once against the robust default; and then that again with updates and models compressed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from muster.errors import RunUnsuccessful, StorageError, UsageError
from muster.spec.load import load_spec
from muster.spec.model import AggregationTable, CompressionTable, RunSpec
from protos.v1 import admin_pb2 as pb
from simulator.processes import ProcessFederation

LABELS = {
    "honest": "everybody honest, plain mean",
    "attacked_mean": "one of them lies, plain mean",
    "attacked_robust": "one of them lies, robust rule",
    "compressed": "the same, compressed both ways",
}
COMPRESSION = {"up": "topk:0.05+int8", "feedback": "ef14", "down": "topk:0.1+int8", "down_feedback": "ef14"}
ROUNDS_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run of the demo reached."""

    accuracy: float
    rounds: int
    codec: str
    codec_down: str
    bytes_up: int
    bytes_up_dense: int  # what the same updates would have been uncompressed
    bytes_down: int
    bytes_down_dense: int
    seconds: float

    def to_json(self) -> dict[str, float | int | str]:
        return {
            **asdict(self),
            "accuracy": round(self.accuracy, 4),
            "bytes_saved": self.bytes_saved,
            "seconds": round(self.seconds, 2),
        }

    @property
    def bytes_saved(self) -> int:
        return self.bytes_up_dense + self.bytes_down_dense - self.bytes_up - self.bytes_down


def examples_folder() -> Path:
    """Where `examples/digits` lies: the checkout, or the copy that the wheel carries."""
    here = Path(__file__).parent
    for folder in (here.parent, here / "shipped"):
        if (folder / "examples" / "digits" / "run.toml").exists():
            return folder
    raise UsageError(
        "demo.no_example",
        "the demo's task, examples/digits, is not installed",
        fix="run it from a clone of the repository: make demo",
    )


def run_demo(*, peers: int, rounds: int, attack: str, json_output: bool) -> int:
    """Gives the exit status: 0 if the four runs finished. Raises `MusterError`."""
    console = Console(stderr=json_output)
    results = asyncio.run(_demo(peers, rounds, attack, console))
    if json_output:
        print(json.dumps({"runs": {name: result.to_json() for name, result in results.items()}}))
    else:
        console.print(_summary(results))
    return 0


async def _demo(peers: int, rounds: int, attack: str, console: Console) -> dict[str, Result]:
    root = examples_folder()
    base, _ = load_spec(root / "examples" / "digits" / "run.toml")
    # Everybody is waited for, so that on a busy machine the liar is not merely late.
    everybody = base.round.model_copy(update={"peers_min": peers, "grace_seconds": 55.0})
    base = base.model_copy(update={"rounds": rounds, "round": everybody})
    mean = AggregationTable.model_validate({"rule": "mean"})
    robust = base.aggregation.model_copy(update={"faults": 1})  # the rule that every run has by default
    specs = {
        "honest": base.model_copy(update={"name": "honest", "aggregation": mean}),
        "attacked_mean": base.model_copy(update={"name": "attacked-mean", "aggregation": mean}),
        "attacked_robust": base.model_copy(update={"name": "attacked-robust", "aggregation": robust}),
        "compressed": base.model_copy(
            update={
                "name": "compressed",
                "aggregation": robust,
                "compression": CompressionTable.model_validate(COMPRESSION),
            }
        ),
    }
    results: dict[str, Result] = {}
    with _scratch() as folder:
        async with ProcessFederation(Path(folder), task_folders=[root]) as federation:
            await federation.start_coordinator()
            console.print(f"coordinator at {federation.address}; {peers} peers; logs in {folder}")
            for index in range(peers):
                federation.start_peer(f"peer-{index + 1}", data={"index": index, "count": peers})
            for name, spec in specs.items():
                if name == "attacked_mean":
                    await _turn(federation, f"peer-{peers}", peers, attack)
                results[name] = await _one(federation, name, spec, console)
    return results


def _scratch() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="muster-demo-")
    except OSError as error:
        raise StorageError(
            "demo.no_folder",
            "no folder can be made for the demo",
            cause=str(error),
            fix="name one that can be written to: TMPDIR=FOLDER muster demo",
        ) from error


async def _turn(federation: ProcessFederation, liar: str, peers: int, attack: str) -> None:
    """The last peer comes back as a liar: the same machine, the same data, another intent."""
    options = {"scale": 10} if attack == "sign-flip" else {}
    await federation.stop(liar)
    federation.start_peer(
        liar, data={"index": peers - 1, "count": peers}, attack={"name": attack, "options": options}
    )


async def _one(federation: ProcessFederation, name: str, spec: RunSpec, console: Console) -> Result:
    began = time.monotonic()
    run_id = await federation.submit(spec)
    run = pb.Run()
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        async for run in federation.watch(run_id):
            if console.is_terminal:
                live.update(await _screen(federation, name, run))
    if run.state != "FINISHED":
        raise RunUnsuccessful(
            "demo.run_ended",
            f"the run {name!r} ended {run.state}: {run.reason}",
            cause=federation.log("coordinator")[-1500:],
        )
    rounds = [await _round(federation, run_id, each.number) for each in await federation.rounds(run_id)]
    result = Result(
        accuracy=run.metrics["accuracy"],
        rounds=run.rounds_committed,
        codec=rounds[-1].codec,
        codec_down=rounds[-1].codec_down,
        bytes_up=run.bytes_up,
        bytes_up_dense=run.bytes_up_dense,
        bytes_down=run.bytes_down,
        bytes_down_dense=sum(each.bytes_down_dense for each in rounds),
        seconds=time.monotonic() - began,
    )
    console.print(_line(name, result), highlight=False, soft_wrap=True)
    return result


async def _round(federation: ProcessFederation, run_id: str, number: int) -> pb.Round:
    request = pb.GetRoundRequest(run_id=run_id, number=number)
    found: pb.Round = (await federation.call_patiently("GetRound", request)).round
    return found


# -- what is shown ----------------------------------------------------------------------------------------------------


async def _screen(federation: ProcessFederation, name: str, run: pb.Run) -> Group:
    rounds = await federation.rounds(run.run_id)
    peers = (await federation.call_patiently("ListPeers", pb.ListPeersRequest())).peers
    table = Table(
        title=f"{LABELS[name]}: round {run.rounds_committed} of {run.rounds_total}", title_justify="left"
    )
    for heading in ("round", "state", "accuracy", "up", "down", "seconds"):
        table.add_column(heading, justify="right")
    for each in rounds[-ROUNDS_SHOWN:]:
        accuracy = each.metrics.get("accuracy")
        table.add_row(
            str(each.number),
            each.state,
            "" if accuracy is None else f"{accuracy:.3f}",
            size(each.bytes_up),
            size(each.bytes_down),
            f"{each.ended_at - each.opened_at:.2f}" if each.ended_at else "",
        )
    newest = await _round(federation, run.run_id, rounds[-1].number) if rounds else pb.Round()
    now = {each.peer_id: each for each in newest.assignments}
    members = Table()
    for heading in ("peer", "state", "this round", "weight", "delivered"):
        members.add_column(heading)
    for peer in peers:
        work = now.get(peer.peer_id)
        members.add_row(
            peer.peer_id,
            peer.state,
            work.state if work else "",
            f"{work.weight:.2f}" if work and work.treatment else "",
            str(peer.updates_delivered),
        )
    return Group(table, members, Text(run.reason, style="dim"))


def _line(name: str, result: Result) -> str:
    return (
        f"{LABELS[name]:32} accuracy {result.accuracy:.3f}   {result.rounds} rounds   "
        f"{size(result.bytes_up)} up   {size(result.bytes_down)} down   {result.seconds:.1f} s"
    )


def _summary(results: dict[str, Result]) -> str:
    mean, robust = results["attacked_mean"].accuracy, results["attacked_robust"].accuracy
    small = results["compressed"]
    return (
        f"\nOne liar in a plain mean: {mean:.0%} of digits read. Behind the robust rule: {robust:.0%}.\n"
        f"With {small.codec} up and {small.codec_down} down: {small.accuracy:.0%}, and "
        f"{size(small.bytes_saved)} of {size(small.bytes_up_dense + small.bytes_down_dense)} saved."
    )


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


if __name__ == "__main__":
    sys.exit(run_demo(peers=5, rounds=20, attack="sign-flip", json_output=False))
