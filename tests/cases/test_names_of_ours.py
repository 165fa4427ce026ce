"""Files and folders of a user's own that are called like packages of Muster's."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from muster.errors import ConfigError
from muster.runtime.installation import PACKAGES
from muster.task.loading import load_task

ROOT = Path(__file__).parents[2]

TASK = """
import muster
from torch import nn

class Mine(muster.Task):
    def model(self):
        return nn.Linear(2, 1)

    def train_data(self, site):
        raise NotImplementedError
"""


@pytest.fixture(autouse=True)
def same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Task folders stay on sys.path; not beyond a test."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def _write(folder: Path, module: str) -> Path:
    path = folder.joinpath(*module.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TASK)
    return path


@pytest.mark.parametrize(
    "module",
    [
        *PACKAGES,
        *(f"{name}.mine" for name in PACKAGES),
        "examples.mine",
        "examples.digits",  # which there is in both: the user's own is meant, and ours would be run
        "json.mine",  # Python's own
        "numpy",
    ],
)
def test_a_task_that_a_package_hides_is_told_with_both_places(tmp_path: Path, module: str) -> None:
    _write(tmp_path, module)
    with pytest.raises(ConfigError) as caught:
        load_task(f"{module}:Mine", [tmp_path])
    error = caught.value
    top = module.partition(".")[0]
    assert error.id == "task.shadowed"
    own = top not in ("json", "numpy")
    assert f"'{top}' is {'Muster' if own else 'an installed package'}" in error.message
    assert f"hides {tmp_path / top}" in error.message
    if own:
        assert str(ROOT / top) in error.message
    assert "rename" in error.fix


@pytest.mark.parametrize("module", ["tests.mine", "tools.mine", "wards", "clinics.mine"])
def test_what_nothing_hides_is_found(tmp_path: Path, module: str) -> None:
    """`tests` and `tools` are folders without __init__.py, here and there: both are looked into."""
    _write(tmp_path, module)
    assert type(load_task(f"{module}:Mine", [tmp_path])).__name__ == "Mine"


def test_a_folder_beside_it_hides_nothing_that_is_meant(tmp_path: Path) -> None:
    _write(tmp_path, "examples.other")
    assert type(load_task("examples.digits:Digits", [tmp_path])).__name__ == "Digits"


@pytest.mark.parametrize("name", sorted({*PACKAGES} - {"cli", "muster", "simulator"}))
def test_a_program_called_like_a_package_is_told_to_be_renamed(tmp_path: Path, name: str) -> None:
    program = tmp_path / f"{name}.py"
    program.write_text("import simulator\n")
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode != 0
    assert f"[installation.shadowed] {name} is loaded from {program}" in done.stderr
    assert "rename yours" in done.stderr


def test_the_wheel_installs_the_packages_that_are_protected_and_no_other_name() -> None:
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert sorted(targets["wheel"]["packages"]) == sorted(PACKAGES)
    assert all(place.startswith("cli/") for place in targets["wheel"]["force-include"].values())


def test_a_command_that_fails_over_a_hidden_package_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cli.main import execute

    def fail(*_: object, **__: object) -> None:
        raise ConfigError("installation.shadowed", "peer is loaded from elsewhere")

    monkeypatch.setattr("muster.runtime.installation.check_installation", fail)
    monkeypatch.setattr("cli.node.node_config", lambda *_: 1 / 0)
    monkeypatch.setattr("cli.commands.configs.node_config", lambda *_: 1 / 0)
    assert execute(["config", "show"]) == 6
    assert "Traceback" not in capsys.readouterr().err
