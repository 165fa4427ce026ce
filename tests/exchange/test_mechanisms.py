"""What a mechanism seals at the sender and opens at the receiver, and what the rest of a run knows of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from exchange import mechanisms, mixing
from exchange.aggregation import aggregate, state_names
from exchange.contribution import Contribution
from exchange.groups import Group
from exchange.job import AggregationJob
from exchange.mechanisms import OpenContext, SealContext, Sealing
from exchange.payload import PayloadReader
from exchange.recipe import AggregationRefused
from exchange.update import WrittenUpdate, write_update
from muster.errors import ConfigError, TaskError, UpdateRejected
from muster.files.digests import digest_file
from muster.model.layout import CHUNK_COORDINATES, PARAMS
from muster.model.modelfile import ModelFile, layout_of, load_into, write_initial
from muster.runtime.secret_random import SecretRandom
from muster.seeds import assignment_seed
from muster.spec.model import RunSpec
from muster.task.task import FitReport, Site
from tests.fake_plugins import PlugIn

MakeSpec = Callable[..., RunSpec]
SIZE = CHUNK_COORDINATES + 1000
SHARE = 0.25  # by which the mechanism of these tests moves every value


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Moves what is sent up and what has come down again, and shortens the update first."""

    name: ClassVar[str] = "shift"
    sums_only: ClassVar[bool] = False
    by: float = SHARE
    clip_norm: float = math.inf
    senders_min: int = 1
    longest: float = math.inf

    def seal(self, values: Tensor, context: SealContext) -> Tensor:
        assert context.size == SIZE
        assert context.start == context.index * CHUNK_COORDINATES
        assert context.site.data == {"key": 7}
        return values + self.by

    def open(self, total: Tensor, context: OpenContext) -> None:
        if len(context.senders) < self.senders_min:
            raise AggregationRefused("too few to open")
        total.sub_(self.by * sum(context.weights))

    def norm_max(self, size: int) -> float:
        return self.longest


@pytest.fixture(autouse=True)
def _installed(plug_in: PlugIn) -> Iterator[None]:
    plug_in("muster.mechanisms", "shift", Shift)
    yield


class Holders:
    """Of a model of two chunks: updates of several senders, each moved by a value of its own."""

    def __init__(self, folder: Path, spec: RunSpec) -> None:
        self.folder, self.spec = folder, spec
        torch.manual_seed(0)
        self.model = nn.Linear(SIZE, 1, bias=False)
        self.base = folder / "base"
        self.digest = write_initial(self.base, layout_of(self.model), self.model).digest

    def write(
        self,
        peer: str,
        move: float,
        *,
        state: Mapping[str, Path] | None = None,
        groups: tuple[Group, ...] = (),
    ) -> WrittenUpdate:
        found = mechanisms.build(self.spec)
        site = Site(name=peer, data={"key": 7})
        sealing = None if found is None else Sealing(mechanism=found, site=site, secret=SecretRandom())
        request = mixing.UpdateRequest(
            run_id="run",
            round=1,
            assignment_id=f"run.1.{peer}.1",
            base_version=0,
            base_digest=self.digest,
            codec="identity",
            feedback="none",
            seed=assignment_seed(self.spec.seed, "train", 1, peer),
            update=self.folder / peer,
            staged=str(self.folder / f"{peer}.{len(state or {})}.state"),
            state=state or {},
            worker_momentum=self.spec.train.worker_momentum,
        )
        with closing(ModelFile(self.base)) as base:
            load_into(self.model, base)
            with torch.no_grad():
                self.model.weight.add_(move)
            contribution = Contribution.of(FitReport(examples=1, steps=1))
            return write_update(request, self.model, base, contribution, groups=groups, sealing=sealing)

    def sent(self, peer: str) -> Tensor:
        with closing(PayloadReader(self.folder / peer)) as reader:
            bodies = [bytearray(reader.chunk(PARAMS, index)) for index in range(2)]
        return torch.cat([torch.frombuffer(body, dtype=torch.float32) for body in bodies])

    def admit(self, peer: str) -> mixing.UpdateInput:
        path = self.folder / peer
        expected = mixing.Expected(
            assignment_id=f"run.1.{peer}.1",
            peer_id=peer,
            run_id="run",
            round=1,
            base_version=0,
            base_digest=self.digest,
            layout=layout_of(self.model),
            spec=self.spec,
        )
        mixing.admit(path, digest_file(path), expected)
        base = mixing.UpdateBase(version=0, digest=self.digest, round=1)
        return mixing.UpdateInput(
            assignment_id=expected.assignment_id, peer_id=peer, path=path, examples=1, base=base
        )

    def moved(self, updates: list[mixing.UpdateInput]) -> Tensor:
        """How far an aggregation of them moves the model, at a coordinator and among neighbours alike."""
        mixing.mix(self.spec, self.base, updates, base_digest=self.digest, round=1, out=self.folder / "delta")
        mixing.apply(self.base, self.folder / "delta", self.folder / "mixed")
        names = state_names(self.spec, updates, cohort=len(updates), base_version=0)
        job = AggregationJob(
            spec=self.spec,
            base=self.base,
            updates=updates,
            states={},
            base_version=0,
            base_digest=self.digest,
            round=1,
            cohort=len(updates),
            model_out=self.folder / "new",
            states_out={name: self.folder / name.replace("/", "-") for name in names},
        )
        aggregate(job)
        found: list[Tensor] = []
        for name in ("base", "mixed", "new"):
            with closing(ModelFile(self.folder / name)) as file:
                found.append(file.vector.clone())
        torch.testing.assert_close(found[1], found[2], atol=1e-6, rtol=0)
        return found[2] - found[0]


@pytest.fixture
def hold(tmp_path: Path, make_spec: MakeSpec) -> Callable[..., Holders]:
    def make(options: Mapping[str, Any] | None = None, **tables: Any) -> Holders:
        table = {"name": "shift", **({"options": dict(options)} if options else {})}
        aggregation = {"rule": "mean", "weights": "uniform"}
        return Holders(tmp_path, make_spec(**{"mechanism": table, "aggregation": aggregation, **tables}))

    return make


def _near(found: Tensor, wanted: float) -> bool:
    return bool((found - wanted).abs().max() < 1e-5)


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_what_is_sent_is_sealed_and_the_aggregate_is_opened(hold: Callable[..., Holders], rule: str) -> None:
    holders = hold(aggregation={"rule": rule, "weights": "uniform", "faults": 0})
    for peer, move in (("ada", 0.5), ("ben", 1.0), ("cy", 1.5)):
        holders.write(peer, move)
        assert _near(holders.sent(peer), move + SHARE)
    assert _near(holders.moved([holders.admit(peer) for peer in ("ada", "ben", "cy")]), 1.0)


def test_an_update_is_clipped_before_and_what_the_sender_keeps_is_not_sealed(
    hold: Callable[..., Holders],
) -> None:
    holders = hold({"clip_norm": 0.5 * math.sqrt(SIZE)}, train={"worker_momentum": 0.5})
    first = holders.write("ada", 1.0)
    assert _near(holders.sent("ada"), 0.5 + SHARE)
    momentum = torch.from_file(str(first.staged["momentum"]), size=SIZE, dtype=torch.float32)
    assert _near(momentum, 0.5)
    holders.write("ada", 0.0, state=first.staged)
    assert _near(holders.sent("ada"), 0.25 + SHARE)


def test_what_would_go_unsealed_is_not_written(hold: Callable[..., Holders]) -> None:
    holders = hold()
    with pytest.raises(TaskError, match="'control' beside the parameters, and shift seals") as refused:
        holders.write("ada", 1.0, groups=(Group(name="control"),))
    assert refused.value.id == "mechanism.unsealed"
    assert not (holders.folder / "ada").exists()


def test_an_update_that_is_written_again_is_the_same(hold: Callable[..., Holders]) -> None:
    holders = hold()
    assert holders.write("ada", 0.5).info == holders.write("ada", 0.5).info


def test_a_sealed_update_longer_than_its_mechanism_makes_them_is_rejected(
    hold: Callable[..., Holders],
) -> None:
    holders = hold({"longest": math.sqrt(SIZE)})
    holders.write("ada", 0.5)
    holders.admit("ada")
    holders.write("ben", 1.5)
    with pytest.raises(UpdateRejected, match="sealed by shift it has at most") as refused:
        holders.admit("ben")
    assert refused.value.id == "update.norm_too_large"


def test_a_total_that_cannot_be_opened_makes_no_version(hold: Callable[..., Holders]) -> None:
    holders = hold({"senders_min": 2})
    holders.write("ada", 0.5)
    with pytest.raises(AggregationRefused, match="too few to open"):
        holders.moved([holders.admit("ada")])


def test_without_a_mechanism_a_spec_says_nothing_of_it(make_spec: MakeSpec) -> None:
    assert "mechanism" not in make_spec().model_dump(mode="json")
    named = make_spec(mechanism={"name": "shift"})
    assert named.model_dump(mode="json")["mechanism"] == {"name": "shift"}
    assert RunSpec.model_validate(named.model_dump(mode="json")).digest == named.digest


def test_options_that_a_mechanism_refuses_are_told_with_their_table(make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match="shift has no option 'far'") as refused:
        mechanisms.build(make_spec(mechanism={"name": "shift", "options": {"far": 1}}))
    assert "[mechanism.options]" in refused.value.fix
    with pytest.raises(ConfigError, match=r"there is no mechanism 'shfit' .*did you mean 'shift'"):
        mechanisms.build(make_spec(mechanism={"name": "shfit"}))
