"""The node config: layers, origins, and every mistake at its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from muster.config.settings import (
    CoordinatorConfig,
    LoadedConfig,
    NodeConfig,
    PeerConfig,
    check_config_file,
    config_schema,
    default_files,
    load_config,
)
from muster.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(*files: Path, environment: Mapping[str, str] | None = None, **more: Any) -> LoadedConfig:
    return load_config(files=files, environment=environment or {}, **more)


def mistakes(*files: Path, **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*files, **more)
    assert caught.value.id == "config.invalid"
    return caught.value.message.split("\n")[1:]


def test_defaults_need_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    found = load()
    assert found.coordinator.address == found.peer.coordinator == "127.0.0.1:7070"
    assert found.coordinator.data_dir == tmp_path / "muster" / "coordinator"
    assert found.coordinator.database_url == f"sqlite:///{tmp_path}/muster/coordinator/muster.db"
    assert found.peer.data_dir == tmp_path / "muster" / "peers" / found.peer.name
    assert {origin for _, _, origin in found.rows()} == {"default"}


def test_derived_defaults_follow_what_they_are_made_of(tmp_path: Path) -> None:
    config = CoordinatorConfig(
        data_dir=tmp_path, heartbeat_seconds=2, suspect_heartbeats=4, lost_heartbeats=10
    )
    assert config.database_url == f"sqlite:///{tmp_path}/muster.db"
    assert (config.suspect_seconds, config.lost_seconds) == (8, 20)
    assert PeerConfig(name="north").data_dir.name == "north"
    with pytest.raises(ValidationError, match="must be greater than suspect_heartbeats"):
        CoordinatorConfig(suspect_heartbeats=6)


def test_every_layer_beats_the_one_below_and_values_tell_their_origin(tmp_path: Path) -> None:
    keys = ("name", "coordinator", "device", "log_level", "policy")
    low = write(
        tmp_path / "low.toml", "[peer]\nname='n1'\ncoordinator='c1:1'\ndevice='cpu'\nlog_level='debug'"
    )
    high = write(tmp_path / "high.toml", "[peer]\ncoordinator='c2:2'\ndevice='mps'\nlog_level='error'")
    given = write(tmp_path / "given.toml", "# mine\npeer.device = 'cuda'\npeer.log_level = 'warning'")
    found = load(
        low,
        high,
        tmp_path / "is_not_there.toml",
        file=given,
        environment={
            "MUSTER_PEER__DEVICE": "cuda:1",
            "MUSTER_PEER__LOG_LEVEL": "info",
            "OTHER_PEER__NAME": "x",
        },
        flags={
            "peer": {"log_level": "error", "name": None, "data.root.sub": 1},
            "coordinator": {"address": None},
        },
    )
    peer = found.peer
    assert (peer.name, peer.coordinator, peer.device, peer.log_level) == ("n1", "c2:2", "cuda:1", "error")
    assert peer.data == {"root": {"sub": 1}}
    assert [found.origin(f"peer.{key}") for key in keys] == [
        f"{low}:2",
        f"{high}:2",
        "environment MUSTER_PEER__DEVICE",
        "flag --log-level",
        "default",
    ]


def test_the_default_files_are_read_lowest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "config/muster/config.toml", "[peer]\nname = 'user'\ndevice = 'cpu'")
    write(tmp_path / "muster.toml", "[peer]\nname = 'here'")
    assert default_files()[0] == Path("/etc/muster/config.toml")
    found = load_config(environment={})
    assert (found.peer.name, found.peer.device) == ("here", "cpu")


def test_tables_are_merged_key_by_key(tmp_path: Path) -> None:
    low = write(tmp_path / "a.toml", "[peer.data]\nroot = '/a'\nlimit = 3\n[peer.attack]\nname = 'ipm'")
    high = write(tmp_path / "b.toml", "[peer]\ndata.limit = 4\nattack.options = { scale = 2.5 }")
    found = load(low, high, environment={"MUSTER_PEER__DATA__SHUFFLE": "true"})
    assert found.peer.data == {"root": "/a", "limit": 4, "shuffle": True}
    assert found.peer.attack is not None
    assert (found.peer.attack.name, found.peer.attack.options) == ("ipm", {"scale": 2.5})
    assert found.origin("peer.data.root") == f"{low}:2"
    assert found.origin("peer.data.limit") == f"{high}:2"


def test_variables_are_text_where_text_is_wanted_and_toml_elsewhere() -> None:
    found = load(
        environment={
            "MUSTER_PEER__NAME": "007",
            "MUSTER_PEER__DATA__INDEX": "7",
            "MUSTER_PEER__DATA__LABEL": "seven up",
            "MUSTER_PEER__DATA__TRICK": "1\nname = 2",
            "MUSTER_COORDINATOR__HEARTBEAT_SECONDS": "2",
            "MUSTER_COORDINATOR__TASK_FOLDERS": '["/tasks", "/more"]',
            "MUSTER_FAILPOINT": "not:a:key",
        }
    )
    assert found.peer.name == "007"
    assert found.peer.data == {"index": 7, "label": "seven up", "trick": "1\nname = 2"}
    assert found.coordinator.heartbeat_seconds == 2.0
    assert found.coordinator.task_folders == (Path("/tasks"), Path("/more"))


def test_paths_in_a_file_count_from_its_folder_and_others_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    file = write(
        tmp_path / "etc" / "c.toml",
        "[coordinator]\ndata_dir = 'state'\ntask_folders = ['../tasks', '~/mine', '/abs']\n"
        "[peer]\npolicy = 'policy.toml'\ndata = { root = 'as it is' }",
    )
    found = load(
        file, environment={"MUSTER_PEER__DATA_DIR": "p1"}, flags={"peer": {"task_folders": [Path("t")]}}
    )
    assert found.coordinator.data_dir == tmp_path / "etc" / "state"
    assert found.coordinator.task_folders == (tmp_path / "tasks", home / "mine", Path("/abs"))
    assert found.peer.policy == tmp_path / "etc" / "policy.toml"
    assert found.peer.data_dir == here / "p1"
    assert found.peer.task_folders == (here / "t",)
    assert found.peer.data == {"root": "as it is"}


def test_all_mistakes_of_all_layers_are_told_at_once_each_at_its_place(tmp_path: Path) -> None:
    low = write(
        tmp_path / "a.toml", "[coordinator]\naddres = '127.0.0.1:1'\nheartbeat_seconds = 0\n[peers]\nx = 1"
    )
    high = write(
        tmp_path / "b.toml", "[peer]\nname = 'a b'\nattack.nam = 'ipm'\n[coordinator]\naddress = 'nowhere'"
    )
    lines = mistakes(
        low,
        high,
        environment={"MUSTER_PEER__DEVICES": "cpu", "MUSTER_PER__NAME": "x"},
        flags={"peer": {"log_level": "loud"}},
    )
    assert sorted(line.split(" (")[0].split(": should")[0] for line in lines) == sorted(
        [
            f"{low}:2: coordinator.addres: unknown key",
            f"{low}:3: coordinator.heartbeat_seconds",
            f"{low}:5: peers: unknown key",
            f"{high}:2: peer.name",
            f"{high}:3: peer.attack.nam: unknown key",
            f"{high}:3: peer.attack.name: is missing: the attack, by its entry-point name, such as sign-flip, alie "
            "or backdoor",
            f"{high}:5: coordinator.address",
            "environment MUSTER_PEER__DEVICES: peer.devices: unknown key",
            "environment MUSTER_PER__NAME: per: unknown key",
            "flag --log-level: peer.log_level",
        ]
    )
    text = "\n".join(lines)
    for guess in ("'address'", "'peer'", "'name'", "'device'"):
        assert f"did you mean {guess}?" in text


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:7070", "[::1]:65535", "a.example:80"])
def test_addresses_that_are(address: str) -> None:
    assert load(flags={"coordinator": {"address": address}}).coordinator.address == address


@pytest.mark.parametrize(
    "address", ["", "7070", "localhost", "::1:70", "h:65536", "h:x", "http://h:1", "h :1"]
)
def test_addresses_that_are_not(address: str) -> None:
    (line,) = mistakes(flags={"peer": {"coordinator": address}})
    assert line.startswith("flag --coordinator: peer.coordinator: should be HOST:PORT")


def test_an_unknown_attack_is_told_with_the_nearest() -> None:
    (line,) = mistakes(environment={"MUSTER_PEER__ATTACK__NAME": "signflip"})
    assert "there is no attack 'signflip' (did you mean 'sign-flip'?)" in line


def test_the_file_given_must_be_there_and_be_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file=tmp_path / "none.toml")
    assert caught.value.id == "config.not_found"
    (line,) = mistakes(file=write(tmp_path / "bad.toml", "[peer]\nname = \n"))
    assert line.startswith(f"{tmp_path}/bad.toml:2: not TOML")


def test_one_file_is_checked_alone_in_the_order_of_its_lines(tmp_path: Path) -> None:
    check_config_file(write(tmp_path / "good.toml", "[coordinator]\naddress = '127.0.0.1:1'"))
    bad = write(tmp_path / "bad.toml", "[peer]\nnaem = 'x'\n[coordinator]\nlost_heartbeats = 2\n")
    with pytest.raises(ConfigError) as caught:
        check_config_file(bad)
    assert caught.value.message.split("\n") == [
        f"{bad} has 2 mistakes",
        f"{bad}:2: peer.naem: unknown key (did you mean 'name'?)",
        f"{bad}:3: coordinator: lost_heartbeats (2) must be greater than suspect_heartbeats (3)",
    ]


def test_every_key_is_described_and_the_schema_tells_both_tables() -> None:
    schema = config_schema()
    assert set(schema["properties"]) == {"coordinator", "peer"}
    for model in (CoordinatorConfig, PeerConfig):
        assert [name for name, field in model.model_fields.items() if not field.description] == []
    assert NodeConfig.model_config["frozen"]


def test_an_empty_section_in_a_higher_layer_says_nothing(tmp_path: Path) -> None:
    low, high = tmp_path / "low.toml", tmp_path / "high.toml"
    low.write_text('[coordinator]\naddress = "127.0.0.1:7171"\n')
    high.write_text("[coordinator]\n")
    loaded = load_config(file=high, files=[low], environment={}, flags={"coordinator": {}})
    assert loaded.coordinator.address == "127.0.0.1:7171"
