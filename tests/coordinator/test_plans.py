"""What a peer is told to fetch for a version: the deltas since the one that it holds, or can draw."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from coordinator.store.blobs import DELTAS_KEEP
from muster.errors import NotFoundError
from muster.wire import PLAN_MODEL
from protos.v1.membership_pb2 import Assignment
from protos.v1.models_pb2 import PlanModelRequest, PlanModelResponse

WIDTH = 1 << 15
TASK = f"""
from torch import nn
from hand_task import Line

class Wide(Line):
    def model(self):
        return nn.Linear({WIDTH - 1}, 1)
"""


class Asking:
    """The only peer of a run whose steps go down compressed."""

    def __init__(self, stage: Any, peer: Any, offer: Assignment) -> None:
        self.stage = stage
        self.peer = peer
        self.offers = [offer]

    @property
    def digests(self) -> list[str]:
        """Of all versions, version 0 first."""
        return [offer.work.base.digest for offer in self.offers]

    async def follow(self, rounds: int) -> None:
        for _ in range(rounds):
            await self.peer.deliver(self.offers[-1], self.peer.write(self.offers[-1], torch.ones(WIDTH)))
            self.offers.append(await self.peer.offer())

    async def plan(self, *held: int, draws: bool = False, run_id: str = "") -> PlanModelResponse:
        """For the newest version, holding those of these numbers."""
        request = PlanModelRequest(
            run_id=run_id or self.offers[-1].run_id,
            digest=self.digests[-1],
            held_digests=[self.digests[number] for number in held],
            credentials=self.peer.credentials,
            draws_initial=draws,
        )
        answer: PlanModelResponse = await self.peer.channel.unary(PLAN_MODEL, request, timeout_seconds=10)
        return answer


@pytest.fixture
async def asking(stage: Any) -> Asking:
    (stage.folder / "wide_task.py").write_text(TASK)
    peer = await stage.peer("peer")
    await stage.submit(
        task="wide_task:Wide",
        rounds=20,
        compression={"down": "topk:0.01+int8"},
        round={"peers_min": 1, "quorum": 1.0},
    )
    return Asking(stage, peer, await peer.offer())


async def test_who_draws_the_first_version_follows_it_as_long_as_its_deltas_are_kept(asking: Asking) -> None:
    assert not (await asking.plan(draws=True)).deltas  # it is the first that is wanted
    for number in range(1, DELTAS_KEEP + 1):
        await asking.follow(1)
        plan = await asking.plan(draws=True)
        assert (plan.base_digest, len(plan.deltas)) == (asking.digests[0], number)
    await asking.follow(1)
    async with asyncio.timeout(20):
        while (await asking.plan(draws=True)).deltas:  # noqa: ASYNC110  # removal tells nobody
            await asyncio.sleep(0.05)


async def test_the_newest_version_that_is_held_comes_before_the_first(asking: Asking) -> None:
    await asking.follow(3)
    plan = await asking.plan(1, 2, draws=True)
    assert (plan.base_digest, len(plan.deltas)) == (asking.digests[2], 1)
    assert not (await asking.plan()).deltas  # who neither holds nor draws one fetches the version


async def test_a_delta_that_is_gone_makes_it_one_to_fetch_whole(asking: Asking) -> None:
    await asking.follow(3)
    plan = await asking.plan(draws=True)
    asking.stage.running.coordinator.blobs.remove(plan.deltas[1].digest)
    assert not (await asking.plan(draws=True)).deltas
    assert len((await asking.plan(2)).deltas) == 1


async def test_a_version_of_another_run_is_not_told_of(asking: Asking) -> None:
    with pytest.raises(NotFoundError):
        await asking.plan(draws=True, run_id="another")
