"""The package of methods as if it were installed: its modules and metadata in a folder, and nothing downloaded."""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from methods import registry

HERE = Path(__file__).parent
PACKAGE = "muster_methods"


@pytest.fixture(scope="session")
def methods_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and its dist-info, to be put on PYTHONPATH."""
    folder = tmp_path_factory.mktemp("site")
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    shutil.copytree(HERE / "src" / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    info = folder / f"{PACKAGE}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines: list[str] = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def installed_methods(methods_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapping[str, str]]:
    """The package installed for this test, in this process and in those that get these variables."""
    monkeypatch.syspath_prepend(str(methods_folder))
    path = os.pathsep.join(filter(None, (str(methods_folder), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)
    registry.installed.cache_clear()
    yield {"PYTHONPATH": path}
    registry.installed.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
