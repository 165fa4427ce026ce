"""Failpoints, in this process and, where they kill, in another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from muster.errors import ConfigError, InternalError
from muster.runtime import failpoints
from muster.runtime.failpoints import VARIABLE, arm, failpoint


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm({})


def test_unset_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    arm(os.environ)
    failpoint("anything")


def test_an_error_is_raised_at_its_place_only_and_every_time() -> None:
    arm({VARIABLE: "round.committed:error"})
    failpoint("round.opened")
    for _ in range(2):
        with pytest.raises(InternalError) as caught:
            failpoint("round.committed")
        assert caught.value.id == "failpoint.error" and "round.committed" in caught.value.message


def test_only_the_nth_time() -> None:
    arm({VARIABLE: " a.b-c:error@3 , other:sleep:0 "})
    failpoint("a.b-c")
    failpoint("a.b-c")
    with pytest.raises(InternalError):
        failpoint("a.b-c")
    failpoint("a.b-c")
    failpoint("other")


def test_sleep_blocks_for_as_long_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    arm({VARIABLE: "a:sleep,b:sleep:2.5@1"})
    for name in ("a", "b", "b", "a"):
        failpoint(name)
    assert slept == [1.0, 2.5, 1.0]


@pytest.mark.parametrize(
    "text", ["a", "a:", ":kill", "a:stop", "a:kill@0", "a:error:3", "a:sleep:x", "a b:kill"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        arm({VARIABLE: text})
    assert caught.value.id == "failpoint.malformed"


def test_kill_ends_the_process_there_on_the_nth_time() -> None:
    code = (
        "from muster.runtime.failpoints import failpoint\n"
        "for n in range(5):\n  print(n, flush=True)\n  failpoint('x')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env={**os.environ, VARIABLE: "x:kill@3"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout.split() == ["0", "1", "2"]


def test_the_environment_is_read_when_the_first_place_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_armed", None)
    monkeypatch.setenv(VARIABLE, "late:error")
    with pytest.raises(InternalError):
        failpoint("late")
