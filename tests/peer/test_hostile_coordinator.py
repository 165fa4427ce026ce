"""A coordinator that is broken or hostile is refused by name, and the peer stays."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster import wire
from muster.config.settings import PeerConfig
from muster.files.digests import checksum
from muster.transport import MemoryTransport, Route
from muster.transport.identity import EVERYBODY
from peer.connection.checks import heartbeat_seconds, offer_refusal, plan_mistake
from peer.daemon import Peer
from peer.work import assignments
from protos.v1 import membership_pb2 as pb
from protos.v1 import models_pb2
from protos.v1.tensors_pb2 import BlobHeader, Chunk
from simulator.virtual_loop import run
from tests.peer.conftest import Bench

FAILED = pb.ASSIGNMENT_PHASE_FAILED
NAN, INFINITE = float("nan"), float("inf")


async def takes_work(bench: Any, session: Any) -> None:
    """The peer is as well as ever."""
    session.send(offer=bench.offer(assignment_id="sane.1.ada.1", run_id="sane"))
    await bench.reached("peer.committed")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"deadline_seconds": NAN}, "its deadline is in nan s"),
        ({"deadline_seconds": INFINITE}, "its deadline is in inf s"),
        ({"deadline_seconds": -1.0}, "its deadline is in -1.0 s"),
        ({"deadline_seconds": 1e300}, "its deadline is in 1e+300 s"),
        ({"run_id": ""}, "its run_id has 0 characters"),
        ({"run_id": "r" * 1000}, "its run_id has 1000 characters"),
        ({"assignment_id": "r.1.bob.1"}, "it is for 'bob'"),
        ({"base_digest": "0" * 100_000}, "its base has 100000 characters"),
        ({"layout_digest": "0" * 100_000}, "its layout has 100000 characters"),
        ({"spec_json": '{"task": "' + "x" * (1 << 20) + '"}'}, "its run spec has"),
        ({"base_size_bytes": 2**64 - 1}, "its model has 18446744073709551615 bytes"),
        ({"cohort_size": 2**32 - 1}, "its cohort has 4294967295 peers"),
    ],
)
async def test_an_offer_of_absurd_values_is_refused_by_name(
    bench: Any, changes: dict[str, Any], said: str
) -> None:
    task = bench.start()
    session = await bench.coordinator.session()
    offer = bench.offer(**changes)
    session.send(offer=offer)
    failure = (await bench.coordinator.told(offer.assignment_id, FAILED)).failure
    assert (failure.error_id, failure.retry) == ("peer.bad_offer", False)
    assert said in failure.message
    await takes_work(bench, session)
    await bench.stop(task)
    with bench.store() as store:
        assert store.held() == []


async def test_an_offer_that_cannot_even_be_answered_is_passed_over(bench: Any) -> None:
    bench.start()
    session = await bench.coordinator.session()
    session.send(offer=bench.offer(assignment_id=""))
    session.send(offer=bench.offer(assignment_id="x" * 10_000))
    session.send(offer=bench.offer(spec_json="}{" * 1000))
    assert (await bench.coordinator.told("r.1.ada.1", FAILED)).failure.error_id == "peer.bad_spec"
    await takes_work(bench, session)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9, NAN, INFINITE, 1e9])
async def test_an_absurd_heartbeat_is_refused_and_asked_again_later(bench: Any, seconds: float) -> None:
    bench.coordinator.heartbeat_seconds = seconds
    bench.start()
    await bench.coordinator.session()
    await bench.coordinator.session()
    assert bench.coordinator.heartbeats == 0
    bench.coordinator.heartbeat_seconds = 30.0
    session = await bench.coordinator.session()
    session.send(offer=bench.offer())
    await bench.coordinator.until(lambda: bench.coordinator.committed)


async def test_no_more_is_held_than_the_peer_can_do(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignments, "HELD_MAX", 3)
    bench.worker.gate.clear()
    task = bench.start()
    session = await bench.coordinator.session()
    for number in range(1, 6):
        session.send(offer=bench.offer(number))
    for number in (4, 5):
        report = await bench.coordinator.told(f"r.{number}.ada.1", FAILED)
        assert report.failure.error_id == "peer.too_busy"
    await bench.stop(task)
    with bench.store() as store:
        assert len(store.held()) == 3


class Generous:
    """Serves more than was announced."""

    def __init__(self, *, announced: int, served: int, digest: str) -> None:
        self.announced, self.served, self.digest = announced, served, digest

    async def fetch(self, requests: Any, context: Any) -> AsyncIterator[models_pb2.FetchModelResponse]:
        await anext(requests)
        header = BlobHeader(size_bytes=self.announced, digest=self.digest)
        yield models_pb2.FetchModelResponse(header=header)
        data = bytes(1 << 20)
        for at in range(0, self.served, 1 << 20):
            chunk = Chunk(offset=at, data=data, crc32c=checksum(data))
            yield models_pb2.FetchModelResponse(chunk=chunk)


@pytest.mark.parametrize(
    ("announced", "error_id"), [(8 << 20, "transfer.unexpected_body"), (None, "transfer.oversize")]
)
async def test_no_more_is_written_than_the_offer_announced(
    bench: Any, announced: int | None, error_id: str
) -> None:
    offer = bench.offer()
    generous = Generous(
        announced=announced or offer.work.base.size_bytes, served=8 << 20, digest=offer.work.base.digest
    )
    await bench.unserve()
    routes = [route for route in bench.coordinator.routes() if route.method is not wire.FETCH_MODEL]
    routes.append(Route(allows=EVERYBODY, method=wire.FETCH_MODEL, handle=generous.fetch))
    bench._server = await MemoryTransport(bench.hub).serve("coordinator:1", routes)
    bench.start()
    (await bench.coordinator.session()).send(offer=offer)
    report = await bench.coordinator.told(offer.assignment_id, FAILED)
    assert report.failure.error_id == error_id
    written = [path.stat().st_size for path in (bench.folder / "ada" / "arriving").iterdir()]
    assert sum(written) < 1 << 20


async def test_the_disk_is_not_the_peers_alone(bench: Any) -> None:
    bench.settings["disk_reserve_bytes"] = 1 << 60
    bench.start()
    (await bench.coordinator.session()).send(offer=bench.offer())
    failure = (await bench.coordinator.told("r.1.ada.1", FAILED)).failure
    assert failure.error_id == "storage.disk_full"
    assert "peer.disk_reserve_bytes" in failure.message
    assert "the update of r.1.ada.1" in failure.message


class Longest(Random):
    def uniform(self, a: float, b: float) -> float:
        return b


def test_a_coordinator_that_welcomes_and_hangs_up_is_not_hammered(tmp_path: Path) -> None:
    run(_hang_up(Bench(tmp_path)))


async def _hang_up(bench: Bench) -> None:
    now = asyncio.get_running_loop().time
    await bench.serve()
    settings = {
        "name": "ada",
        "coordinator": "coordinator:1",
        "data_dir": bench.folder / "ada",
        "policy": bench.folder / "policy.toml",
        "device": "cpu",
    }
    peer = Peer(
        PeerConfig.model_validate(settings),
        MemoryTransport(bench.hub),
        make_worker=bench.make_worker,
        random=Longest(),
    )
    task = asyncio.create_task(peer.run())
    waits: list[float] = []
    last = await bench.coordinator.session()
    for _ in range(7):
        last.end()
        began = now()
        last = await bench.coordinator.session()
        waits.append(now() - began)
    assert waits == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0])
    last.send(run_ended=pb.RunEnded(run_id="gone"))  # it has something to say: it is asked again soon
    last.end()
    began = now()
    await bench.coordinator.session()
    assert now() - began <= 2.0
    await bench.stop(task)
    await bench.close()


@given(
    st.builds(
        pb.Assignment,
        assignment_id=st.text(max_size=300),
        run_id=st.text(max_size=200),
        deadline_seconds=st.floats(),
        work=st.builds(
            pb.Work,
            role=st.text(max_size=200),
            base=st.builds(pb.Base, digest=st.text(max_size=200), size_bytes=st.integers(0, 2**64 - 1)),
            params_json=st.sampled_from(["", "{}", "[]", "{", '{"options": 1}']) | st.text(max_size=20),
        ),
        cohort_size=st.integers(0, 2**32 - 1),
    )
)
def test_what_passes_has_bounds(offer: pb.Assignment) -> None:
    refusal = offer_refusal(offer, "ada")
    if refusal is None:
        assert math.isfinite(offer.deadline_seconds)
        assert offer.deadline_seconds >= 0
        assert offer.assignment_id
        assert offer.run_id
        assert offer.work.base.size_bytes <= 1 << 46
    else:
        assert refusal.id == "peer.bad_offer"


@given(st.floats())
def test_a_heartbeat_that_passes_can_be_kept(seconds: float) -> None:
    try:
        assert 0.01 <= heartbeat_seconds(pb.Welcome(heartbeat_seconds=seconds)) <= 3600
    except Exception as error:
        assert getattr(error, "id", "") == "session.bad_welcome"  # any other is a defect


DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"base_digest": "../x", "deltas": [{"digest": DIGEST, "size_bytes": 1}]}, "no BLAKE3 digest"),
        ({"base_digest": DIGEST, "deltas": [{"digest": "x", "size_bytes": 1}]}, "BLAKE3 digest"),
        ({"base_digest": DIGEST, "deltas": [{"digest": DIGEST}] * 1000}, "1000 deltas"),
        ({"base_digest": DIGEST, "deltas": [{"digest": DIGEST, "size_bytes": 2**63}] * 2}, "its deltas have"),
        ({"scale_digest": "/etc/passwd"}, "BLAKE3 digest"),
        ({"base_digest": DIGEST, "deltas": [{"digest": DIGEST, "size_bytes": 10}]}, ""),
        ({}, ""),
    ],
)
def test_a_plan_that_makes_no_sense_is_not_followed(plan: dict[str, Any], said: str) -> None:
    offer = pb.Assignment(work=pb.Work(base=pb.Base(size_bytes=100)))
    found = plan_mistake(models_pb2.PlanModelResponse(**plan), offer)
    assert bool(found) == bool(said)
    assert said.removeprefix("no ") in found
