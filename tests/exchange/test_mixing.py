"""Holders of a model without a coordinator: each admits its neighbours' updates, mixes them and applies the mixture."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exchange.contribution import Contribution
from exchange.links import state_name
from exchange.mixing import (
    AggregationRefused,
    Expected,
    UpdateBase,
    UpdateInput,
    UpdateRequest,
    admit,
    apply,
    mix,
    states_of,
    write_update,
)
from muster.errors import UpdateRejected
from muster.files.digests import digest_file
from muster.model.modelfile import ModelFile, layout_of, load_into, write_initial
from muster.seeds import assignment_seed
from muster.spec.model import RunSpec
from muster.task.task import FitReport

NAMES = ("ada", "ben", "cy", "dee")
ROUNDS = 3


def make_spec(**tables: Any) -> RunSpec:
    return RunSpec.model_validate({"task": "some.where:Task", "rounds": ROUNDS, **tables})


@dataclass
class Holder:
    """One of the ring: a model of its own, and what it keeps of its own and its neighbours' updates."""

    name: str
    folder: Path
    spec: RunSpec
    base: Path
    version: int = 0
    staged: Mapping[str, Path] = field(default_factory=dict[str, Path])
    states: dict[str, Path] = field(default_factory=dict[str, Path])

    def file(self, name: str) -> Path:
        return self.folder / f"{self.name}.{self.version}.{name}"

    @property
    def values(self) -> Tensor:
        file = ModelFile(self.base)
        values = file.vector.clone()
        file.close()
        return values

    def request(self) -> UpdateRequest:
        number = self.version + 1
        return UpdateRequest(
            run_id="ring",
            round=number,
            assignment_id=f"{self.name}.{number}",
            base_version=self.version,
            base_digest=digest_file(self.base),
            codec=self.spec.compression.up,
            feedback=self.spec.compression.feedback,
            seed=assignment_seed(self.spec.seed, "train", number, self.name),
            update=self.file("update"),
            staged=str(self.file("state")),
            state=self.staged,
            counted_round=self.version,
        )

    def train(self) -> Tensor:
        """Moves its model at random and writes the update; gives how far it moved."""
        request = self.request()
        model = nn.Linear(30, 20)
        base = ModelFile(self.base)
        load_into(model, base)
        torch.manual_seed(request.seed % 2**31)
        moves = [torch.randn_like(parameter) for parameter in model.parameters()]
        with torch.no_grad():
            for parameter, move in zip(model.parameters(), moves, strict=True):
                parameter.add_(move)
        written = write_update(request, model, base, Contribution.of(FitReport(examples=10, steps=1)))
        base.close()
        self.staged = written.staged
        return torch.cat([move.flatten() for move in moves])

    def admits(self, other: Holder) -> UpdateInput:
        """Another's update, checked as what this holder expects of it."""
        base = ModelFile(other.base)  # its layout; the values are never read
        base.close()
        asked = other.request()
        expected = Expected(
            assignment_id=asked.assignment_id,
            peer_id=other.name,
            run_id=asked.run_id,
            round=asked.round,
            base_version=asked.base_version,
            base_digest=asked.base_digest,
            layout=base.layout,
            spec=self.spec,
            estimate=self.states.get(state_name(other.name)),
        )
        facts = admit(asked.update, digest_file(asked.update), expected)
        return UpdateInput(
            assignment_id=asked.assignment_id,
            peer_id=other.name,
            path=asked.update,
            examples=facts.examples,
            base=UpdateBase(
                version=asked.base_version,
                digest=asked.base_digest,
                round=asked.round,
                estimate=expected.estimate,
            ),
        )

    def mix(self, updates: list[UpdateInput]) -> Path:
        """Mixes and applies; gives the new version."""
        out = {name: self.file(name.replace("/", "-")) for name in states_of(self.spec, updates)}
        delta, target = self.file("delta"), self.file("model")
        mix(
            self.spec,
            self.base,
            updates,
            base_digest=digest_file(self.base),
            round=self.version + 1,
            out=delta,
            states=self.states,
            states_out=out,
        )
        apply(self.base, delta, target)
        self.states |= out
        return target


def ring(folder: Path, spec: RunSpec) -> list[Holder]:
    torch.manual_seed(1)
    model = nn.Linear(30, 20)
    write_initial(folder / "version0", layout_of(model), model)
    return [Holder(name, folder, spec, folder / "version0") for name in NAMES]


@pytest.mark.parametrize(
    "tables",
    [
        {"aggregation": {"rule": "mean"}},
        {"aggregation": {"rule": "mean"}, "compression": {"up": "randk:0.5", "feedback": "none"}},
        {"aggregation": {"rule": "median", "faults": 0}},
        {"aggregation": {"rule": "geometric-median", "faults": 1}},
        {"aggregation": {"rule": "mean"}, "compression": {"up": "topk:0.2", "feedback": "ef21"}},
        {"aggregation": {"rule": "centered-clipping", "faults": 0}},
    ],
)
def test_a_ring_of_holders_admits_mixes_and_applies(tmp_path: Path, tables: dict[str, Any]) -> None:
    spec = make_spec(**tables)
    holders = ring(tmp_path, spec)
    exact = spec.compression.up == "identity" and spec.aggregation.rule in ("mean", "median")
    for _ in range(ROUNDS):
        moves = [holder.train() for holder in holders]
        before = [holder.values for holder in holders]
        made: list[Path] = []
        for i, holder in enumerate(holders):
            seen = sorted({(i - 1) % len(holders), i, (i + 1) % len(holders)})
            made.append(holder.mix([holder.admits(holders[j]) for j in seen]))
            if exact:
                rows = torch.stack([moves[j] for j in seen])
                wanted = rows.mean(0) if spec.aggregation.rule == "mean" else rows.median(0).values
                file = ModelFile(made[-1])
                torch.testing.assert_close(file.vector - before[i], wanted, atol=1e-5, rtol=0)
                file.close()
        for holder, path in zip(holders, made, strict=True):
            holder.base, holder.version = path, holder.version + 1
    # Different neighbours, different models: from the second round on, each update has a base of its own.
    assert len({digest_file(holder.base) for holder in holders}) == len(holders)


def test_a_row_of_a_mixing_matrix_weighs_the_updates(tmp_path: Path) -> None:
    holders = ring(tmp_path, make_spec(aggregation={"rule": "mean"}))
    moves = [holder.train() for holder in holders]
    first = holders[0]
    before = first.values
    weights = (0.5, 0.25, 0.25)
    updates = [
        replace(first.admits(other), weight=weight) for other, weight in zip(holders, weights, strict=False)
    ]
    file = ModelFile(first.mix(updates))
    wanted = sum(weight * move for weight, move in zip(weights, moves, strict=False))
    torch.testing.assert_close(file.vector - before, wanted, atol=1e-5, rtol=0)
    file.close()


def test_a_neighbour_that_lies_is_rejected_and_too_few_are_refused(tmp_path: Path) -> None:
    holders = ring(tmp_path, make_spec(aggregation={"rule": "trimmed-mean", "faults": 1}))
    for holder in holders:
        holder.train()
    path = holders[1].request().update
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UpdateRejected, match="cannot be read"):
        holders[0].admits(holders[1])
    with pytest.raises(AggregationRefused, match="n is 2"):
        holders[0].mix([holders[0].admits(holders[i]) for i in (0, 2)])


def test_the_face_for_neighbours_brings_no_coordinator_and_no_peer_along() -> None:
    code = (
        "import sys, exchange.mixing\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('coordinator', 'peer', 'grpc', 'sqlalchemy')])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "[]"
