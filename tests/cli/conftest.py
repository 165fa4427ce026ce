from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.main import execute

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@dataclass(frozen=True)
class Federation:
    address: str
    folder: Path  # holds `expected.pt`, the state dict of the model that it serves


@dataclass(frozen=True)
class Said:
    """What one command gave."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """The made-up federation of `fake_coordinator.py`, in a process of its own."""
    folder = tmp_path_factory.mktemp("fake")
    process = subprocess.Popen(
        [sys.executable, str(HERE / "fake_coordinator.py"), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, "the fake coordinator did not start"
    yield Federation(address, folder)
    process.communicate()


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own, so that no config of the machine or the checkout is read."""
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def muster(capsys: pytest.CaptureFixture[str], at_home: Path) -> Callable[..., Said]:
    """Runs one command in this process."""

    def run(*arguments: str) -> Said:
        capsys.readouterr()
        code = execute([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run


@pytest.fixture
def ask(muster: Callable[..., Said], federation: Federation) -> Callable[..., Said]:
    """Runs one command against the made-up federation."""

    def run(*arguments: str) -> Said:
        return muster(*arguments, "--address", federation.address)

    return run


@pytest.fixture
def ask_json(ask: Callable[..., Said]) -> Callable[..., Any]:
    """The same with --json; gives the data of a command that succeeds."""

    def run(*arguments: str) -> Any:
        said = ask(*arguments, "--json")
        assert said.code == 0, said.out + said.err
        return said.data

    return run
