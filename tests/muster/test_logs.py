"""Logs as machines and people read them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from muster.errors import ConfigError, StorageError
from muster.runtime.logs import configure_logging


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_each_event_is_one_json_object_with_what_is_bound() -> None:
    stream = io.StringIO()
    configure_logging("info", stream=stream)
    log = structlog.get_logger()
    with structlog.contextvars.bound_contextvars(run_id="r1", round=3):
        log.info("round.committed", digest="abc", note="two\nlines")
    log.debug("not.this")
    (event,) = lines(stream)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "round.committed",
        "level": "info",
        "run_id": "r1",
        "round": 3,
        "digest": "abc",
        "note": "two\nlines",
    }


def test_other_libraries_come_out_in_the_same_form_and_say_less() -> None:
    stream = io.StringIO()
    configure_logging("info", stream=stream)
    logging.getLogger("sqlalchemy.engine").info("SELECT 1")
    logging.getLogger("sqlalchemy").info("pool")
    logging.getLogger("some.library").warning("disk at %d %%", 93)
    found = lines(stream)
    assert [(event["event"], event["level"]) for event in found] == [("disk at 93 %", "warning")]


def test_errors_are_told_whole() -> None:
    stream = io.StringIO()
    configure_logging("info", stream=stream)
    log = structlog.get_logger()
    error = StorageError("storage.full", "no room", fix="make room")
    log.warning("upload.refused", error=error)
    try:
        raise error
    except StorageError:
        log.exception("upload.failed")
    told, raised = lines(stream)
    assert told["error"] == {"id": "storage.full", "message": "no room", "fix": "make room"}
    assert "StorageError: [storage.full] no room" in raised["exception"]


def test_a_terminal_gets_colour_unless_it_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for value, coloured in [(None, True), ("1", False), ("", True)]:
        if value is not None:
            monkeypatch.setenv("NO_COLOR", value)
        stream = Terminal()
        configure_logging("info", stream=stream)
        structlog.get_logger().info("round.opened", round=1)
        assert "round.opened" in stream.getvalue()
        assert ("\x1b[" in stream.getvalue()) == coloured


def test_logs_go_to_standard_error_and_never_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug")
    structlog.get_logger().debug("small.thing")
    captured = capsys.readouterr()
    assert captured.out == "" and json.loads(captured.err)["event"] == "small.thing"


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="loud"):
        configure_logging("loud")
