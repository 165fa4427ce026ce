"""What the README and the examples tell people to type, typed: real processes, to the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
