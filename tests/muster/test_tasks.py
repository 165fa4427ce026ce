"""Loading a task by name, from folders that must never stand in front."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.errors import ConfigError, MusterError, TaskError
from muster.task.loading import load_task
from muster.task.task import Task

SOURCE = """
import muster

class Letters(muster.Task):
    def __init__(self): self.made = True
    def model(self): return None
    def train_data(self, site): return []

class Half(muster.Task):
    def model(self): return None

class Fussy(Letters):
    def __init__(self): raise RuntimeError("no such disk")

class Other: pass
number = 3
"""


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    sys.path[:] = path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_tasks.py").write_text(SOURCE)
    (tmp_path / "my_broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "my_typo.py").write_text("def f(:\n")
    return tmp_path


def test_a_task_is_made_with_its_options(folder: Path) -> None:
    options = {"hidden": 3}
    task = load_task("my_tasks:Letters", [folder], options)
    options["hidden"] = 4
    assert isinstance(task, Task) and task.made  # type: ignore[attr-defined]
    assert task.options == {"hidden": 3}
    with pytest.raises(TypeError):
        task.options["hidden"] = 5  # type: ignore[index]


def test_folders_go_to_the_end_of_the_path_once_and_never_in_front(folder: Path) -> None:
    (folder / "peer").mkdir()
    (folder / "peer" / "__init__.py").write_text("raise AssertionError('shadowed')")
    (folder / "json.py").write_text("raise AssertionError('shadowed')")
    before = list(sys.path)
    for _ in range(2):
        load_task("my_tasks:Letters", [str(folder), folder])
    assert sys.path == [*before, str(folder)]


def test_a_module_written_after_the_first_look_is_found(folder: Path) -> None:
    with pytest.raises(ConfigError):
        load_task("my_late:Letters", [folder])
    (folder / "my_late.py").write_text(SOURCE)
    assert load_task("my_late:Letters", [folder])


@pytest.mark.parametrize(
    ("reference", "cls", "id", "said"),
    [
        ("my_tasks", ConfigError, "task.malformed", "package.module:Class"),
        (":Letters", ConfigError, "task.malformed", "package.module:Class"),
        ("my_absent:Letters", ConfigError, "task.not_found", "no module 'my_absent'"),
        ("my_absent.deep:Letters", ConfigError, "task.not_found", "no module 'my_absent'"),
        ("my_tasks.deep:Letters", ConfigError, "task.not_found", "no module 'my_tasks.deep'"),
        ("my_tasks:Leters", ConfigError, "task.not_found", "did you mean 'Letters'?"),
        ("my_tasks:Other", ConfigError, "task.not_a_task", "not a subclass of muster.Task"),
        ("my_tasks:number", ConfigError, "task.not_a_task", "not a subclass of muster.Task"),
        ("my_tasks:Half", ConfigError, "task.not_a_task", "lacks train_data"),
        ("my_tasks:Fussy", TaskError, "task.failed_to_load", "RuntimeError: no such disk"),
        ("my_broken:Letters", TaskError, "task.failed_to_load", "nothing_of_this_name"),
        ("my_typo:Letters", TaskError, "task.failed_to_load", "SyntaxError"),
    ],
)
def test_each_way_not_to_be_a_task(
    folder: Path, reference: str, cls: type[MusterError], id: str, said: str
) -> None:
    with pytest.raises(cls) as caught:
        load_task(reference, [folder])
    assert caught.value.id == id
    assert said in str(caught.value)
    assert ("Traceback" in caught.value.fields.get("traceback", "")) == (cls is TaskError)
