"""Which tasks a coordinator imports for whoever submits a run: what its operator named, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.submission.permits import load_permitted, task_args
from muster.config.settings import CoordinatorConfig
from muster.errors import ConfigError, MusterError, NotAllowedError, TaskError
from muster.spec.model import RunSpec
from muster.task.loading import lies_in
from simulator.local import start_local

TASK = """
import pathlib

import muster

pathlib.Path(__file__).with_suffix(".imported").touch()


class Mine(muster.Task):
    def model(self):
        from torch import nn

        return nn.Linear(1, 1)

    def train_data(self, site):
        raise NotImplementedError


class Half(muster.Task):
    def model(self):
        raise NotImplementedError


other = 3
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a module of this test's own; gives its path."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def make(name: str, text: str = TASK) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    yield make
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def load(task: str, **config: Any) -> Any:
    args = task_args(CoordinatorConfig.model_validate(config), task)
    return load_permitted({**args, "options": {}})


def test_without_a_word_of_the_operator_nothing_is_imported(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = write("here_task.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotAllowedError, match="may not import the task 'here_task:Mine'") as caught:
        load("here_task:Mine")
    assert "neither allow nor task_folders is set" in caught.value.cause
    assert "muster serve --allow 'here_task:Mine'" in caught.value.fix
    assert not module.with_suffix(".imported").exists()
    assert type(load("here_task:Mine", allow=["here_task:*"])).__name__ == "Mine"


def test_a_task_in_a_named_folder_is_imported_and_one_beside_it_is_not(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    write("tasks/pack/__init__.py", "")
    write("tasks/pack/good_task.py")
    outside = write("elsewhere/outside_task.py")
    sys.path.append(str(outside.parent))  # as an installed package is found
    assert type(load("pack.good_task:Mine", task_folders=[tmp_path / "tasks"])).__name__ == "Mine"
    with pytest.raises(NotAllowedError, match="outside_task:Mine"):
        load("outside_task:Mine", task_folders=[tmp_path / "tasks"])
    assert not outside.with_suffix(".imported").exists()


def test_what_is_installed_below_a_named_folder_is_not_in_it(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    """As with a virtual environment in the folder of one's tasks."""
    module = write("tasks/.venv/lib/below_task.py")
    sys.path.append(str(module.parent))
    assert lies_in("below_task:Mine", [tmp_path / "tasks"]) is False
    with pytest.raises(NotAllowedError):
        load("below_task:Mine", task_folders=[tmp_path / "tasks"])


def test_a_package_without_a_file_of_its_own_may_not_reach_out_of_the_folder(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    write("tasks/spread/mine.py")
    write("elsewhere/spread/other.py")
    assert lies_in("spread.mine:Mine", [tmp_path / "tasks"]) is True
    sys.path.append(str(tmp_path / "elsewhere"))
    assert lies_in("spread.other:Mine", [tmp_path / "tasks"]) is False


@given(name=st.sampled_from(sorted(sys.stdlib_module_names - {"antigravity", "this"})))
def test_the_standard_library_lies_in_no_folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nor does a file of such a name in the folder stand in for it."""
    folder = tmp_path_factory.getbasetemp() / "shadows"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text("raise SystemExit('imported')")
    found = lies_in(f"{name}.path:join", [folder])
    sys.path.remove(str(folder))
    # What this platform lacks is found in the folder, and is the operator's own then.
    assert found in ((False,) if __import__("importlib.util").util.find_spec(name) else (True,))


@pytest.mark.parametrize("task", ["os.path:join", "sys:modules", "muster.task.task:Task", "torch.nn:Linear"])
def test_an_installed_module_needs_its_name_said(task: str, tmp_path: Path) -> None:
    with pytest.raises(NotAllowedError, match="may not import"):
        load(task, task_folders=[tmp_path])
    with pytest.raises(NotAllowedError, match="may not import"):
        load(task, allow=["examples.*:*"])


@pytest.mark.parametrize("task", ["a..b:C", ".a:C", "a:b.c", "a", "a:", "os.path :join", "a/b:C"])
def test_what_names_no_module_is_malformed(task: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not name a task"):
        load(task, task_folders=[tmp_path])


async def test_a_run_whose_task_cannot_be_had_is_refused_when_it_is_submitted(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    write("tasks/fine_task.py")
    write("tasks/raising_task.py", "import nothing_of_that_name")
    wrong: list[tuple[str, type[MusterError], str]] = [
        ("no_such_task:Mine", ConfigError, "task.not_found"),
        ("fine_task:Mien", ConfigError, "task.not_found"),
        ("fine_task:other", ConfigError, "task.not_a_task"),
        ("fine_task:Half", ConfigError, "task.not_a_task"),
        ("raising_task:Mine", TaskError, "task.failed_to_load"),
        ("json.decoder:JSONDecoder", NotAllowedError, "task.not_allowed"),
    ]
    async with start_local(tmp_path, peers=0, allow=[], task_folders=[tmp_path / "tasks"]) as federation:
        for task, cls, error_id in wrong:
            with pytest.raises(cls) as caught:
                await federation.submit(RunSpec.model_validate({"task": task, "rounds": 1}))
            assert caught.value.id == error_id, task
            if error_id == "task.failed_to_load":
                assert "raising_task.py" in caught.value.fields["traceback"]
        assert await federation._store.runs() == []
        run_id = await federation.submit(RunSpec.model_validate({"task": "fine_task:Mine", "rounds": 1}))
        assert [row.run_id for row in await federation._store.runs()] == [run_id]
