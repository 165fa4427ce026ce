"""What is not trained moves by its meaning, whatever rule, codec, optimizer and downlink the run has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressors.core import integers
from exchange.payload import PayloadReader, PayloadWriter
from exchange.untrained import Chunk, move_buffers, ordered
from muster.errors import TaskError, UpdateRejected
from muster.model.layout import TRIMMED as TRIMMED_MOVES
from muster.model.layout import TensorSpec, Vector

Rounds = Callable[..., Any]

TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Marked(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
        self.register_buffer("seen", torch.tensor(False))
        self.register_buffer("never", torch.tensor(False))
        self.register_buffer("steps", torch.tensor(0, dtype=torch.int32))
        self.register_buffer("least", torch.tensor(float("inf")))
        self.register_buffer("missing", torch.tensor([float("nan"), 1.0]))

    def forward(self, x):
        if self.training:
            self.seen.fill_(True)
            self.steps.add_(len(x))
            self.least.copy_(torch.minimum(self.least, x.detach().min()))
        return x


class Case(muster.Task):
    buffers = {"*.least": "min"}

    def model(self):
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), Marked(), nn.ReLU(), nn.Linear(16, 2))

    def train_data(self, site):
        count = 64 + 8 * site.data["index"]
        x = torch.randn(count, 8, generator=torch.Generator().manual_seed(site.data["index"])) * 0.05
        return TensorDataset(x, (x[:, 0] > 0).long())
"""


TRIMMED = '"*.least": "min", "*.num_batches_tracked": "trimmed-max", "*.steps": "trimmed-max", ' + (
    '"*.seen": "trimmed-any", "*.never": "trimmed-any"'
)


def _check(state: dict[str, torch.Tensor], peers: int, rounds: int) -> None:
    assert state["1.running_var"].ge(0).all()
    assert state["1.running_var"].ne(1).all()
    mask = torch.full((4, 4), float("-inf")).triu(1)
    assert torch.equal(state["2.mask"], mask)
    assert bool(state["2.seen"])
    assert not bool(state["2.never"])
    assert state["2.steps"].dtype == torch.int32
    assert state["2.missing"].isnan().tolist() == [True, False]
    assert state["2.least"].isfinite()


@pytest.mark.parametrize(
    "tables",
    [
        {"server": {"optimizer": "momentum"}},
        {"server": {"optimizer": "adam", "lr": 0.1}},
        {"server": {"optimizer": "sgd", "lr": 3.0}},
        {"compression": {"up": "sign", "feedback": "ef14"}},
        {"compression": {"up": "ferret:64", "feedback": "none", "down": "topk:0.1"}},
        {"compression": {"up": "topk:0.1", "feedback": "ef21", "down": "int8"}},
        {"compression": {"up": "powersgd:1:common"}, "aggregation": {"rule": "mean"}},
        {
            "compression": {"up": "topk:0.1", "feedback": "ef14", "down": "replay"},
            "aggregation": {"rule": "mean"},
        },
        {"train": {"worker_momentum": 0.9, "epochs": 2}, "aggregation": {"rule": "centered-clipping"}},
        {"aggregation": {"rule": "krum", "faults": 1, "pre": ["nnm"]}},
        {
            "compression": {"up": "sign", "feedback": "momentum", "down": "sign", "warm_up_rounds": 2},
            "server": {"optimizer": "onebit-adam"},
        },
    ],
    ids=str,
)
def test_buffers_move_by_the_plain_aggregate_counters_and_flags_by_their_order(
    rounds: Rounds, tables: dict[str, Any]
) -> None:

    run = rounds(TASK, peers=5, **{"train": {"lr": 0.05, "epochs": 2}, **tables})
    for number in range(1, 4):
        run.round()
        state = run.model()
        _check(state, 5, number)
        examples = 64 + 8 * 4  # the greatest of five, who have 64 to 96
        if number == 1:
            assert int(state["2.steps"]) == 2 * examples
            assert int(state["1.num_batches_tracked"]) == 2 * -(-examples // 32)


def test_buffers_of_a_vote_on_signs_take_the_median(rounds: Rounds) -> None:
    voted = rounds(TASK, peers=5, aggregation={"rule": "sign-vote"}, server={"lr": 0.001})
    median = rounds(TASK, peers=5, aggregation={"rule": "median"})
    for run in (voted, median):
        run.round()
    name = "1.running_var"
    assert torch.equal(voted.model()[name], median.model()[name])


def _with_body(change: Callable[[bytes, int], bytes]) -> Callable[[str, Path], Path]:
    """What makes of the update of the first site another one, with another body of its counters."""

    def changed(peer: str, path: Path) -> Path:
        if peer != "site-0":
            return path
        reader = PayloadReader(path)
        target = path.with_suffix(".lie")
        writer = PayloadWriter(target, reader.manifest)
        for group in reader.manifest.groups:
            body = bytes(reader.chunk(group.name, 0))
            writer.append(group.name, change(body, group.size) if group.name == "counters" else body)
        writer.finish()
        writer.close()
        reader.close()
        return target

    return changed


def _with_counters(values: list[int]) -> Callable[[str, Path], Path]:
    return _with_body(lambda _body, _size: integers.encode(torch.tensor(values)))


def test_what_one_site_alone_has_seen_survives_whatever_may_lie(rounds: Rounds) -> None:
    alone = TASK.replace(
        "self.seen.fill_(True)", "self.seen.fill_(len(x) == 24)"
    )  # of 3 x 8 + 64 the last batch
    run = rounds(alone, peers=4, aggregation={"rule": "trimmed-mean", "faults": 1})
    run.round()
    state = run.model()
    assert bool(state["2.seen"])
    assert int(state["2.steps"]) == 64 + 8 * 3


def test_what_one_site_alone_says_is_trimmed_where_the_task_asks_for_it(rounds: Rounds) -> None:
    trimmed = TASK.replace('"*.least": "min"', TRIMMED)
    alone = trimmed.replace("self.seen.fill_(True)", "self.seen.fill_(len(x) == 24)")
    run = rounds(alone, peers=4, aggregation={"rule": "trimmed-mean", "faults": 1})
    run.round()
    state = run.model()
    assert not bool(state["2.seen"])
    assert int(state["2.steps"]) == 64 + 8 * 2


def test_a_liar_cannot_raise_a_counter_or_set_a_flag_that_is_trimmed(rounds: Rounds) -> None:
    trimmed = TASK.replace('"*.least": "min"', TRIMMED)
    run = rounds(trimmed, peers=4, aggregation={"rule": "trimmed-mean", "faults": 1})

    # num_batches_tracked, seen, never, steps: as they stand in the layout
    run.round(_with_counters([2**63 - 1, 1, 1, 2**31 - 1]))
    state = run.model()
    assert int(state["1.num_batches_tracked"]) == 3
    assert int(state["2.steps"]) == 64 + 8 * 3
    assert bool(state["2.seen"])
    assert not bool(state["2.never"])


def test_one_liar_sets_what_is_not_trimmed(rounds: Rounds) -> None:
    run = rounds(TASK, peers=4, aggregation={"rule": "trimmed-mean", "faults": 1})
    run.round(_with_counters([2**63 - 1, 1, 1, 2**31 - 1]))
    state = run.model()
    assert int(state["1.num_batches_tracked"]) == 2**63 - 1
    assert int(state["2.steps"]) == 2**31 - 1
    assert bool(state["2.never"])


@pytest.mark.parametrize(
    "values", [[0, 2, 0, 0], [0, -1, 0, 0], [0, 1, 0, 2**31], [0, 1, 0, -(2**31) - 1]], ids=str
)
def test_what_a_dtype_cannot_have_is_rejected_by_name(rounds: Rounds, values: list[int]) -> None:
    run = rounds(TASK, peers=1, aggregation={"rule": "mean"})
    with pytest.raises(UpdateRejected) as caught:
        run.round(_with_counters(values))
    assert caught.value.id == "update.out_of_range"


@pytest.mark.parametrize("body", [b"", b"\2", b"\0" * 9, b"\1" + b"\0" * 9])
def test_counters_that_cannot_be_decoded_are_rejected(rounds: Rounds, body: bytes) -> None:
    run = rounds(TASK, peers=1, aggregation={"rule": "mean"})
    with pytest.raises(UpdateRejected) as caught:
        run.round(_with_body(lambda _body, _size: body))
    assert caught.value.id == "update.undecodable"


def test_a_buffer_that_becomes_nan_is_refused_by_name(rounds: Rounds) -> None:
    source = TASK.replace("self.steps.add_(len(x))", "self.mask.fill_(float('nan'))")
    with pytest.raises(TaskError, match=r"not finite in '2\.mask'") as caught:
        rounds(source, peers=1).round()
    assert caught.value.id == "task.not_finite"


def test_the_task_says_how_its_buffers_move(rounds: Rounds) -> None:
    said = 'buffers = {"1.*": "keep", "*.steps": "min", "*.seen": "keep", "*.least": "max"}'
    run = rounds(TASK.replace('buffers = {"*.least": "min"}', said), peers=3, aggregation={"rule": "mean"})
    run.round()
    state = run.model()
    assert torch.equal(state["1.running_var"], torch.ones(16))
    assert int(state["1.num_batches_tracked"]) == 0
    assert int(state["2.steps"]) == 64
    assert not bool(state["2.seen"])


@settings(max_examples=80, deadline=None)
@given(
    base=st.lists(st.floats(0, 100, width=32), min_size=3, max_size=3),
    trained=st.lists(st.lists(st.floats(0, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=5),
    aggregate=st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3),
)
def test_no_aggregate_leads_a_variance_below_zero(
    base: list[float], trained: list[list[float]], aggregate: list[float]
) -> None:
    vector = Vector(tensors=(TensorSpec(name="v", shape=(3,), dtype="F32", move="mean"),))
    before = torch.tensor(base)
    updates = torch.tensor(trained) - before
    out = torch.empty(3)
    move_buffers(Chunk(vector, 0, 0), before, updates, torch.tensor(aggregate), out)
    assert out.ge(0).all()
    both = torch.cat([before[None], before + updates])
    assert (out >= both.amin(0)).all()
    assert (out <= both.amax(0)).all()


@given(
    honest=st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=6),
    lies=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2),
)
def test_liars_move_a_counter_only_where_honest_peers_are(honest: list[int], lies: list[int]) -> None:
    values = torch.tensor([*honest, *lies])[:, None]
    if 2 * len(lies) >= len(values):
        return
    for move in TRIMMED_MOVES:
        assert min(honest) <= int(ordered(values, move, len(lies))) <= max(honest)


@given(
    values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6),
    faults=st.integers(0, 9),
)
def test_maximum_and_minimum_are_of_all_values_and_trimming_none_is_the_same(
    values: list[int], faults: int
) -> None:
    rows = torch.tensor(values)[:, None]
    for move, wanted in (("max", max(values)), ("any", max(values)), ("min", min(values))):
        assert int(ordered(rows, move, faults)) == wanted
        assert int(ordered(rows, f"trimmed-{move}", 0)) == wanted
