"""What the README and the examples tell people to type, typed: real processes, to the end."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.timeout(300)
def test_the_demo_shows_that_one_liar_ruins_a_mean_and_not_the_robust_rule() -> None:
    done = run("cli.main", "demo", "--json")
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert set(runs) == {"honest", "attacked_mean", "attacked_robust", "compressed"}
    small = runs.pop("compressed")
    assert small["accuracy"] >= 0.93
    assert small["codec"] == "topk:0.05+int8"
    dense = small["bytes_up_dense"] + small["bytes_down_dense"]
    assert small["bytes_saved"] == dense - small["bytes_up"] - small["bytes_down"]
    assert small["bytes_saved"] > 0.85 * dense
    for result in runs.values():
        assert result["rounds"] == 20
        assert result["codec"] == "identity"
        # Dense both ways, but for the initial model, which every peer draws.
        assert min(result["bytes_up"], result["bytes_down"]) > 19 * 5 * 4 * 4810
    assert runs["honest"]["accuracy"] >= 0.93
    assert runs["attacked_robust"]["accuracy"] >= 0.93
    assert runs["attacked_mean"]["accuracy"] <= 0.5


@pytest.mark.timeout(300)
@pytest.mark.parametrize("arguments", [["examples.digits", "--robust"], ["examples.text"]])
def test_an_example_is_one_command(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FINISHED" in done.stdout or "COMMITTED" in done.stdout


def readme_commands() -> list[list[str]]:
    """What stands in the README to be typed on several terminals, in its order."""
    block = (ROOT / "README.md").read_text().partition("## On several machines")[2].partition("\n## ")[0]
    return [
        shlex.split(line, comments=True)[1:] for line in block.splitlines() if line.startswith("    muster ")
    ]


@pytest.mark.timeout(600)
def test_the_readmes_commands_work_in_the_order_in_which_they_stand(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "MUSTER_COORDINATOR__ADDRESS": address,
        "MUSTER_PEER__COORDINATOR": address,
    }
    muster = [sys.executable, "-m", "cli.main"]
    commands = readme_commands()
    lasting = [command for command in commands if command[0] in ("serve", "join")]
    assert len(lasting) == 5 and commands[:5] == lasting
    running: list[subprocess.Popen[bytes]] = []
    try:
        with (tmp_path / "log").open("wb") as log:
            running += [
                subprocess.Popen([*muster, *command], cwd=tmp_path, env=env, stdout=log, stderr=log)
                for command in lasting
            ]
        while not (tmp_path / "data/muster/coordinator/coordinator.address").exists():
            assert running[0].poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        for command in commands[5:]:
            done = subprocess.run(
                [*muster, *command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, (command, done.stdout, done.stderr)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(30)
    assert load_file(tmp_path / "digits.safetensors")
