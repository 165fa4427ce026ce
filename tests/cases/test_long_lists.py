"""However much there is to tell, and whatever stands in it: every list comes whole, in messages that gRPC carries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from cli.client import Client
from cli.export import collect
from cli.settings import Settings
from coordinator.rpc import pages
from coordinator.store import tables
from muster.errors import NotFoundError, TransferError, UsageError
from muster.spec.model import RunSpec
from muster.transport.base import Channel, Method
from muster.wire import ADMIN
from muster.work import Work
from protos.v1 import admin_pb2 as pb
from tests.coordinator.conftest import Stage

MESSAGE_BYTES = 2 << 20  # half of what gRPC carries: a page and one row more
LONG = "\u4e16" * 16_000  # three bytes each, as long as any text may be
BROAD = json.dumps({f"{number:04d}" + "\u4e16" * 90: 1e308 for number in range(1024)})
SPEC = RunSpec.model_validate(
    {"task": "hand_task:Line", "rounds": 500, "task_options": {"text": "x" * 400_000}}
)
RUNS, ROUNDS, WORKERS, MODELS, EVENTS = 12, 90, 90, 15, 60


def rows() -> list[tuple[Any, list[dict[str, Any]]]]:
    peer_ids = [f"{number:03d}-" + "p" * 60 for number in range(WORKERS)]
    run_ids = [f"run-{number:02d}" for number in range(RUNS)]
    run = {
        "name": "n",
        "task": SPEC.task,
        "reason": LONG,
        "spec_json": SPEC.canonical_json(),
        "spec_digest": "d",
    }
    round_ = {"run_id": "run-00", "reason": LONG, "base_version": 0, "planned_at": 1.0, "quorum": 300}
    work = {
        "run_id": "run-00",
        "round": 1,
        "work_json": Work(role="train", base=0).to_json(),
        "reason": LONG,
        "offered_at": 1.0,
    }
    event = {
        "at": 1.0,
        "kind": "assignment.lost",
        "run_id": "run-00",
        "round": 1,
        "assignment_id": "",
        "reason": LONG,
    }
    model = {"run_id": "run-00", "digest": "", "size_bytes": 10, "layout_digest": "", "created_at": 1.0}
    return [
        (tables.PEERS, [{"peer_id": each, "state": "ACTIVE", "reason": LONG, "device": LONG} for each in peer_ids]),
        (
            tables.RUNS,
            [
                {**run, "run_id": each, "request_id": each, "created_at": 7.0, "model_version": 0, "last_round": ROUNDS,
                 "state": "FINISHED" if each != "run-00" else "RUNNING"}
                for each in run_ids
            ],
        ),
        (
            tables.ROUNDS,
            [{**round_, "number": n, "state": "OPEN" if n == 1 else "FAILED"} for n in range(1, ROUNDS + 1)],
        ),
        (tables.MODELS, [{**model, "version": n, "round": n} for n in range(MODELS)]),
        (
            tables.EVALUATIONS,
            [
                {"run_id": "run-00", "version": n, "round": n, "state": "FINISHED", "deadline_at": 1.0,
                 "metrics_json": BROAD}
                for n in range(MODELS)
            ],
        ),
        (
            tables.ASSIGNMENTS,
            [
                {**work, "assignment_id": f"a{n}", "peer_id": each, "attempt": 1, "state": "LOST", "traceback": LONG,
                 "metrics_json": BROAD if n < 3 else "{}"}
                for n, each in enumerate(peer_ids)
            ],
        ),
        (
            tables.EVENTS,
            [
                {**event, "sequence": n, "peer_id": peer_ids[0], "data_json": json.dumps({"traceback": LONG})}
                for n in range(1, EVENTS + 1)
            ],
        ),
        (
            tables.WARNINGS,
            [
                {"run_id": "run-00", "cause": f"cause-{n}", "reason": LONG, "peer_id": "", "times": 3, "first_round": 1,
                 "last_round": 3, "last_at": 1.0}
                for n in range(300)
            ],
        ),
    ]  # fmt: skip


class Measuring:
    """A channel that notes how large the answers are."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.sizes: dict[str, list[int]] = {}

    async def unary(self, method: Method[Any, Any], request: Any, *, timeout_seconds: float) -> Any:
        answer = await self._channel.unary(method, request, timeout_seconds=timeout_seconds)
        self.sizes.setdefault(method.name, []).append(answer.ByteSize())
        return answer

    async def stream(
        self, method: Method[Any, Any], requests: Any, *, timeout_seconds: float | None = None
    ) -> Any:
        async for answer in self._channel.stream(method, requests, timeout_seconds=timeout_seconds):
            self.sizes.setdefault(method.name, []).append(answer.ByteSize())
            yield answer

    async def close(self) -> None:
        await self._channel.close()


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    made = Stage(tmp_path, monkeypatch)
    await made.start()

    def fill(connection: Any) -> None:
        for table, values in rows():
            connection.execute(insert(table), values)

    await made.store._database.write(fill)
    await made.stop()
    await made.start()
    yield made
    await made.stop()


async def test_every_list_comes_whole_in_messages_that_fit(stage: Stage) -> None:
    assert (
        stage.running is not None and "run-00" in stage.running.coordinator.runs
    )  # a live one, too, is explained
    channel = Measuring(stage.channel())
    client = Client(channel, address="here", timeout_seconds=20, tell=print)
    assert [run.run_id for run in await client.runs()] == [f"run-{number:02d}" for number in range(RUNS)]
    assert len(await client.peers()) == WORKERS
    found = await client.rounds("run-00")
    assert [each.number for each in found] == list(range(1, len(found) + 1))
    assert len(found) >= ROUNDS  # and what the run has opened since
    assert [model.version for model in await client.models("run-00")] == list(range(MODELS))
    shown = await client.round("run-00", 1)
    lost = [each for each in shown.assignments if each.state == "LOST"]
    assert [each.peer_id for each in lost] == sorted({each.peer_id for each in lost})
    assert len(lost) == WORKERS
    assert all(len(each.traceback) == 16_000 for each in lost)
    explained = await client.explain("run-00")
    assert explained.sentence
    assert 0 < len(explained.recent) <= 10
    events = [event async for batch in client.events(run_id="run-00") for event in batch]
    assert [event.sequence for event in events[:EVENTS]] == list(range(1, EVENTS + 1))
    run = await client.run("run-00")
    assert run.warnings and len(run.spec_json) > 400_000
    peer = await client.call("GetPeer", pb.GetPeerRequest(peer_id=shown.assignments[0].peer_id))
    assert peer.recent
    await client.call("GetStatus", pb.GetStatusRequest())
    document = await collect(client, Settings(quiet=True), run)
    assert len(document["events"]) >= EVENTS
    assert len(document["rounds"][0]["assignments"]) >= WORKERS
    assert max(max(sizes) for sizes in channel.sizes.values()) < MESSAGE_BYTES
    assert {"ListRuns", "ListPeers", "ListRounds", "ListModels", "GetRound", "WatchEvents"} <= {
        name for name, sizes in channel.sizes.items() if len(sizes) > 1
    }


async def test_pages_are_as_small_as_asked_and_a_token_is_checked(stage: Stage) -> None:
    seen: list[str] = []
    request = pb.ListPeersRequest(page_size=7)
    while True:
        answer = await stage.call("ListPeers", request)
        assert 0 < len(answer.peers) <= 7
        seen += [peer.peer_id for peer in answer.peers]
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    assert len(seen) == len(set(seen)) == WORKERS
    for name in ("ListRuns", "ListPeers"):
        for token in ("x", "[1]", "{}", '["a", "b"]', "[null]", "\0"):
            with pytest.raises(UsageError) as caught:
                await stage.call(name, ADMIN[name].request(page_token=token))
            assert caught.value.id == "page.bad_token"
    with pytest.raises(NotFoundError):
        await stage.call("ListRounds", pb.ListRoundsRequest(run_id="none", page_token="[1]"))


async def test_a_coordinator_whose_list_never_ends_is_found_out() -> None:
    class Liar:
        async def unary(self, *_: Any, **__: Any) -> Any:
            return pb.ListPeersResponse(peers=[pb.Peer()], next_page_token="again")

    client = Client(Liar(), address="here", timeout_seconds=1, tell=print)  # type: ignore[arg-type]
    with pytest.raises(TransferError, match="same page"):
        await client.peers()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([0, 10, 400_000, pages.PAGE_BYTES_MAX]), max_size=60), st.integers(0, 5))
def test_pages_hold_all_items_in_order_and_no_more_bytes_than_one_item_too_many(
    sizes: list[int], most: int
) -> None:
    items = [pb.Peer(reason="x" * size) for size in sizes]

    async def read(after: tuple[int] | None, limit: int) -> list[tuple[int, pb.Peer]]:
        start = after[0] if after else 0
        return list(enumerate(items[start : start + limit], start + 1))

    async def one(after: tuple[int] | None) -> pages.Page[pb.Peer]:
        return await pages.page(read, lambda row: row[1], lambda row: (row[0],), after=after, page_size=most)

    got: list[pb.Peer] = []
    after: tuple[int] | None = None
    while True:
        page = asyncio.run(one(after))
        got += page.items
        assert not most or len(page.items) <= most
        assert len(page.items) <= 1 or sum(each.ByteSize() for each in page.items) <= pages.PAGE_BYTES_MAX
        if not page.next_token:
            break
        assert page.items
        key = pages.key_of(page.next_token, int)
        assert key == (len(got),)
        after = (len(got),)
    assert got == items
    assert [each for batch in pages.batches(items) for each in batch] == items
    last = pages.newest(items)
    assert list(last) == items[len(items) - len(last) :]
