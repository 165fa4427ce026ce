"""A text of a task, a peer or an admin costs nobody anything, whatever stands in it."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from cli import output, render, render_rounds
from cli.settings import Settings
from muster.errors import ConfigError, TaskError, UsageError
from muster.runtime.logs import configure_logging
from muster.transport.errors import pack_status, unpack_status
from muster.wire import ENROL
from peer.connection import reports
from protos.v1 import admin_pb2 as pb
from protos.v1 import membership_pb2
from tests.coordinator.conftest import Stage

LATIN = os.fsdecode(b"donn\xe9es.csv")  # as any undecodable file name gives: with a lone surrogate
HOSTILE = f"bad row in {LATIN}\0 \x1b[2J\x1b]0;title\x07\u202eevil\u2028end"
SPOOF = "cpu\x1b[2J\x1b[1;31m\nadmin  ACTIVE  cpu  0.1 s ago [bold]"
DANGEROUS = ("\x1b", "\x07", "\0", "\u202e", "\u2028", "\x9b", "\udce9")

COLOURS = re.compile(r"\x1b\[\d*(;\d+)*m")  # rich's own

TASK = f"""
import os
import torch
from torch import nn
from muster import Task

class Latin(Task):
    def model(self):
        raise ValueError({HOSTILE!r})

    def train_data(self, site):
        raise NotImplementedError

class Whole(Latin):
    def model(self):
        return nn.Linear(4, 1)
"""


def is_harmless(*texts: str) -> bool:
    return not any(mark in text for text in texts for mark in DANGEROUS)


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str) -> AsyncIterator[Stage]:
    made = Stage(tmp_path, monkeypatch)
    (tmp_path / "words.py").write_text(TASK)
    await made.start(database_url=database_url)
    yield made
    await made.stop()


async def test_a_tasks_words_end_its_run_and_neither_the_coordinator_nor_its_next_start(
    stage: Stage, database_url: str
) -> None:
    run_id = await stage.submit(task="words:Latin")
    run = await stage.ended(run_id)
    assert run.state == "FAILED"
    assert "donn\\xe9es.csv" in run.reason
    assert is_harmless(run.reason)
    assert stage.running is not None and not stage.running.coordinator.failed.done()
    await stage.stop()
    await stage.start(database_url=database_url)
    again = await stage.ended(await stage.submit(task="words:Latin"))
    assert again.state == "FAILED"


async def test_what_a_peer_tells_is_cleaned_where_it_enters(stage: Stage) -> None:
    sent = HOSTILE.replace(LATIN, "data")  # what protobuf lets through
    peer = await stage.peer("ward")
    enrolling = membership_pb2.EnrolRequest(
        name="ward", secret=peer.credentials.secret, device=SPOOF, muster_version=SPOOF
    )
    await peer.channel.unary(ENROL, enrolling, timeout_seconds=10)
    run_id = await stage.submit(task="words:Whole", round={"peers_min": 1})
    failure = membership_pb2.Failure(
        error_id=sent, message=sent, traceback=f"first\n{sent}\nlast", retry=False
    )
    peer.report(await peer.offer(), membership_pb2.ASSIGNMENT_PHASE_FAILED, failure=failure)
    event = await stage.until(run_id, "assignment.lost")
    assert is_harmless(event.reason, json.loads(event.data_json)["error_id"])
    (told,) = (await stage.call("ListPeers", pb.ListPeersRequest())).peers
    assert told.device == "cpu admin  ACTIVE  cpu  0.1 s ago [bold]"
    round_ = (await stage.call("GetRound", pb.GetRoundRequest(run_id=run_id, number=1))).round
    (work,) = round_.assignments
    assert is_harmless(work.reason, work.traceback)
    assert work.traceback.splitlines()[0] == "first" and work.traceback.splitlines()[-1] == "last"


async def test_an_admins_words_are_cleaned_and_a_name_that_cannot_be_shown_is_refused(stage: Stage) -> None:
    with pytest.raises(ConfigError, match="name"):
        await stage.submit(task="words:Whole", name="a\x1b[31m")
    spec = json.dumps({"task": "words:Whole", "rounds": 1})
    with pytest.raises(UsageError, match="request id"):
        await stage.call("SubmitRun", pb.SubmitRunRequest(spec_json=spec, request_id="x\n" * 300))
    with pytest.raises(ConfigError) as caught:
        await stage.call("SubmitRun", pb.SubmitRunRequest(spec_json=spec, spec_toml="#" * (600 << 10)))
    assert caught.value.id == "spec.too_long"
    run_id = await stage.submit(task="words:Whole")
    stopped = (await stage.call("StopRun", pb.StopRunRequest(run_id=run_id, reason=SPOOF))).run
    assert stopped.reason.startswith("cancelled: cpu admin")


# -- between processes -------------------------------------------------------------------------------------------------


def test_a_peer_can_report_whatever_its_task_raised() -> None:
    error = TaskError(f"worker.failed {LATIN}", HOSTILE, cause=HOSTILE, traceback=f"{HOSTILE}\nlast")
    failure = reports.failed("a", error, retry=False).failure
    assert is_harmless(failure.error_id, failure.message, failure.traceback)
    assert failure.traceback.endswith("last")
    assert is_harmless(reports.failed("a", reports.defect(ValueError(HOSTILE)), retry=False).failure.message)


def test_an_error_crosses_the_wire_whatever_its_text() -> None:
    error = unpack_status(
        pack_status(TaskError("x", HOSTILE, cause=LATIN, fix=LATIN, name=LATIN)).SerializeToString()
    )
    assert isinstance(error, TaskError)
    assert error.cause == "donn\\xe9es.csv"


# -- where it is shown -------------------------------------------------------------------------------------------------


PEER = pb.Peer(peer_id="evil\x1b[2J", state=SPOOF, device=SPOOF, muster_version=SPOOF, reason=SPOOF)
RUN = pb.Run(
    run_id="r\x1b", name=SPOOF, task=SPOOF, state=SPOOF, reason=SPOOF, metrics={SPOOF: 1.0}, spec_json="{}"
)
EVENT = pb.Event(sequence=1, at=1.0, kind=SPOOF, peer_id=SPOOF, reason=SPOOF)
ROUND = pb.Round(
    number=1, state=SPOOF, reason=SPOOF, rule=SPOOF, codec=SPOOF, score_meaning=SPOOF, metrics={SPOOF: 1.0},
    assignments=[pb.RoundAssignment(peer_id=SPOOF, state=SPOOF, reason=SPOOF, treatment=SPOOF, traceback=SPOOF)],
)  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_no_table_or_view_lets_it_through(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of a coordinator of an earlier version, or one that lies."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    settings = Settings(no_color=True)
    views = (
        render.runs_table([RUN], {RUN.run_id: SPOOF}),
        render.run_view(RUN),
        render.peers_table([PEER]),
        render.peer_view(PEER, [EVENT]),
        render.explanation_view(pb.ExplainRunResponse(sentence=SPOOF, details=[SPOOF], recent=[EVENT])),
        render_rounds.rounds_table([ROUND]),
        render_rounds.round_view(ROUND),
        render_rounds.round_explained(ROUND),
        SPOOF,
    )
    for view in views:
        output.print_human(settings, view)
        shown = capsys.readouterr().out
        assert is_harmless(COLOURS.sub("", shown))
        assert terminal or "[bold]" in shown  # markup is text; a terminal is narrow


def test_json_spells_it_out(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (False, True):
        output.emit_json({"device": HOSTILE}, line=line)
        shown = capsys.readouterr().out
        assert is_harmless(shown)
        assert json.loads(shown) == {"device": HOSTILE}


def test_messages_and_errors_are_cleaned_too(capsys: pytest.CaptureFixture[str]) -> None:
    output.note(Settings(), HOSTILE)
    output.warn(Settings(), [HOSTILE])
    error = TaskError("worker.failed", HOSTILE, cause=HOSTILE, fix=HOSTILE, traceback=HOSTILE)
    output.print_error(error, as_json=False, no_color=True)
    shown = capsys.readouterr().err
    assert shown.count("donn\\xe9es.csv") >= 5
    assert is_harmless(shown)


@pytest.fixture
def logs_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("logs_restored")
@pytest.mark.parametrize("as_json", [True, False])
def test_a_log_line_shows_it_and_nothing_obeys(as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    configure_logging("info", stream=stream, json=as_json)
    log = structlog.get_logger()
    log.warning(HOSTILE, reason=HOSTILE, data={"device": HOSTILE})
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("task.failed", error=TaskError("x", HOSTILE))
    stream.flush()
    shown = stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert shown.count("es.csv") >= 4
    assert is_harmless(shown)
