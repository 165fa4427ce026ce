"""Whole rounds of an algorithm that sends groups of its own: up, folded, kept, down, and its own state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest
import torch

from exchange.contribution import Contribution, RoundContext
from exchange.groups import ADD, ANY, F64, I64, REPLACE, SUM, Group
from exchange.payload import PayloadReader
from methods import registry
from muster.errors import TaskError, UpdateRejected
from muster.runtime.secret_random import SecretRandom
from muster.task.task import FitReport

Rounds = Callable[..., Any]

TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Case(muster.Task):
    def model(self):
        return nn.Linear(3, 1)

    def train_data(self, site):
        return TensorDataset(torch.full((2, 3), float(site.data["index"])), torch.zeros(2))
"""
SEEN: list[RoundContext] = []  # what the algorithm was given, in the order of the peers


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Adds 1 to every parameter, and sends what tells the peers apart."""

    name: ClassVar[str] = "probe"
    groups: ClassVar[tuple[Group, ...]] = (
        Group(name="control", dtype=F64, fold=SUM, keep=ADD),
        Group(name="mask", tensors={"seen": (4,)}, dtype=I64, fold=ANY, keep=REPLACE),
        Group(name="gradient", fold="median", keep=REPLACE),
        Group(name="note", tensors={"text": (2,)}, codec="int8"),
    )
    leaves_out: str = ""

    def fit(self, task: Any, model: Any, data: Any, context: RoundContext) -> Contribution:
        SEEN.append(context)
        index = int(context.site.data["index"])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        values = {name: torch.full_like(p, index + 1.0) for name, p in model.named_parameters()}
        groups: dict[str, Mapping[str, torch.Tensor]] = {
            "control": {name: value * 1e-12 for name, value in values.items()},
            "mask": {"seen": torch.arange(4) == index},
            "gradient": values,
            "note": {"text": torch.ones(2)},
        }
        groups.pop(self.leaves_out, None)
        count = context.state["count"] + 1 if context.state else torch.ones(1, dtype=torch.int64)
        return Contribution(
            groups=groups,
            scalars={"examples": 2, "steps": 3, "metric/loss": 0.5, "normalizer": 1.5},
            state={"count": count},
        )


@dataclass(frozen=True, kw_only=True)
class Old:
    """As algorithms were before they contributed anything else."""

    name: ClassVar[str] = "old"
    unused: dict[str, Any] = field(default_factory=dict)

    def fit(self, task: Any, model: Any, data: Any, context: Any) -> FitReport:
        with torch.no_grad():
            model.bias += 1.0
        return FitReport(examples=2, steps=1, metrics={"loss": 1.0})


@pytest.fixture(autouse=True)
def algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Probe` and `Old` as if a package had them."""
    SEEN.clear()
    installed = registry.installed
    own = {
        name: EntryPoint(name, f"{__name__}:{name.title()}", "muster.algorithms") for name in ("probe", "old")
    }

    def found(group: str) -> dict[str, Any]:
        return {**installed(group), **own} if group == "muster.algorithms" else installed(group)

    monkeypatch.setattr(registry, "installed", found)


def _spec(**options: Any) -> dict[str, Any]:
    return {"train": {"algorithm": "probe", "options": options}, "aggregation": {"rule": "mean"}}


def test_groups_go_up_are_folded_and_come_down(rounds: Rounds) -> None:
    run = rounds(TASK, peers=3, **_spec())
    first = run.model()
    made = run.round()
    reader = PayloadReader(made.updates[0].path)
    found = [(group.name, group.codec, group.size) for group in reader.manifest.groups]
    assert found == [
        ("params", "identity", 4),
        ("control", "float64+zstd", 4),
        ("mask", "int64+zstd", 4),
        ("gradient", "identity", 4),
        ("note", "int8", 2),
    ]
    assert reader.manifest.scalars["normalizer"] == 1.5
    reader.close()
    assert all(context.received["control"]["weight"].eq(0.0).all() for context in SEEN)
    run.round()
    down = SEEN[-1].received
    assert sorted(down) == ["control", "gradient", "mask"]  # what is not kept does not come down
    assert down["control"]["weight"].dtype == torch.float64
    assert torch.allclose(
        down["control"]["weight"], torch.full((1, 3), 6e-12, dtype=torch.float64), rtol=1e-15
    )
    assert down["mask"]["seen"].tolist() == [1, 1, 1, 0]
    assert down["gradient"]["bias"].tolist() == [2.0]
    run.round()
    assert float(SEEN[-1].received["control"]["bias"]) == pytest.approx(12e-12, rel=1e-12)
    assert torch.allclose(run.model()["bias"], first["bias"] + 3.0)


def test_the_state_is_the_peers_own_and_goes_on(rounds: Rounds) -> None:
    run = rounds(TASK, **_spec())
    for _ in range(3):
        run.round()
    assert [int(context.state["count"]) if context.state else 0 for context in SEEN] == [0, 0, 1, 1, 2, 2]


def test_one_generator_is_the_same_again_and_the_other_never(rounds: Rounds) -> None:
    run = rounds(TASK, **_spec())
    run.train("site-0")
    run.train("site-0")
    drawn = [torch.rand(4, generator=context.generator) for context in SEEN]
    secret = [context.secret.normal(4) for context in SEEN]
    assert torch.equal(*drawn)
    assert not torch.equal(*secret)


def test_a_group_that_is_declared_and_not_given_costs_the_peer(rounds: Rounds) -> None:
    run = rounds(TASK, **_spec(leaves_out="mask"))
    with pytest.raises(TaskError, match="'mask' is not as it declares it: 'seen' is missing"):
        run.round()


def test_a_loop_of_the_tasks_own_makes_no_groups_of_an_algorithm(rounds: Rounds) -> None:
    own = (
        TASK
        + """
    def fit(self, model, context):
        return muster.FitReport(examples=2, steps=1)
"""
    )
    with pytest.raises(TaskError, match="trains by itself") as caught:
        rounds(own, **_spec()).round()
    assert caught.value.id == "train.own_loop"


def test_an_update_without_the_groups_of_its_run_is_rejected(rounds: Rounds) -> None:
    run = rounds(TASK, train={"algorithm": "old"})
    made = run.train("site-0")
    run.spec = run.spec.model_copy(update={"train": run.spec.train.model_copy(update={"algorithm": "probe"})})
    with pytest.raises(UpdateRejected, match="groups") as caught:
        run.admit("site-0", made["update"])
    assert caught.value.id == "update.mismatch"


def test_the_same_round_gives_the_same_bytes(rounds: Rounds) -> None:
    made = [rounds(TASK, peers=3, **_spec()).round().result for _ in range(2)]
    assert made[0].state_digests == made[1].state_digests
    assert sorted(made[0].state_digests) == ["group/control", "group/gradient", "group/mask"]


def test_an_algorithm_that_gives_a_report_contributes_nothing_else(rounds: Rounds) -> None:
    run = rounds(TASK, train={"algorithm": "old"})
    first = run.model()
    made = run.round()
    assert torch.allclose(run.model()["bias"], first["bias"] + 1.0)
    assert made.result.state_digests == {}


def test_secret_values_have_the_distribution_that_is_asked_for() -> None:
    bits = iter(range(1, 10_000))
    scripted = SecretRandom(source=lambda count: bytes(next(bits) % 256 for _ in range(count)))
    assert scripted.bytes(3) == b"\1\2\3"
    secret = SecretRandom()
    values = secret.normal(400, 500, std=3.0)
    assert values.shape == (400, 500)
    assert abs(float(values.mean())) < 0.05  # seven standard errors
    assert float(values.std()) == pytest.approx(3.0, rel=0.02)
    uniform = secret.uniform(100_000)
    assert 0.0 < float(uniform.min()) < 1e-3
    assert 1.0 - 1e-3 < float(uniform.max()) <= 1.0
    assert float(secret.integers(1_000).double().abs().max()) > 2.0**62
