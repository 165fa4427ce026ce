"""A run that is followed without a terminal, and how that is ended."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cli import lines
from muster.errors import UnreachableError
from protos.v1 import admin_pb2 as pb

RUN = pb.Run(run_id="digits-1", rounds_total=3)


def event(kind: str, round: int = 0, reason: str = "", **data: Any) -> pb.Event:
    return pb.Event(at=1.0, kind=kind, round=round, reason=reason, data_json=json.dumps(data))


class Scripted:
    """A client whose stream gives these batches; at a number it is silent until so many sentences were asked for."""

    def __init__(self, script: Sequence[list[pb.Event] | int], sentences: Sequence[str | None] = ()) -> None:
        self.script, self.sentences, self.asked = script, list(sentences), 0
        self.more = asyncio.Event()

    async def events(self, **_: Any) -> AsyncIterator[list[pb.Event]]:
        for step in self.script:
            if isinstance(step, list):
                yield step
                continue
            while self.asked < step:
                self.more.clear()
                await self.more.wait()

    async def call(self, *_: Any) -> pb.ExplainRunResponse:
        sentence = self.sentences[self.asked]
        self.asked += 1
        self.more.set()
        if sentence is None:
            raise UnreachableError("transport.unreachable", "127.0.0.1:1 does not answer")
        return pb.ExplainRunResponse(sentence=sentence)


async def told(client: Any) -> list[str]:
    shown: list[str] = []
    await lines.Lines(client, RUN, shown.append).follow(lambda event: event.kind == "run.warned")
    return [line.partition("  ")[2] for line in shown]


async def test_a_round_is_one_line_with_its_metrics() -> None:
    work = [event("assignment.accepted", 1), event("assignment.delivered", 1), event("round.aggregating", 1)]
    script = [
        [event("run.submitted"), event("run.started", reason="it starts"), event("round.opened", 1), *work],
        [event("round.committed", 1, "round 1 made version 1"), event("evaluation.started", 1)],
        [event("round.skipped", 2, "round 2 had 1 of 2 updates"), event("run.warned", reason="it is odd")],
        [event("evaluation.finished", 1, metrics={"accuracy": 0.5, "examples": 9.0})],
        [event("round.committed", 3, "round 3 made version 2")],
        [event("run.finished", reason="all is done")],
    ]
    assert await told(Scripted(script)) == [
        "it starts",
        "round 2/3  SKIPPED  had 1 of 2 updates",
        "round 1/3  accuracy 0.5; made version 1",
        "round 3/3  made version 2",
        "all is done",
    ]


async def test_metrics_that_never_come_hold_no_line_back_for_ever() -> None:
    script = [[event("round.committed", 1, "round 1 made it"), event("evaluation.started", 1)]]
    assert await told(Scripted([*script, [event("run.failed", reason="it broke")]])) == [
        "round 1/3  made it",
        "it broke",
    ]
    assert await told(Scripted(script)) == ["round 1/3  made it"]
    assert await told(Scripted([[event("round.committed", 1, "round 1 made it")]])) == ["round 1/3  made it"]


async def test_while_nothing_happens_the_reason_is_told_when_it_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "QUIET_SECONDS", 0.01)
    sentences = [
        "waiting for 1 peer; deadline in 9 s",
        "waiting for 1 peer; deadline in 8 s",
        "waiting for 2 peers; deadline in 7 s",
        None,
        None,
        "waiting for 2 peers; deadline in 7 s",
        "waiting for 2 peers; deadline in 7 s",
    ]
    script = [[], 6, [event("round.committed", 1, "round 1 made it"), event("round.opened", 2)], 7]
    assert (await told(Scripted(script, [*sentences, *sentences])))[:6] == [
        "waiting for 1 peer; deadline in 9 s",
        "waiting for 2 peers; deadline in 7 s",
        "127.0.0.1:1 does not answer; trying again",
        "waiting for 2 peers; deadline in 7 s",
        "round 1/3  made it",
        "waiting for 2 peers; deadline in 7 s",
    ]


def test_what_a_run_waits_for_is_told_without_a_terminal(federation: Any, at_home: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "run", "watch", "text", "--address", federation.address],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    assert "  the run is RUNNING: " in process.stdout.readline()
    process.kill()
    process.communicate()
