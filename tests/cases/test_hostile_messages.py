"""Every procedure is called with every kind of value that a field can hold: the caller gets a clean error or an answer,
and an honest run goes on to its end."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from muster.errors import InternalError, MusterError
from muster.transport.base import Method
from muster.wire import METHODS
from protos.v1 import admin_pb2 as pb
from protos.v1.membership_pb2 import Credentials, Hello, SessionRequest
from tests.coordinator.conftest import Stage

CALLS = 300
CALL_SECONDS = 0.3  # what streams for ever is left then
NUMBERS = [0, 1, 2, 7, 2**31 - 1, 2**31, 2**32 - 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]
REALS = [0.0, -0.0, 1.0, -1.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf")]
TEXTS = [
    "", "x", "\0", "a\0b", "\x1b[2J", "\u202eevil", "\u2028", "\U0001f600" * 40, "../../../etc/passwd", "/dev/zero",
    "x" * 6000, "NaN", "null", "[]", "{", '{"a":1}', "[" * 3000, "9" * 400, "*", "%s%n", "'; DROP TABLE runs; --",
    "f" * 64,
]  # fmt: skip
SPECS = [
    {"task": "hand_task:Line", "rounds": 1, "name": "x" * 80},
    {"task": "hand_task:Broken", "rounds": 1_000_000, "round": {"peers_min": 10**30}},
    {
        "task": "hand_task:Line",
        "rounds": 1,
        "seed": 2**63 - 1,
        "round": {"deadline_seconds": 2_592_000, "peers_min": 99},
    },
    {"task": "hand_task:Line", "rounds": 1, "train": {"lr": 1e400}},
    {"task": "os:system", "rounds": 1},
    {"task": "hand_task:Line", "rounds": 1, "aggregation": {"rule": "../x", "faults": -1}},
    {
        "task": "hand_task:Line",
        "rounds": 1,
        "task_options": {"x" * 2000: [[[[]]]] * 50},
        "round": {"peers_min": 99},
    },
]


class Mallory:
    """Makes messages; what she may know (her secret, her own work, a run that is hers) stands in many of them."""

    def __init__(self, seed: int, credentials: Credentials, known: dict[str, Any]) -> None:
        self._chance = random.Random(seed)
        self._credentials = credentials
        self._known = known  # by field: what makes the rest of the message be looked at

    def message(self, kind: type[Message], depth: int = 0) -> Any:
        if kind is Credentials and self._chance.random() < 0.8:
            return self._credentials
        message = kind()
        for field in message.DESCRIPTOR.fields:
            if field.containing_oneof is not None and message.WhichOneof(field.containing_oneof.name):
                continue
            if depth < 4 and self._chance.random() < 0.75:
                self._fill(message, field, depth)
        return message

    def stream(self, method: Method[Any, Any]) -> list[Any]:
        if method.name == "Session" and self._chance.random() < 0.7:
            hello = self.message(Hello)
            hello.credentials.CopyFrom(self._credentials)
            return [SessionRequest(hello=hello), *(self.message(SessionRequest) for _ in range(3))]
        return [self.message(method.request) for _ in range(self._chance.randint(1, 3))]

    def _fill(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        value = field.message_type
        if field.name in self._known and not field.is_repeated and self._chance.random() < 0.7:
            setattr(message, field.name, self._known[field.name])
        elif value is not None and value.GetOptions().map_entry:
            for _ in range(self._chance.choice([1, 3, 40])):
                getattr(message, field.name)[self._text()] = self._scalar(value.fields_by_name["value"])
        elif field.is_repeated:
            many = [self._value(message, field, depth) for _ in range(self._chance.choice([1, 2, 30]))]
            getattr(message, field.name).extend(many)
        elif value is not None:
            getattr(message, field.name).CopyFrom(self._value(message, field, depth))
        else:
            setattr(message, field.name, self._scalar(field))

    def _value(self, message: Any, field: FieldDescriptor, depth: int) -> Any:
        if field.message_type is None:
            return self._scalar(field)
        kind = field.message_type._concrete_class
        return self.message(kind, depth + 1)

    def _text(self) -> str:
        if self._chance.random() < 0.2:
            return json.dumps(self._chance.choice(SPECS))
        return self._chance.choice(TEXTS)

    def _scalar(self, field: FieldDescriptor) -> Any:
        kinds = FieldDescriptor
        match field.cpp_type:
            case kinds.CPPTYPE_STRING:
                return self._chance.randbytes(60) if field.type == kinds.TYPE_BYTES else self._text()
            case kinds.CPPTYPE_DOUBLE | kinds.CPPTYPE_FLOAT:
                return self._chance.choice(REALS)
            case kinds.CPPTYPE_BOOL:
                return self._chance.random() < 0.5
            case kinds.CPPTYPE_ENUM:
                return self._chance.choice([*(each.number for each in field.enum_type.values), 77])
            case kinds.CPPTYPE_UINT32:
                return self._chance.choice([each for each in NUMBERS if each < 2**32])
            case _:
                return self._chance.choice(NUMBERS)


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str) -> AsyncIterator[Stage]:
    made = Stage(tmp_path, monkeypatch)
    await made.start(database_url=database_url)
    yield made
    await made.stop()


async def call(channel: Any, method: Method[Any, Any], requests: list[Any]) -> None:
    async def out() -> AsyncIterator[Any]:
        for request in requests:
            yield request

    if not (method.client_streams or method.server_streams):
        await channel.unary(method, requests[0], timeout_seconds=20)
        return
    async with asyncio.timeout(CALL_SECONDS):
        async for _ in channel.stream(method, out()):
            pass


async def test_no_message_ends_the_coordinator_or_costs_an_honest_run(stage: Stage) -> None:
    mallory = await stage.peer("mallory")
    decoy = await stage.submit(name="decoy", round={"peers_min": 1, "deadline_seconds": 60, "skips_max": 50})
    work = await mallory.offer()
    honest = [await stage.peer(f"ward-{number}") for number in range(2)]
    run_id = await stage.submit(
        name="honest",
        rounds=1,
        round={"peers_min": 3, "quorum": 0.5, "grace_seconds": 0, "deadline_seconds": 600},
    )
    offers = []
    for peer in honest:
        while (offer := await peer.offer()).run_id != run_id:
            pass
        offers.append(offer)
    known = {
        "run_id": decoy,
        "peer_id": "mallory",
        "assignment_id": work.assignment_id,
        "layout_digest": work.work.base.layout_digest,
        "digest": work.work.base.digest,
        "number": 1,
        "round": 1,
        "size_bytes": 100,
    }
    made = Mallory(20, mallory.credentials, known)
    channel = stage.channel()
    answered: set[str] = set()
    last = {
        "RemovePeer",
        "QuarantinePeer",
        "DrainPeer",
        "StopRun",
        "RemoveRun",
    }  # after these she gets no further
    names = sorted(path for path, method in METHODS.items() if method.name not in last)
    order = [METHODS[names[number % len(names)]] for number in range(CALLS)]
    order += [METHODS[name] for name in sorted(METHODS) * 3]
    for method in order:
        requests = made.stream(method) if method.client_streams else [made.message(method.request)]
        try:
            await call(channel, method, requests)
            answered.add(method.path)
        except TimeoutError:
            pass
        except InternalError as error:
            pytest.fail(f"{method.name} fails with {error} on {str(requests)[:2000]}")
        except MusterError as error:
            assert error.id and error.message
        assert stage.running is not None
        assert not stage.running.coordinator.failed.done(), f"{method.name} ends it: {str(requests)[:2000]}"
    # It is not all refused at the door. Streams do not tell: they are left before they are over.
    single = {name for name in names if not (METHODS[name].client_streams or METHODS[name].server_streams)}
    assert len(answered & single) > len(single) / 2
    for peer, offer in zip(honest, offers, strict=True):
        await peer.deliver(offer, peer.write(offer, torch.ones(5)))
    assert (await stage.ended(run_id)).state == "FINISHED"
    await stage.call("ListRuns", pb.ListRunsRequest())
    await stage.call("ListPeers", pb.ListPeersRequest())
