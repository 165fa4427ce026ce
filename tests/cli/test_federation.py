"""Commands that ask the coordinator: what people read, what scripts read, what goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.main import execute
from cli.render import runs_table
from cli.render_rounds import _sources, round_view
from protos.v1 import admin_pb2 as pb

SPEC = 'task = "examples.digits:Digits"\nrounds = 3\nname = "{}"\n'


def test_status(ask: Callable[..., Any], ask_json: Callable[..., Any]) -> None:
    said = ask("status")
    assert said.code == 0
    assert "2 active, 1 suspect" in said.out
    assert "text-99" in said.out
    assert "digits-1a2b" not in said.out  # it has ended
    data = ask_json("status")
    assert data["peers"] == {"ACTIVE": 2, "SUSPECT": 1}
    assert data["disk_free_bytes"] == 5 << 30
    assert "text-99" in [run["run_id"] for run in data["live_runs"]]


def test_run_list_and_show(ask: Callable[..., Any], ask_json: Callable[..., Any]) -> None:
    listed = ask("run", "list").out
    assert "digits-1a2b" in listed
    assert "3/3" in listed
    assert "accuracy 0.9625" in listed
    shown = ask("run", "show", "digits").out
    assert "3 of 3 committed" in shown
    assert "4.0 times less than dense" in shown
    data = ask_json("run", "show", "digits")
    assert data["spec"] == {"task": "examples.digits:Digits", "rounds": 3}
    assert (data["bytes_up"], data["metrics"]) == (1000, {"accuracy": 0.9625})
    assert ask_json("run", "list")[0] == data
    assert ask_json("run", "show", "text-9")["ended_at"] is None


@pytest.mark.parametrize("which", ["digits-1a2b", "digits", "digits-1"])
def test_a_run_is_known_by_id_name_or_beginning(ask_json: Callable[..., Any], which: str) -> None:
    assert ask_json("run", "show", which)["run_id"] == "digits-1a2b"


def test_pause_and_resume(ask_json: Callable[..., Any]) -> None:
    assert ask_json("run", "pause", "text")["state"] == "PAUSED"
    assert ask_json("run", "resume", "text")["state"] == "RUNNING"


def test_what_the_coordinator_refuses_is_told_with_its_own_id(ask: Callable[..., Any]) -> None:
    said = ask("run", "pause", "digits")
    assert said.code == 1
    assert said.err.startswith("error[run.ended]: run 'digits-1a2b' has ended")
    assert said.out == ""


def test_stop_asks_first(ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    said = ask("run", "stop", "text")
    assert said.code == 2
    assert "error[cli.confirmation_needed]: Stop text-99 for good?" in said.err
    assert "--yes" in said.err
    stopped = ask("run", "stop", "text", "--yes", "--reason", "enough", "--json")
    assert (stopped.data["state"], stopped.data["reason"]) == ("CANCELLED", "enough")


@pytest.mark.parametrize(("answer", "code", "state"), [("n\n", 1, None), ("y\n", 0, "CANCELLED")])
def test_stop_takes_an_answer(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, answer: str, code: int, state: str | None
) -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    said = ask("run", "stop", "text", "--json")
    assert said.code == code
    assert "Stop text-99 for good?" in said.err
    assert (said.data["state"] if said.out else None) == state


def test_remove_asks_first_and_spares_a_live_run(ask: Callable[..., Any]) -> None:
    said = ask("run", "remove", "digits")
    assert said.code == 2
    assert "with all its models for good?" in said.err
    assert "error[run.live]" in ask("run", "remove", "text", "--yes").err
    removed = ask("run", "remove", "digits", "--yes", "--json")
    assert (removed.code, removed.data["state"]) == (0, "FINISHED")


def test_round_list_and_show(ask: Callable[..., Any], ask_json: Callable[..., Any]) -> None:
    listed = ask("round", "list", "digits").out.splitlines()
    assert [line.split()[:2] for line in listed[1:]] == [
        ["1", "COMMITTED"],
        ["2", "COMMITTED"],
        ["3", "COMMITTED"],
    ]
    assert "1/2" in listed[2]
    shown = ask("round", "show", "digits", "2").out
    assert "arc+nnm+trimmed-mean" in shown
    assert "taken whole" in shown
    assert "the task failed" in shown
    data = ask_json("round", "show", "digits", "2")
    assert [each["weight"] for each in data["assignments"]] == [1.0, 0.0]
    assert ask_json("round", "show", "digits")["number"] == 3
    assert [each["number"] for each in ask_json("round", "list", "digits")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("down", "ended_at", "told"),
    [
        (0, 9.0, "0 B down (8.0 KiB saved)"),  # every peer drew the first version
        (2048, 9.0, "2.0 KiB down (6.0 KiB saved, 4.0 times fewer)"),
        (8192, 9.0, "8.0 KiB down"),
    ],
)
def test_a_round_tells_what_it_saved(down: int, ended_at: float, told: str) -> None:
    round_ = pb.Round(
        number=1, bytes_up=500, bytes_up_dense=500, bytes_down=down, bytes_down_dense=8192, ended_at=ended_at
    )
    console = Console(width=200)
    with console.capture() as shown:
        console.print(round_view(round_))
    (line,) = [line for line in shown.get().splitlines() if line.startswith("bytes")]
    assert line.removeprefix("bytes").strip() == f"500 B up, {told}"


def test_a_round_is_explained_update_by_update(ask: Callable[..., Any], ask_json: Callable[..., Any]) -> None:
    lines = ask("round", "show", "digits", "2", "--explain").out.splitlines()
    assert lines[0] == ask_json("round", "show", "digits", "2")["reason"]
    assert any("taken whole" in line and "weight 1" in line for line in lines)


def test_a_replay_sends_what_is_changed_and_compares(
    ask: Callable[..., Any], ask_json: Callable[..., Any]
) -> None:
    shown = ask(
        "round",
        "replay",
        "digits",
        "2",
        "--rule",
        "krum",
        "--pre",
        "arc,nnm",
        "--faults",
        "1",
        "--option",
        "m=2",
    ).out
    changes = '{"faults": 1.0, "options": {"m": 2}, "pre": ["arc", "nnm"], "rule": "krum"}'
    assert f"round 2 with {changes}" in shown
    assert "another model than the committed one" in shown
    assert "ward-0" in shown
    data = ask_json("round", "replay", "digits", "3", "--rule", "krum")
    assert data["reason"] == 'round 3 with {"rule": "krum"}'
    assert (data["reproduced"], data["cosine"], data["updates"][0]["weight_committed"]) == (False, 0.5, 0.25)
    assert ask_json("round", "replay", "digits", "3")["reason"] == "round 3 with {}"
    assert ask("round", "replay", "digits", "3", "--option", "m").code == 2


def test_an_empty_list_is_an_empty_list(ask: Callable[..., Any], ask_json: Callable[..., Any]) -> None:
    assert ask_json("round", "list", "text") == []
    assert ask_json("model", "list", "text") == []
    assert ask_json("run", "logs", "text") == []
    assert ask("round", "list", "text").out == "No rounds yet.\n"
    assert ask("round", "show", "text").code == 1


def test_peers(ask: Callable[..., Any], ask_json: Callable[..., Any]) -> None:
    assert [line.split()[0] for line in ask("peer", "list").out.splitlines()] == [
        "PEER",
        "ward-0",
        "ward-1",
        "lab",
    ]
    assert ask_json("peer", "list")[2]["state"] == "SUSPECT"
    shown = ask("peer", "show", "ward-1").out
    assert "assignment.rejected" in shown
    assert ask_json("peer", "show", "lab")["peer"]["peer_id"] == "lab"


def test_peer_steering(ask: Callable[..., Any], ask_json: Callable[..., Any]) -> None:
    assert ask_json("peer", "drain", "ward-0", "--reason", "new disk")["state"] == "DRAINING"
    assert ask_json("peer", "release", "ward-0")["state"] == "ACTIVE"
    assert ask("peer", "quarantine", "ward-0").code == 2
    assert ask_json("peer", "quarantine", "ward-0", "--yes")["state"] == "QUARANTINED"
    assert ask_json("peer", "release", "ward-0")["state"] == "ACTIVE"
    assert ask("peer", "remove", "lab").code == 2
    assert ask_json("peer", "remove", "lab", "-y", "--reason", "gone")["reason"] == "gone"
    ask_json("peer", "release", "lab")


def test_a_name_that_may_mean_two_things_is_refused(ask: Callable[..., Any]) -> None:
    said = ask("peer", "show", "ward")
    assert said.code == 2
    assert "error[cli.ambiguous]: 'ward' may mean any of 2 peers: ward-0, ward-1" in said.err


def test_what_is_not_there_is_not_found(ask: Callable[..., Any]) -> None:
    said = ask("run", "show", "dgits")
    assert said.code == 1
    assert "error[run.not_found]: no run is called 'dgits'; did you mean 'digits'?" in said.err
    assert "muster run list" in said.err
    assert ask("round", "show", "digits", "9").code == 1
    assert ask("peer", "show", "nobody", "--json").data["error"]["id"] == "peer.not_found"


def test_why(ask: Callable[..., Any], ask_json: Callable[..., Any]) -> None:
    lines = ask("why", "text").out.splitlines()
    assert lines[0].startswith("the run is ")
    assert lines[1] == "  ward-0 is training since 4 s"
    data = ask_json("why", "digits")
    assert data["sentence"] == "the run is FINISHED: all 3 rounds are committed"
    assert data["recent"][-1]["kind"] == "run.finished"


def test_submit_sends_the_spec_and_shows_the_run(
    ask: Callable[..., Any], ask_json: Callable[..., Any], at_home: Path
) -> None:
    (at_home / "run.toml").write_text(SPEC.format("first"))
    said = ask("run", "submit", "run.toml")
    assert said.code == 0
    assert "FINISHED" in said.out
    assert "muster run watch first-" in said.err
    data = ask_json("run", "submit", "run.toml", "--wait", "--request-id", "twice")
    assert data["spec"]["aggregation"]["rule"] == "caf"  # defaults are filled in before anything is sent
    assert ask_json("run", "submit", "run.toml", "--request-id", "twice")["run_id"] == data["run_id"]


def test_a_warning_stops_nothing_and_is_told_once(
    ask: Callable[..., Any], ask_json: Callable[..., Any], at_home: Path
) -> None:
    (at_home / "run.toml").write_text(SPEC.format("risky"))
    said = ask("run", "submit", "run.toml", "--quiet")
    assert (said.code, said.err) == (0, "warning: it is risky\n")
    assert ask_json("run", "submit", "run.toml")["warnings"] == ["it is risky"]
    assert ask("run", "submit", "run.toml", "--json", "--quiet").err == ""
    (at_home / "run.toml").write_text(SPEC.format("plain"))
    assert ask_json("run", "submit", "run.toml")["warnings"] == []
    assert "warning" not in ask("run", "submit", "run.toml").err


def test_a_run_that_is_waited_for_and_pauses_itself_says_how_to_go_on(
    ask: Callable[..., Any], at_home: Path
) -> None:
    (at_home / "run.toml").write_text(SPEC.format("stuck"))
    said = ask("run", "submit", "run.toml", "--wait")
    assert said.code == 3
    assert "error[run.paused]: run stuck-" in said.err
    assert "is paused: ward-1: no such file" in said.err
    assert "muster run resume stuck-" in said.err
    assert ask("run", "watch", "stuck").code == 3
    shown = ask("run", "show", "stuck").out
    assert "ward-1 since round 4: no such file" in shown


def test_a_run_that_is_waited_for_and_fails_is_exit_3(ask: Callable[..., Any], at_home: Path) -> None:
    (at_home / "run.toml").write_text(SPEC.format("doomed"))
    said = ask("run", "submit", "run.toml", "--wait")
    assert said.code == 3
    assert "\nerror[run.failed]: run doomed-" in said.err
    assert "5 rounds in a row were skipped" in said.err
    assert "muster run logs doomed-" in said.err
    error = ask("run", "submit", "run.toml", "--wait", "--json").data["error"]
    assert (error["id"], error["exit_code"], error["fields"]["state"]) == ("run.failed", 3, "FAILED")


def test_a_spec_with_three_mistakes_tells_all_three(ask: Callable[..., Any], at_home: Path) -> None:
    (at_home / "bad.toml").write_text(
        'task = "examples.digits:Digits"\nround = 3\nrounds = 0\n[train]\nlr = -1\n'
    )
    said = ask("run", "submit", "bad.toml")
    assert said.code == 6
    assert said.err.startswith("error[spec.invalid]")
    assert all(f"bad.toml:{line}" in said.err for line in (2, 3, 5))
    assert ask("run", "submit", "none.toml", "--json").data["error"]["exit_code"] == 6


def test_watch_shows_every_event_once_though_the_stream_breaks(
    ask: Callable[..., Any], federation: Any
) -> None:
    said = ask("run", "watch", "digits", "--json")
    assert said.code == 0
    kinds = [event["kind"] for event in said.lines]
    assert kinds[0] == "run.submitted"
    assert kinds[-1] == "run.finished"
    assert len(kinds) == 9
    plain = ask("run", "watch", "digits").out
    assert [line.split()[1:3] for line in plain.splitlines() if "/3  quorum" in line] == [
        ["round", f"{number}/3"] for number in (1, 2, 3)
    ]
    assert "all 3 rounds are committed" in plain


def test_logs_show_failures_with_their_tracebacks(
    ask: Callable[..., Any], ask_json: Callable[..., Any]
) -> None:
    said = ask("run", "logs", "digits").out
    assert "ward-1, round 2: the task failed [worker.failed]" in said
    assert "ZeroDivisionError" not in said
    said = ask("run", "logs", "digits", "--full").out
    assert "round 2, ward-1: the task failed [worker.failed]" in said
    assert "    ZeroDivisionError: division by zero" in said
    (entry,) = ask_json("run", "logs", "digits")
    assert entry["actor"] == "engine"
    assert entry["error_id"] == "worker.failed"
    assert "line 7, in loss" in entry["traceback"]
    assert len(ask("run", "logs", "digits", "--follow", "--json").lines) == 1


def test_export_writes_everything(ask: Callable[..., Any], at_home: Path) -> None:
    import json

    assert ask("run", "export", "digits").code == 0
    document = json.loads((at_home / "digits-1a2b.json").read_text())
    assert document["format"] == "muster.run/1"
    assert document["spec"]["rounds"] == 3
    assert [len(each["assignments"]) for each in document["rounds"]] == [1, 2, 1]
    assert document["metrics"][-1] == {"round": 3, "accuracy": 0.93}
    assert len(document["events"]) == 9
    assert [path.name for path in at_home.iterdir()] == ["digits-1a2b.json"]
    said = ask("run", "export", "digits", "-o", "nowhere/x.json")
    assert said.code == 1
    assert "error[cli.not_written]" in said.err


def test_nobody_answers(muster: Callable[..., Any]) -> None:
    said = muster("run", "list", "--address", "127.0.0.1:1")
    assert said.code == 5
    assert said.err.startswith("error[transport.unreachable]")
    assert "muster serve" in said.err
    assert muster("run", "list", "--address", "127.0.0.1:1", "--json").data["error"]["exit_code"] == 5


def test_another_machine_is_refused_with_the_reason(muster: Callable[..., Any]) -> None:
    said = muster("status", "--address", "10.0.0.1:7070")
    assert said.code == 6
    assert "error[transport.address_not_loopback]" in said.err


@pytest.mark.parametrize(
    ("configured", "given"),
    [
        ("[coordinator]\naddress = '{}'\n", []),
        ("[peer]\ncoordinator = '{}'\n", []),
        (
            "[coordinator]\naddress = '127.0.0.1:1'\n[peer]\ncoordinator = '127.0.0.1:2'\n",
            ["--address", "{}"],
        ),
    ],
)
def test_the_address_comes_from_the_config_unless_given(
    muster: Callable[..., Any], federation: Any, at_home: Path, configured: str, given: list[str]
) -> None:
    (at_home / "muster.toml").write_text(configured.format(federation.address))
    assert muster("status", *(each.format(federation.address) for each in given)).code == 0


def test_a_coordinator_on_any_free_port_has_left_word_of_it(
    muster: Callable[..., Any], federation: Any, at_home: Path
) -> None:
    (at_home / "state").mkdir()
    (at_home / "state" / "coordinator.address").write_text(federation.address)
    (at_home / "muster.toml").write_text("[coordinator]\naddress = '127.0.0.1:0'\ndata_dir = 'state'\n")
    assert muster("status").code == 0


def test_options_may_stand_before_the_command(
    federation: Any, capsys: pytest.CaptureFixture[str], at_home: Path
) -> None:
    assert execute(["--json", "--address", federation.address, "run", "list"]) == 0
    assert capsys.readouterr().out.startswith("[")


def test_a_name_submitted_again_means_the_newest_and_says_so(
    ask: Callable[..., Any], ask_json: Callable[..., Any], tmp_path: Path
) -> None:
    spec = tmp_path / "again.toml"
    spec.write_text(SPEC.format("again"))
    first, second = (ask_json("run", "submit", str(spec))["run_id"] for _ in range(2))
    said = ask("run", "show", "again", "--json")
    assert said.data["run_id"] == second
    assert f"2 runs are called 'again'; this is the newest, {second}. The other is again@1" in said.err
    assert ask("run", "show", "again", "--quiet").err == ""
    assert [ask_json("run", "show", f"again@{n}")["run_id"] for n in (1, 2)] == [first, second]
    listed = ask("run", "list").out
    for name in ("again@1", "again@2", "digits "):
        assert any(line.startswith(name) for line in listed.splitlines()), name
    beyond = ask("run", "show", "again@3")
    assert beyond.code == 1
    assert "there is no again@3: 2 runs are called 'again'" in beyond.err


def test_a_round_left_out_is_the_newest_committed(
    ask_json: Callable[..., Any], ask: Callable[..., Any]
) -> None:
    assert (
        ask_json("round", "replay", "digits", "--rule", "krum")["reason"] == 'round 3 with {"rule": "krum"}'
    )
    assert "has no round yet" in ask("round", "replay", "text").err


@pytest.mark.parametrize("noun", ["", "run", "round", "peer", "model", "config", "aggregator", "compressor"])
def test_a_noun_alone_tells_what_it_can_do(muster: Callable[..., Any], noun: str) -> None:
    said = muster(*noun.split())
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"Usage: muster {noun}".rstrip())
    assert "Commands:" in said.out


def test_the_version_is_an_option_too(muster: Callable[..., Any]) -> None:
    assert muster("--version").out == muster("version").out
    assert muster("--version", "--json").data == muster("version", "--json").data


def test_a_warning_is_told_once_as_it_comes_and_is_kept(
    ask: Callable[..., Any], ask_json: Callable[..., Any], at_home: Path
) -> None:
    (at_home / "run.toml").write_text(SPEC.format("risky"))
    for options in (["--wait"], ["--wait", "--quiet"]):
        said = ask("run", "submit", "run.toml", *options, "--request-id", "kept")
        assert (said.code, said.err.count("it is risky"), said.out.count("it is risky")) == (0, 1, 1)
    data = ask_json("run", "submit", "run.toml", "--wait", "--request-id", "kept")
    run_id = data["run_id"]
    assert data["warnings"] == ["it is risky"]
    watched = ask("run", "watch", run_id)
    assert "warning: it is risky" in watched.err
    shown = ask("run", "show", run_id).out
    assert "warnings" in shown
    assert "it is risky (3 times, until round 2)" in shown
    (kept,) = ask_json("run", "show", run_id)["warnings"]
    assert (kept["cause"], kept["times"]) == ("compression.up", 3)
    logs = ask("run", "logs", run_id)
    assert "it is risky (3 times, until round 2)" in logs.out
    assert "nothing went wrong" not in logs.err
    (entry,) = ask_json("run", "logs", run_id)
    assert (entry["kind"], entry["cause"], entry["times"]) == ("run.warned", "compression.up", 3)


def test_a_column_holds_one_line_and_no_traceback() -> None:
    trace = "Traceback (most recent call last):\n  File 'task.py', line 7\nValueError: bad"
    reasons = [f"ward failed:\n{trace}", "a\nb  c", "x" * 500, "short"]
    runs = [pb.Run(run_id=f"run-{at}", reason=reason) for at, reason in enumerate(reasons)]
    console = Console(width=1000)
    with console.capture() as shown:
        console.print(runs_table(runs, {}))
    ends = [line.rstrip().split("  ")[-1].strip() for line in shown.get().splitlines()[1:]]
    assert ends == ["ward failed", "a b c", "x" * 196 + " ...", "short"]


def test_a_round_tells_which_source_code_was_at_work_and_where_another() -> None:
    work = [
        pb.RoundAssignment(peer_id=peer, source_digest=digest * 64)
        for peer, digest in zip("abc", "112", strict=True)
    ]
    work.append(pb.RoundAssignment(peer_id="silent"))
    assert _sources(work[:2]) == "1" * 64
    assert _sources(work) == f"not the same everywhere: {'1' * 12} at a, b; {'2' * 12} at c"
    assert _sources(work[3:]) == ""
