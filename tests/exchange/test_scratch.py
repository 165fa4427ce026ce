"""Decoded values are held in a budget of bytes; how many fit changes no result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exchange.admission import Expected, admit
from exchange.aggregation import aggregate, state_names
from exchange.contribution import Contribution
from exchange.decoded import decoded
from exchange.job import AggregationJob, UpdateBase, UpdateInput
from exchange.request import UpdateRequest
from exchange.update import write_update
from muster.files.digests import digest_file
from muster.model.modelfile import ModelFile, layout_of, load_into, write_initial
from muster.seeds import assignment_seed
from muster.spec.model import RunSpec
from muster.task.task import FitReport

PEERS = 6
WIDTH = 4096  # the narrowest stretch, see `exchange.decoded`

RULES: list[dict[str, Any]] = [
    {"aggregation": {"rule": "mean"}},
    {"aggregation": {"rule": "median", "faults": 1}},
    {"aggregation": {"rule": "krum", "faults": 1}},
    {"aggregation": {"rule": "geometric-median", "faults": 1}},
    {"aggregation": {"rule": "sign-vote", "faults": 1}},
    {"aggregation": {"rule": "centered-clipping", "faults": 1}},
    {"aggregation": {"rule": "mean"}, "compression": {"up": "topk:0.1", "feedback": "ef21"}},
]
# Inner products of other stretches are added in another order, so that their last digits may differ.
SUMMED_IN_PARTS = ("geometric-median", "centered-clipping")


class Net(nn.Module):
    """A parameter of several stretches, statistics that move by mean and by maximum, a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * WIDTH + 100))
        self.register_buffer("mean", torch.zeros(2 * WIDTH + 50))
        self.register_buffer("highest", torch.zeros(30))
        self.register_buffer("seen", torch.zeros(WIDTH + 10, dtype=torch.int64))


MOVES = {"highest": "max"}


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., AggregationJob]:
    torch.manual_seed(1)
    model = Net()
    layout = layout_of(model, MOVES)
    path = tmp_path / "base"
    write_initial(path, layout, model)

    def make(tables: dict[str, Any]) -> AggregationJob:
        spec = RunSpec.model_validate({"task": "a.b:C", "rounds": 1, **tables})
        inputs = [update(spec, f"p{i}") for i in range(PEERS)]
        names = state_names(spec, inputs, cohort=PEERS, base_version=0)
        return AggregationJob(
            spec=spec,
            base=path,
            updates=inputs,
            states={},
            base_version=0,
            base_digest="b" * 64,
            round=1,
            cohort=PEERS,
            model_out=tmp_path / "out",
            states_out={name: tmp_path / name.replace("/", "-") for name in names},
        )

    def update(spec: RunSpec, peer: str) -> UpdateInput:
        request = UpdateRequest(
            run_id="run",
            round=1,
            assignment_id=peer,
            base_version=0,
            base_digest="b" * 64,
            codec=spec.compression.up,
            feedback=spec.compression.feedback,
            seed=assignment_seed(spec.seed, "train", 1, peer),
            update=tmp_path / peer,
            staged=str(tmp_path / f"{peer}.state"),
        )
        base = ModelFile(path)
        load_into(model, base)
        torch.manual_seed(request.seed % 2**31)
        with torch.no_grad():
            for name, values in model.state_dict().items():
                moves = torch.randint(50, values.shape) if name == "seen" else torch.randn(values.shape)
                values.add_(moves)
        write_update(request, model, base, Contribution.of(FitReport(examples=10 + len(peer), steps=1)))
        base.close()
        expected = Expected(
            assignment_id=peer,
            peer_id=peer,
            run_id="run",
            round=1,
            base_version=0,
            base_digest="b" * 64,
            layout=layout,
            spec=spec,
        )
        facts = admit(request.update, digest_file(request.update), expected)
        return UpdateInput(
            assignment_id=peer,
            peer_id=peer,
            path=request.update,
            examples=facts.examples,
            base=UpdateBase(version=0, digest="b" * 64, round=1),
        )

    return make


@pytest.mark.parametrize("tables", RULES, ids=lambda t: f"{t['aggregation']['rule']}-{len(t)}")
@pytest.mark.parametrize("rows_max", [1, 2, 4])
def test_less_scratch_makes_the_same_version(
    make_job: Callable[..., AggregationJob], tables: dict[str, Any], rows_max: int
) -> None:
    job = make_job(tables)
    whole = aggregate(job)
    model, states = vector(job), {name: path.read_bytes() for name, path in job.states_out.items()}
    again = aggregate(replace(job, scratch_bytes_max=4 * rows_max * WIDTH))
    if tables["aggregation"]["rule"] in SUMMED_IN_PARTS:
        torch.testing.assert_close(vector(job), model, atol=1e-6, rtol=1e-6)
        return
    assert again.model_digest == whole.model_digest
    assert {name: path.read_bytes() for name, path in job.states_out.items()} == states


def vector(job: AggregationJob) -> Tensor:
    file = ModelFile(job.model_out)
    found = file.vector.clone()
    file.close()
    return found


@pytest.mark.parametrize("updates", [1, 6, 40])
def test_decoded_rows_take_no_more_than_the_budget(
    make_job: Callable[..., AggregationJob], updates: int
) -> None:
    job = make_job({"aggregation": {"rule": "median", "faults": 0}})
    base = ModelFile(job.base)
    layout, budget = base.layout, 4 * 50 * WIDTH
    base.close()
    several = [job.updates[i % PEERS] for i in range(updates)]
    with decoded(job.spec, several, {}, layout, scratch_bytes_max=budget) as source:
        for sweep in (
            source.chunks(),
            (part for column in layout.columns for part in source.stretches(column)),
        ):
            covered = 0
            for _, X in sweep:
                assert X.shape[0] == updates
                assert 4 * X.numel() <= budget
                covered += X.shape[1]
            assert covered == layout.columns_size
