"""Commands that act on this machine alone."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cli.main import build
from muster.wire import PROTOCOL_VERSION

ROOT = Path(__file__).parent.parent.parent


def commands() -> dict[str, Any]:
    """Every command by its full name."""

    def walk(command: Any, name: str) -> dict[str, Any]:
        nested = getattr(command, "commands", None)
        if nested is None:
            return {name: command}
        return {
            key: value
            for inner, each in nested.items()
            for key, value in walk(each, f"{name} {inner}").items()
        }

    return walk(typer.main.get_command(build()), "muster")


def test_the_grammar() -> None:
    assert sorted(commands()) == sorted(
        f"muster {name}"
        for name in (
            *("demo", "serve", "join", "status", "doctor", "version", "completion", "why"),
            *(
                f"run {verb}"
                for verb in (
                    *("submit", "list", "show", "watch", "logs", "export"),
                    *("pause", "resume", "stop", "remove"),
                )
            ),
            *("round list", "round show", "round replay", "aggregator list", "aggregator show"),
            *("compressor list", "compressor show", "plugin list", "plugin show"),
            *(f"peer {verb}" for verb in ["list", "show", "drain", "quarantine", "release", "remove"]),
            *("task check", "model list", "model pull", "config show", "config validate", "config schema"),
        )
    )


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_begins_with_an_example_of_the_command(name: str) -> None:
    help_text = commands()[name].help
    assert help_text.startswith(f"$ {name}")
    options = {option for each in commands()[name].params for option in each.opts}
    assert {"--json", "--address", "--timeout", "--yes", "--quiet", "--no-color"} <= options
    for option in re.findall(r" (--?[a-z][a-z-]*)", help_text.partition("\n")[0]):
        assert option in options


def test_version(muster: Callable[..., Any]) -> None:
    assert re.fullmatch(r"muster \d+\.\d+\.\d+\S*\n", muster("version").out)
    assert muster("version", "--json").data["protocol"] == PROTOCOL_VERSION


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(muster: Callable[..., Any], shell: str) -> None:
    assert "_MUSTER_COMPLETE" in muster("completion", shell).out
    assert muster("completion", "tcsh").code == 2


def test_completion_completes(at_home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main"],
        env={
            **os.environ,
            "_MUSTER_COMPLETE": "complete_bash",
            "COMP_WORDS": "muster run s",
            "COMP_CWORD": "2",
        },
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.stdout.split() == ["submit", "show", "stop"]


def test_a_malformed_command_is_exit_2(muster: Callable[..., Any]) -> None:
    said = muster("run", "submit")
    assert said.code == 2
    assert "error[cli.usage]" in said.err
    assert "muster run submit --help" in said.err
    assert "Did you mean 'submit'" in muster("run", "submti").err
    assert muster("run", "show", "x", "--nope", "--json").data["error"]["id"] == "cli.usage"


def test_a_defect_shows_its_traceback(muster: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise RuntimeError("a wheel came off")

    monkeypatch.setattr("muster.runtime.version.muster_version", broken)
    said = muster("version")
    assert said.code == 1
    assert "in broken" in said.err
    assert "error[internal.error]: RuntimeError: a wheel came off" in said.err


# -- config -----------------------------------------------------------------------------------------------


def test_config_show_tells_where_a_value_was_said(muster: Callable[..., Any], at_home: Path) -> None:
    (at_home / "muster.toml").write_text("[coordinator]\nmodels_keep = 3\n")
    assert muster("config", "show", "--json").data["coordinator.models_keep"] == 3
    row = muster("config", "show", "--origin", "--json").data["coordinator.models_keep"]
    assert (row["value"], row["origin"]) == (3, "muster.toml:2")
    assert re.search(r"coordinator.models_keep +3 +muster.toml:2", muster("config", "show", "--origin").out)


@pytest.mark.parametrize(
    ("text", "code", "kind"),
    [
        ('task = "examples.digits:Digits"\nrounds = 1\n', 0, "run spec"),
        ('task = "a.b:C"\nrounds = 1\n', 6, "task.not_found"),
        ('task = "examples.digits:Digit"\nrounds = 1\n', 6, "task.not_found"),
        ('task = "examples.digits:cache"\nrounds = 1\n', 6, "task.not_a_task"),
        ('task = "a:B"\nrunds = 1\n', 6, "spec.invalid"),
        ("[coordinator]\nmodels_keep = 3\n", 0, "node config"),
        ("[peer]\nnmae = 'x'\n", 6, "config.invalid"),
        ('[[allow]]\ntask = "a:B"\n', 0, "policy"),
        ("[[allow]]\ntsk = 1\n", 6, "policy.invalid"),
        ("task = \n", 6, "spec.invalid"),
    ],
)
def test_config_validate(muster: Callable[..., Any], at_home: Path, text: str, code: int, kind: str) -> None:
    (at_home / "file.toml").write_text(text)
    said = muster("config", "validate", "file.toml", "--json")
    assert said.code == code
    assert (said.data["kind"] if code == 0 else said.data["error"]["id"]) == kind


@pytest.mark.parametrize(
    ("table", "fix"),
    [
        ('up = "topk:0.01"\nfeedback = "econtrol:0.5"', 'set compression.feedback = "econtrol"'),
        ('down = "ferret:64"', 'set compression.down_feedback = "none"'),
        ('up = "int8+"', 'set compression.up = "int8"'),
    ],
)
def test_config_validate_refuses_what_a_coordinator_would(
    muster: Callable[..., Any], at_home: Path, table: str, fix: str
) -> None:
    (at_home / "run.toml").write_text(
        f'task = "examples.digits:Digits"\nrounds = 9\n[compression]\n{table}\n'
    )
    said = muster("config", "validate", "run.toml", "--json")
    assert (said.code, said.data["error"]["id"]) == (6, "spec.invalid")
    assert said.data["error"]["fix"].startswith(fix)


def test_config_validate_warns_of_what_is_valid(muster: Callable[..., Any], at_home: Path) -> None:
    (at_home / "run.toml").write_text(
        'task = "examples.digits:Digits"\nrounds = 9\n[compression]\nup = "topk:0.01"\n'
    )
    said = muster("config", "validate", "run.toml")
    assert said.code == 0 and "a valid run spec" in said.out
    assert said.err.startswith('warning: compression.up = "topk:0.01" and compression.feedback = "none": ')
    (told,) = muster("config", "validate", "run.toml", "--json").data["warnings"]
    assert said.err == f"warning: {told}\n"


@pytest.mark.parametrize("text", ["[coordinator]\nmodels_keep = 3\n", '[[allow]]\ntask = "a:B"\n'])
def test_config_validate_loads_torch_for_run_specs_only(at_home: Path, text: str) -> None:
    (at_home / "file.toml").write_text(text)
    code = (
        "import sys; from cli.main import execute; code = execute(['config', 'validate', 'file.toml']); "
        "sys.exit(code or 9 * ('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=at_home, capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stderr


def test_config_schema_names_every_key(muster: Callable[..., Any]) -> None:
    assert {"task", "rounds", "aggregation"} <= muster("config", "schema").data["properties"].keys()
    assert {"coordinator", "peer"} <= muster("config", "schema", "node").data["properties"].keys()


# -- serve and join ---------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configs with which a coordinator or a peer would have been started."""
    configs: list[Any] = []

    async def start(config: Any) -> None:
        configs.append(config)

    monkeypatch.setattr("coordinator.server.serve", start)
    monkeypatch.setattr("peer.daemon.run_peer", start)
    return configs


def test_serve(muster: Callable[..., Any], started: list[Any], at_home: Path) -> None:
    (at_home / "my.toml").write_text("[coordinator]\nmodels_keep = 3\nuploads_max = 9\n")
    said = muster(
        *("serve", "-c", "my.toml", "--address", "127.0.0.1:0", "--data-dir", "state"),
        *("--set", "coordinator.uploads_max=2", "--task-folder", "tasks", "--task-folder", "more"),
    )
    assert said.code == 0, said.err
    (config,) = started
    assert (config.address, config.models_keep, config.uploads_max) == ("127.0.0.1:0", 3, 2)
    assert (config.data_dir, config.task_folders) == (
        at_home / "state",
        (at_home / "tasks", at_home / "more"),
    )


def test_join(muster: Callable[..., Any], started: list[Any], at_home: Path) -> None:
    said = muster(
        *(
            "join",
            "127.0.0.1:7171",
            "--name",
            "ward-3",
            "--device",
            "cpu",
            "--allow",
            "a.b:*",
            "--allow",
            "c:D",
        ),
        *(
            "--data",
            "index=3",
            "--data",
            "path=/x-rays",
            "--attack",
            "sign-flip",
            "--attack-option",
            "scale=10",
        ),
    )
    assert said.code == 0, said.err
    (config,) = started
    assert (config.coordinator, config.name, config.device) == ("127.0.0.1:7171", "ward-3", "cpu")
    assert config.allow == ("a.b:*", "c:D")
    assert config.data == {"index": 3, "path": "/x-rays"}
    assert (config.attack.name, config.attack.options) == ("sign-flip", {"scale": 10})


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["serve", "--set", "models_keep=3"], 2, "cli.usage"),
        (["serve", "--set", "coordinator.models_keep=none"], 6, "config.invalid"),
        (["join", "--data", "index"], 2, "cli.usage"),
        (["join", "--name", "two words"], 6, "config.invalid"),
        (["join", "--attack", "sign-flop"], 6, "config.invalid"),
        (["join", "-c", "none.toml"], 6, "config.not_found"),
    ],
)
def test_what_is_not_started(
    muster: Callable[..., Any], started: list[Any], arguments: list[str], code: int, error: str
) -> None:
    said = muster(*arguments, "--json")
    assert (said.code, said.data["error"]["id"]) == (code, error)
    assert started == []


def test_a_shadowed_package_stops_the_start(
    muster: Callable[..., Any], started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from muster.errors import ConfigError

    def shadowed() -> None:
        raise ConfigError("installation.shadowed", "peer is loaded from /home/me/peer")

    monkeypatch.setattr("muster.runtime.installation.check_installation", shadowed)
    assert muster("serve").code == 6
    assert muster("join").code == 6
    assert started == []


def test_demo_is_handed_its_options(muster: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def run_demo(**options: Any) -> int:
        calls.append(options)
        return 3

    monkeypatch.setattr("cli.demo.run_demo", run_demo)
    assert muster("demo", "--rounds", "7", "--attack", "alie", "--json").code == 3
    assert calls == [{"peers": 5, "rounds": 7, "attack": "alie", "json_output": True}]
    assert muster("demo", "--peers", "2").code == 2


# -- doctor -----------------------------------------------------------------------------------------------


def findings(said: Any) -> dict[str, Any]:
    return {check["name"]: check for check in said.data}


def test_doctor_on_a_fresh_machine_warns_and_fails_nothing(muster: Callable[..., Any]) -> None:
    with socket.socket() as probe:  # a port that is free now
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    Path("muster.toml").write_text(f"[coordinator]\naddress = '{address}'\n")
    said = muster("doctor", "--json")
    found = findings(said)
    assert said.code == 0
    assert list(found) == [
        *("python", "packages", "config", "coordinator", "port"),
        *("coordinator data", "peer data", "database", "policy", "torch"),
    ]
    assert {name for name, check in found.items() if check["state"] == "warn"} == {"coordinator", "policy"}
    assert all(check["fix"] for check in found.values() if check["state"] != "ok")
    assert "\nwarn  coordinator " in muster("doctor").out


def test_doctor_beside_a_coordinator(ask: Callable[..., Any]) -> None:
    found = findings(ask("doctor", "--json"))
    assert found["coordinator"]["state"] == "ok"
    assert f"protocol {PROTOCOL_VERSION}" in found["coordinator"]["message"]


def test_doctor_finds_what_is_broken(muster: Callable[..., Any], at_home: Path) -> None:
    (at_home / "file").write_text("in the way")
    (at_home / "other.db").write_text("no database, but a text that is long enough to be looked at " * 20)
    (at_home / "policy.toml").write_text("[[allow]]\ntask = 1\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (at_home / "muster.toml").write_text(
            f"[coordinator]\naddress = '127.0.0.1:{taken.getsockname()[1]}'\ndata_dir = 'file/state'\n"
            f"database_url = 'sqlite:///{at_home}/other.db'\n[peer]\npolicy = 'policy.toml'\n"
        )
        said = muster("doctor", "--json", "--address", "127.0.0.1:1")
    found = findings(said)
    assert said.code == 1
    failed = {name for name, check in found.items() if check["state"] == "fail"}
    assert failed == {"port", "coordinator data", "database", "policy"}


def test_doctor_knows_the_schema(muster: Callable[..., Any], at_home: Path) -> None:
    import asyncio

    from coordinator.store import SqlStore

    url = f"sqlite:///{at_home}/muster.db"

    async def make() -> None:
        await (await SqlStore.open(url)).close()

    asyncio.run(make())
    (at_home / "muster.toml").write_text(f"[coordinator]\ndatabase_url = '{url}'\n")
    assert "schema" in findings(muster("doctor", "--json"))["database"]["message"]


def test_doctor_with_a_config_that_cannot_be_read(muster: Callable[..., Any], at_home: Path) -> None:
    (at_home / "muster.toml").write_text("[coordinator]\nadress = 'x'\n")
    said = muster("doctor", "--json")
    assert said.code == 1
    assert "muster.toml:2" in findings(said)["config"]["message"]


# -- processes --------------------------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cli.main", *arguments]


def test_ctrl_c_is_exit_130(federation: Any, at_home: Path) -> None:
    # Tests that a shell runs in the background ignore the signal, and what they start would do so too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command("run", "watch", "text", "--json", "--address", federation.address),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["kind"] == "run.submitted"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    told = b"the run goes on at the coordinator; to see it again: muster run watch text-99\n"
    assert (process.returncode, err) == (130, told)


def test_a_reader_that_leaves_is_no_error(federation: Any, at_home: Path) -> None:
    process = subprocess.Popen(
        command("run", "watch", "text", "--json", "--address", federation.address),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(timeout=20) == 141


def test_a_terminal_gets_a_live_screen(federation: Any, at_home: Path) -> None:
    """Rounds and peers in a table that is drawn anew until the run has ended; then the run as it ended."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command("run", "watch", "digits", "--address", federation.address),
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
    )
    os.close(follower)
    seen = b""
    while select.select([leader], [], [], 20)[0]:
        try:
            block = os.read(leader, 65536)
        except OSError:  # Linux's way to say that the other side has closed
            break
        if not block:
            break
        seen += block
    os.close(leader)
    assert process.wait(timeout=20) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert re.search(r"digits-1a2b +FINISHED +3/3 rounds", text)
    assert "THIS ROUND" in text
    assert re.search(r"ward-0 +\w+ +DELIVERED +1.000", text)
    assert "3 of 3 committed" in text
    assert "\x1b[" in seen.decode()


def test_the_manual_names_every_command_and_exit_status() -> None:
    manual = (ROOT / "docs" / "cli.md").read_text().replace("\\|", "|")
    named: set[str] = set()
    for noun, verbs in re.findall(r"`muster (\w+)([^`]*)", manual):
        named.add(f"muster {noun}")
        named |= {f"muster {noun} {verb}" for verb in re.findall(r"\b[a-z]+\b", verbs)}
    assert set(commands()) <= named
    from muster.errors import ERROR_CLASSES

    for code in {0, 130, *(each.exit_code for each in ERROR_CLASSES.values())}:
        assert f"\n| {code} | " in manual


@pytest.mark.parametrize(
    ("verb", "meant"),
    [("watch", "'muster run watch'"), ("drain", "'muster peer drain'"), ("pull", "'muster model pull'")],
)
def test_a_verb_without_its_noun_is_told_the_noun(muster: Callable[..., Any], verb: str, meant: str) -> None:
    said = muster(verb, "digits")
    assert said.code == 2
    assert f"Did you mean {meant}?" in said.err


def test_a_verb_that_several_nouns_have_is_told_them_all(muster: Callable[..., Any]) -> None:
    assert "'muster run list' or 'muster round list' or 'muster peer list'" in muster("list").err
    assert "Did you mean" not in muster("zzz").err


def test_an_address_that_is_a_url_or_no_musters_is_told_so(muster: Callable[..., Any]) -> None:
    import http.server
    import threading

    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    assert "is not HOST:PORT" in muster("status", "--address", "http://127.0.0.1:7070").err
    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        said = muster("status", "--address", f"127.0.0.1:{server.server_port}", "--timeout", "5")
        server.shutdown()
        thread.join()
    assert said.code == 5
    assert "something listens there that is no coordinator" in said.err
