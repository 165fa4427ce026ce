"""One digest for the source code that a task is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.task import sources
from muster.task.loading import load_task
from muster.task.sources import checked_digest, source_digest

TASK = """import muster
{more}
class Mine(muster.Task):
    def model(self): ...
    def train_data(self, site): ...
"""

Digest = Callable[[str, Mapping[str, str]], str]


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Digest]:
    """Of a task in a new folder with these files, as a process that has loaded nothing else finds it."""
    count = 0

    def of(reference: str, files: Mapping[str, str]) -> str:
        nonlocal count
        folder = tmp_path / str(count)
        count += 1
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, newline="")
        own = {Path(name).parts[0].removesuffix(".py") for name in files}
        with monkeypatch.context() as patch:
            patch.setattr("sys.path", [*sources.sys.path])
            patch.setattr("sys.modules", dict(sources.sys.modules))
            for name in [name for name in sources.sys.modules if name.partition(".")[0] in own]:
                del sources.sys.modules[name]
            load_task(reference, [folder])
            return source_digest(reference, [folder])

    yield of
    sources._digest.cache_clear()


def test_a_module_is_its_file_wherever_it_lies(digest: Digest) -> None:
    task = TASK.format(more="")
    first = digest("lone_task:Mine", {"lone_task.py": task})
    assert checked_digest(first) == first
    assert digest("lone_task:Mine", {"lone_task.py": task, "beside.py": "x = 1"}) == first
    assert digest("lone_task:Mine", {"lone_task.py": task + "# edited\n"}) != first


def test_a_package_is_all_its_files(digest: Digest) -> None:
    files = {
        "wards/__init__.py": "",
        "wards/tasks/__init__.py": "",
        "wards/tasks/flowers.py": TASK.format(more="from wards.models import net"),
        "wards/models/__init__.py": "",
        "wards/models/net.py": "",
        "wards/later.py": "",  # nothing imports it yet
        "wards/table.csv": "1,2",
    }
    first = digest("wards.tasks.flowers:Mine", files)
    for name in ("wards/models/net.py", "wards/later.py", "wards/tasks/__init__.py"):
        assert digest("wards.tasks.flowers:Mine", {**files, name: "x = 1"}) != first, name
    assert digest("wards.tasks.flowers:Mine", {**files, "wards/table.csv": "3"}) == first
    moved = {name.replace("later", "sooner"): text for name, text in files.items()}
    assert digest("wards.tasks.flowers:Mine", moved) != first


def test_what_a_task_imports_from_its_folder_is_part_of_it(digest: Digest) -> None:
    files = {"flat_task.py": TASK.format(more="import flat_model"), "flat_model.py": "width = 1"}
    first = digest("flat_task:Mine", files)
    assert digest("flat_task:Mine", {**files, "flat_model.py": "width = 2"}) != first
    assert digest("flat_task:Mine", {**files, "unused.py": "width = 2"}) == first


def test_a_folder_without_init_is_what_was_imported_of_it(digest: Digest) -> None:
    files = {
        "loose/flowers.py": TASK.format(more="from loose import net"),
        "loose/net.py": "",
        "loose/other.py": "",
    }
    first = digest("loose.flowers:Mine", files)
    assert digest("loose.flowers:Mine", {**files, "loose/net.py": "x = 1"}) != first
    assert digest("loose.flowers:Mine", {**files, "loose/other.py": "x = 1"}) == first


def test_a_process_goes_on_with_the_code_that_it_has_loaded(tmp_path: Path) -> None:
    path = tmp_path / "steady_task.py"
    path.write_text(TASK.format(more=""))
    load_task("steady_task:Mine", [tmp_path])
    first = source_digest("steady_task:Mine", [tmp_path])
    path.write_text("edited")
    assert source_digest("steady_task:Mine", [tmp_path]) == first


@given(st.lists(st.sampled_from(["a = 1", "", "b = '\\r'"]), max_size=6), st.sampled_from(["\r\n", "\r"]))
def test_line_endings_make_no_difference(lines: list[str], ending: str) -> None:
    unix, other = ("".join(line + end for line in lines).encode() for end in ("\n", ending))
    assert sources.normal(other) == sources.normal(unix) == unix


@pytest.mark.parametrize("text", ["", "abc", "Z" * 64, "a" * 65, "a" * 63 + "\n", "\x1b" * 64])
def test_what_is_no_digest_is_none(text: str) -> None:
    assert checked_digest(text) == ""
