"""Uplinks whose feedback sends differences: what the coordinator holds of each peer, round after round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import compressors
from exchange.admission import admit, update_bytes_max
from exchange.aggregation import aggregate
from exchange.job import AggregationJob, UpdateBase, UpdateInput
from exchange.links import state_name
from exchange.payload import GroupSpec, Manifest, PayloadWriter
from muster.errors import UpdateRejected
from muster.model.modelfile import ModelFile
from muster.spec.model import RunSpec

MakeSpec = Callable[..., RunSpec]
CODEC = "topk:0.05"


class Peer:
    """The sender's end, as a peer's worker keeps it."""

    def __init__(self, bench: Any, name: str, feedback: str) -> None:
        self._bench = bench
        self.name = name
        self._feedback = compressors.build_feedback(feedback)
        self.state = self._zeros()

    def _zeros(self) -> dict[str, Tensor]:
        return {name: torch.zeros(self._bench.layout.size) for name in self._feedback.state_names}

    def forget(self) -> None:
        self.state = self._zeros()

    def send(self, x: Tensor, codec: str = CODEC) -> Path:
        path = self._bench.folder / f"{self.name}.{len(list(self._bench.folder.iterdir()))}"
        built = compressors.build(codec)
        manifest = Manifest(
            run_id="run",
            round=1,
            assignment_id="run.1.peer.1",
            base_digest="b" * 64,
            layout_digest=self._bench.layout.digest,
            groups=(GroupSpec(name="params", codec=built.spelling, size=len(x)),),
            scalars={"examples": 10.0},
        )
        writer = PayloadWriter(path, manifest)
        for index in range(self._bench.layout.chunk_count):
            start, stop = self._bench.layout.chunk_bounds(index)
            kept = {name: values[start:stop] for name, values in self.state.items()}
            writer.append("params", self._feedback.encode(built, x[start:stop], kept, 0))
        writer.finish()
        return path


class Server:
    def __init__(self, bench: Any, spec: RunSpec) -> None:
        self._bench = bench
        self._spec = spec
        self.states: dict[str, Path] = {}

    def round(self, number: int, updates: dict[str, Path]) -> Tensor:
        """How far the model moves from the same base."""
        folder: Path = self._bench.folder
        out = {state_name(peer): folder / f"{number}.{peer}.estimate" for peer in updates}
        job = AggregationJob(
            spec=self._spec,
            base=self._bench.base,
            updates=[
                UpdateInput(
                    assignment_id=f"a.{peer}",
                    peer_id=peer,
                    path=path,
                    examples=10,
                    base=UpdateBase(
                        version=number - 1,
                        digest="b" * 64,
                        round=number,
                        estimate=self.states.get(state_name(peer)),
                    ),
                )
                for peer, path in updates.items()
            ],
            states=self.states,
            base_version=number - 1,
            base_digest="b" * 64,
            round=number,
            cohort=len(updates),
            model_out=folder / f"{number}.model",
            states_out=out,
        )
        result = aggregate(job)
        assert set(result.state_digests) == set(out)
        self.states = {**self.states, **out}
        base, made = ModelFile(self._bench.base), ModelFile(folder / f"{number}.model")
        moved = made.vector - base.vector
        base.close()
        made.close()
        return moved

    def estimate(self, peer: str) -> Tensor:
        return torch.from_file(str(self.states[state_name(peer)]), size=self._bench.layout.size)


@pytest.mark.parametrize("feedback", ["ef21", "econtrol"])
@pytest.mark.parametrize("rule", [{"rule": "mean"}, {"rule": "median", "faults": 1}])
def test_both_ends_stay_equal_and_the_estimate_becomes_the_update(
    bench: Any, make_spec: MakeSpec, feedback: str, rule: dict[str, Any]
) -> None:
    spec = make_spec(aggregation=rule, compression={"up": CODEC, "feedback": feedback})
    generator = torch.Generator().manual_seed(3)
    peers = {name: Peer(bench, name, feedback) for name in "abcd"}
    wanted = {name: torch.randn(bench.layout.size, generator=generator) for name in peers}
    server = Server(bench, spec)
    errors: list[float] = []
    for number in range(1, 9):
        present = [name for name in peers if name != "c" or number % 2]  # c takes part in every other round
        server.round(number, {name: peers[name].send(wanted[name]) for name in present})
        for name in present:
            assert torch.equal(server.estimate(name), peers[name].state["estimate"])
        errors.append(float((server.estimate("a") - wanted["a"]).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.75 * errors[0]


def test_the_rule_works_on_estimates_and_not_on_what_was_sent(bench: Any, make_spec: MakeSpec) -> None:
    spec = make_spec(
        aggregation={"rule": "median", "faults": 1}, compression={"up": CODEC, "feedback": "ef21"}
    )
    peers = {name: Peer(bench, name, "ef21") for name in "abc"}
    same = torch.randn(bench.layout.size, generator=torch.Generator().manual_seed(3))
    server = Server(bench, spec)
    for number in (1, 2):
        moved = server.round(number, {name: peer.send(same) for name, peer in peers.items()})
    # What was sent in the second round is zero where the first had sent something; the estimate is not.
    torch.testing.assert_close(moved, peers["a"].state["estimate"], rtol=1e-4, atol=1e-5)
    assert int((moved != 0).sum()) > 1.9 * 0.05 * bench.layout.size


def test_a_peer_that_lost_its_copy_begins_anew(bench: Any, make_spec: MakeSpec) -> None:
    spec = make_spec(compression={"up": CODEC, "feedback": "ef21"})
    peer, server = Peer(bench, "a", "ef21"), Server(bench, spec)
    x = torch.randn(bench.layout.size, generator=torch.Generator().manual_seed(3))
    server.round(1, {"a": peer.send(x)})
    peer.forget()
    moved = server.round(2, {"a": peer.send(x, "identity")})
    assert torch.equal(server.estimate("a"), x)
    torch.testing.assert_close(moved, x, rtol=1e-4, atol=1e-5)
    server.round(3, {"a": peer.send(2 * x)})
    assert torch.equal(server.estimate("a"), peer.state["estimate"])


def test_admission_measures_the_estimate_and_lets_only_links_begin_anew(
    bench: Any, make_spec: MakeSpec
) -> None:
    compression = {"up": CODEC, "feedback": "ef21"}
    spec = make_spec(compression=compression)
    peer, server = Peer(bench, "a", "ef21"), Server(bench, spec)
    x = torch.randn(bench.layout.size, generator=torch.Generator().manual_seed(3))
    server.round(1, {"a": peer.send(x)})
    path = peer.send(x)
    expected = bench.expected(spec)
    facts = admit(path, "d", type(expected)(**{**vars(expected), "estimate": server.states[state_name("a")]}))
    assert facts.norm == pytest.approx(float(peer.state["estimate"].norm()), rel=1e-5)
    assert admit(path, "d", expected).norm < 0.9 * facts.norm
    dense = peer.send(x, "identity")
    admit(dense, "d", expected)
    assert dense.stat().st_size <= update_bytes_max(spec, bench.layout, 0)
    usual = make_spec(compression={"up": CODEC, "feedback": "ef14"})
    with pytest.raises(UpdateRejected, match="groups"):
        admit(dense, "d", bench.expected(usual))
    assert update_bytes_max(usual, bench.layout, 0) < update_bytes_max(spec, bench.layout, 0)
