from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))


def parse(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser


def test_there_is_a_unit_for_each_side() -> None:
    assert [path.name for path in UNITS] == ["muster-coordinator.service", "muster-peer.service"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_comes_back_after_a_crash_and_never_runs_as_root(path: Path) -> None:
    service = parse(path)["Service"]
    assert service["Restart"] == "always"
    assert service["User"] == "muster"
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["WorkingDirectory"] == f"/var/lib/{service['StateDirectory']}"
    assert parse(path)["Unit"]["StartLimitIntervalSec"] == "0"  # without end, not five times


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_names_settings_that_exist(path: Path) -> None:
    from muster.config.settings import CoordinatorConfig, PeerConfig

    name, _, value = parse(path)["Service"]["Environment"].partition("=")
    _, table, key = name.replace("__", "_", 1).split("_", 2)
    model = {"COORDINATOR": CoordinatorConfig, "PEER": PeerConfig}[table]
    assert key.lower() in model.model_fields
    assert value == parse(path)["Service"]["WorkingDirectory"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_unit(path: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    # The command of the unit is not installed where the tests run; `true` stands in for it.
    unit = tmp_path / path.name
    unit.write_text(path.read_text().replace("/opt/muster/bin/muster", shutil.which("true") or ""))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_starts_everywhere_and_is_bounded(path: Path) -> None:
    text = path.read_text()
    service = parse(path)["Service"]
    assert "SupplementaryGroups" not in service  # a group that is not there would keep it from starting
    assert service["MemoryMax"].endswith("%")
    assert int(service["TasksMax"]) >= 1024  # a thread for each core, in each of several workers
    assert service["CapabilityBoundingSet"] == ""
    assert "SystemCallFilter=@system-service\nSystemCallFilter=~@privileged\n" in text
    assert "MemoryDenyWriteExecute" not in service  # kernels are made at run time


def test_a_peers_gpu_stays_within_reach() -> None:
    service = parse(DEPLOY / "muster-peer.service")["Service"]
    assert not {"PrivateDevices", "ProtectClock", "DeviceAllow", "DevicePolicy"} & set(service)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_finds_the_unit_little_exposed(path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=35", "--no-pager", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
