"""What the cases share: whole rounds without services, each step by the very function that the services call."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from exchange import admission, aggregation, downlink, links
from exchange.job import AggregationJob, UpdateBase, UpdateInput
from exchange.names import DELTA, FACTOR, KEPT, SCALE
from exchange.rebuild import rebuild
from muster.model.initial import draw_version
from muster.model.modelfile import ModelFile, export_state
from muster.seeds import assignment_seed, initial_seed
from muster.spec.model import RunSpec
from muster.task.loading import load_task
from peer.work import jobs as peer_jobs
from peer.work.orders import Site, evaluate_order, train_order
from protos.v1.membership_pb2 import Assignment, Base, Work

_numbers = itertools.count()


def _told(share: float) -> None:
    assert 0.0 <= share <= 1.0


class Rounds:
    """A run of the task class in `source` by its peers, whose names begin with "site-", round by round."""

    def __init__(self, folder: Path, source: str, peers: int, tables: Mapping[str, Any]) -> None:
        self.folder = folder / f"run-{next(_numbers)}"
        self.folder.mkdir()
        module = f"{folder.name.replace('-', '_')}_{self.folder.name.replace('-', '_')}"
        (self.folder / f"{module}.py").write_text(source)
        self.spec = RunSpec.model_validate({"task": f"{module}:Case", "rounds": 9, **tables})
        self.peers = [f"site-{number}" for number in range(peers)]
        self.version = 0
        self.base = self.folder / "version-0"
        task = load_task(self.spec.task, [self.folder], self.spec.task_options)
        self.drawn = draw_version(task, initial_seed(self.spec.seed), self.base, self.spec.exchange)
        self.digest = self.drawn.info.digest
        self._counted = dict.fromkeys(self.peers, 0)
        self._kept: dict[str, dict[str, Path]] = {peer: {} for peer in self.peers}
        self._states: dict[str, Path] = {}

    def _order(self, make: Callable[..., Any], peer: str, **more: Any) -> dict[str, Any]:
        offer = Assignment(
            assignment_id=f"run.{self.version + 1}.{peer}.1",
            run_id="run",
            round=self.version + 1,
            work=Work(role="train", base=Base(version=self.version, digest=self.digest)),
            seed=assignment_seed(self.spec.seed, "train", self.version + 1, peer),
            cohort_size=len(self.peers),
            counted_round=self._counted[peer],
        )
        site = Site(name=peer, task_folders=(str(self.folder),))
        data = {"index": self.peers.index(peer)}
        return asdict(make(site, offer, self.spec, data=data, device="cpu", base=self.base, **more))

    def train(self, peer: str) -> dict[str, Any]:
        factor = self._states.get(FACTOR)
        stem = self.folder / f"{peer}-{next(_numbers)}"
        received = {
            name.removeprefix(KEPT): path for name, path in self._states.items() if name.startswith(KEPT)
        }
        order = self._order(
            train_order, peer, stem=stem, state=self._kept[peer], factor=factor, received=received
        )
        return peer_jobs.train(order, _told) | {"update": Path(order["update"])}

    def evaluate(self, peer: str) -> dict[str, Any]:
        return peer_jobs.evaluate(self._order(evaluate_order, peer, state=self._kept[peer]), _told)

    def admit(self, peer: str, update: Path, digest: str = "d") -> Any:
        file = ModelFile(self.base)
        file.close()
        expected = admission.Expected(
            assignment_id=f"run.{self.version + 1}.{peer}.1",
            peer_id=peer,
            run_id="run",
            round=self.version + 1,
            base_version=self.version,
            base_digest=self.digest,
            layout=file.layout,
            spec=self.spec,
            estimate=self._states.get(links.state_name(peer)),
            factor=self._states.get(FACTOR),
        )
        assert update.stat().st_size <= admission.update_bytes_max(self.spec, file.layout, self.version)
        return admission.admit(update, digest, expected)

    def round(self, changed: Callable[[str, Path], Path] | None = None) -> SimpleNamespace:
        """All peers train, all are admitted, one version is made, and where deltas go down, made again of them.
        `changed` may put another file in the place of a peer's update."""
        inputs: list[UpdateInput] = []
        for peer in self.peers:
            trained = self.train(peer)
            update = trained["update"] if changed is None else changed(peer, trained["update"])
            facts = self.admit(peer, update)
            inputs.append(
                UpdateInput(
                    assignment_id=f"run.{self.version + 1}.{peer}.1",
                    peer_id=peer,
                    path=update,
                    examples=facts.examples,
                    base=UpdateBase(
                        version=self.version,
                        digest=self.digest,
                        round=self.version + 1,
                        estimate=self._states.get(links.state_name(peer)),
                        factor=self._states.get(FACTOR),
                    ),
                )
            )
            self._kept[peer] = {name: Path(path) for name, path in trained["staged"].items()}
            self._counted[peer] = self.version + 1
        names = aggregation.state_names(self.spec, inputs, cohort=len(inputs), base_version=self.version)
        target = self.folder / f"version-{self.version + 1}"
        places = {name: self.folder / f"state-{next(_numbers)}" for name in names}
        result = aggregation.aggregate(
            AggregationJob(
                spec=self.spec,
                base=self.base,
                updates=inputs,
                states=self._states,
                base_version=self.version,
                base_digest=self.digest,
                round=self.version + 1,
                cohort=len(inputs),
                model_out=target,
                states_out=places,
            )
        )
        if downlink.compresses(self.spec):
            again = self.folder / f"again-{self.version + 1}"
            rebuilt = rebuild(self.base, [places[DELTA]], again, places.get(SCALE))
            assert rebuilt.digest == result.model_digest
        self._states = {**self._states, **{name: path for name, path in places.items() if name != DELTA}}
        self.base, self.version = target, self.version + 1
        self.digest = result.model_digest
        return SimpleNamespace(result=result, updates=inputs)

    def model(self) -> dict[str, Tensor]:
        file = ModelFile(self.base)
        state = {name: value.clone() for name, value in export_state(file).items()}
        file.close()
        return state


@pytest.fixture
def rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rounds]:
    """rounds(source, peers=2, **tables of the run spec): `source` is a module with a task `Case`."""
    # Here all peers take turns in one large process, where a collection takes a second.
    monkeypatch.setattr(peer_jobs, "gc", SimpleNamespace(collect=lambda: 0))

    def make(source: str, peers: int = 2, **tables: Any) -> Rounds:
        return Rounds(tmp_path, source, peers, tables)

    return make
