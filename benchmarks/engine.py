"""What an event costs the coordinator's engine in cohorts of different sizes: it must not grow with them.

    python -m benchmarks.engine [100 1000 5000]

A run of three rounds with no store, network or clock: every peer prepares, trains, uploads and delivers, each step one
event.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from coordinator.engine.decide import decide, new_run
from coordinator.engine.schedule import Schedule, build
from coordinator.engine.state import (
    Aggregate,
    Aggregated,
    AssignmentProgressed,
    AssignmentStatus,
    Event,
    ModelReady,
    ModelVersion,
    PeerStatus,
    PeerView,
    RunSubmitted,
    UpdateAdmitted,
)
from exchange.facts import UpdateFacts
from muster.spec.model import RunSpec

ROUNDS = 3
FACTS = UpdateFacts(digest="u", size_bytes=10, dense_bytes=40, examples=5, norm=1.0, metrics={"loss": 1.0})
STEPS = (
    AssignmentStatus.ACCEPTED,
    AssignmentStatus.PREPARING,
    AssignmentStatus.TRAINING,
    AssignmentStatus.UPLOADING,
)


def _model(number: int) -> ModelVersion:
    return ModelVersion(version=number, round=number, digest=f"m{number}", size_bytes=1, layout_digest="l")


@dataclass
class Engine:
    peers: dict[str, PeerView]
    schedule: Schedule
    now: float = 0.0
    events: int = 0

    def start(self, spec: RunSpec) -> None:
        event = RunSubmitted(run_id="run", spec=spec, spec_toml="", request_id="")
        self.state = new_run(event, "run", self.now).state
        self.effects = self.send(ModelReady(run_id="run", model=_model(0)))

    def send(self, event: Event) -> tuple[object, ...]:
        self.now += 0.001
        self.events += 1
        decision = decide(self.state, event, self.now, self.peers, self.schedule)
        self.state = decision.state
        return decision.effects

    def play(self, number: int) -> None:
        names = list(self.state.rounds[number].assignments)
        for status in STEPS:
            for name in names:
                self.send(AssignmentProgressed(run_id="run", assignment_id=name, status=status))
        effects: tuple[object, ...] = ()
        for name in names:
            effects = self.send(UpdateAdmitted(run_id="run", assignment_id=name, update=FACTS))
        assert any(isinstance(effect, Aggregate) for effect in effects)
        self.send(Aggregated(run_id="run", round=number, model=_model(number), treatments=(), seconds=0.0))


def measure(count: int) -> tuple[float, float]:
    """Microseconds an event, and milliseconds of a round for each peer."""
    spec = RunSpec.model_validate(
        {
            "task": "a:B",
            "rounds": ROUNDS,
            "round": {"quorum": 1.0},
            "aggregation": {"rule": "mean", "faults": 0},
        }
    )
    names = [f"peer-{number:05}" for number in range(count)]
    peers = {name: PeerView(peer_id=name, status=PeerStatus.ACTIVE, connected=True) for name in names}
    engine = Engine(peers=peers, schedule=build(spec, refuse=lambda _n, _cohort: None))
    engine.start(spec)
    began = time.process_time()
    for number in range(1, ROUNDS + 1):
        engine.play(number)
    seconds = time.process_time() - began
    return 1e6 * seconds / engine.events, 1e3 * seconds / ROUNDS / count


def main() -> None:
    print(f"{'peers':>6} {'us an event':>12} {'ms a round and peer':>20}")
    for count in map(int, sys.argv[1:] or ("100", "1000", "5000")):
        event, peer = measure(count)
        print(f"{count:6} {event:12.0f} {peer:20.2f}", flush=True)


if __name__ == "__main__":
    main()
