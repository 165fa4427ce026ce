"""The line to a coordinator that is not there, or not yet."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import structlog

from muster.errors import InternalError, MusterError, UnreachableError
from peer.connection.connection import CoordinatorConnection
from protos.v1 import membership_pb2 as pb
from simulator.virtual_loop import run

AWAY = UnreachableError("transport.unreachable", "127.0.0.1:7070 does not answer", cause="connection refused")


class Refusing:
    """A channel on which each enrolment ends as the script says; then it asks to be left."""

    def __init__(self, script: list[MusterError]) -> None:
        self.script = script
        self.line: CoordinatorConnection | None = None

    async def unary(self, *_: Any, **__: Any) -> None:
        if len(self.script) == 1 and self.line is not None:
            self.line.leave("the test is over")
        raise self.script.pop(0)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ([AWAY] * 20, ["session.awaited"]),
        ([AWAY, InternalError("internal.error", "full"), AWAY], ["session.awaited", "session.broken"] * 2),
    ],
)
def test_a_coordinator_that_is_not_there_is_told_once(script: list[MusterError], told: list[str]) -> None:
    channel: Any = Refusing([*script])
    caller: Any = None

    async def hold() -> None:
        channel.line = CoordinatorConnection(
            channel, pb.Credentials(peer_id="ward"), device="cpu", random=Random(1)
        )
        await channel.line.hold(caller)

    with structlog.testing.capture_logs() as logs:
        run(hold())
    loud = [entry for entry in logs if entry["log_level"] == "warning"]
    assert [entry["event"] for entry in loud] == told[: len(loud)]
    assert len(loud) == (1 if len(told) == 1 else 3)
    assert loud[0]["reason"] == (
        "127.0.0.1:7070 does not answer; waiting for a coordinator there, and going on by itself when it comes"
    )
    assert len(logs) == len(script)
