"""The rules of the house that no single part can keep by itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Container, Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(sys.executable).parent


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    done = run(sys.executable, "-c", f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)")
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stderr.splitlines()}


def wheel_packages() -> list[str]:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return list(pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])


def test_imports_only_go_down() -> None:
    done = run(SCRIPTS / "lint-imports", "--no-cache")
    assert done.returncode == 0, done.stdout


def test_the_import_rules_name_every_package_of_the_wheel() -> None:
    packages = wheel_packages()
    rules = (ROOT / ".importlinter").read_text()
    named = rules.split("root_packages =")[1].split("include_external")[0].split()
    assert sorted(named) == sorted(packages)
    assert all((ROOT / package / "py.typed").exists() for package in packages)


def test_a_package_that_looks_up_is_found_out(tmp_path: Path) -> None:
    """The check itself can fail: a copy of the rules over two packages that import the wrong way round."""
    for name, text in (("low", "import high\n"), ("high", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    (tmp_path / "rules").write_text(
        "[importlinter]\nroot_packages =\n    low\n    high\n"
        "[importlinter:contract:floors]\nname = floors\ntype = layers\nlayers =\n    high\n    low\n"
    )
    done = run(SCRIPTS / "lint-imports", "--no-cache", "--config", tmp_path / "rules", cwd=tmp_path)
    assert done.returncode != 0
    assert "low is not allowed to import high" in done.stdout


def circles(packages: Iterable[Path]) -> list[list[str]]:
    """Files that import each other, however far round: also under TYPE_CHECKING and inside functions."""
    files: dict[str, Path] = {}
    for package in packages:
        for path in package.rglob("*.py"):
            parts = path.relative_to(package.parent).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for name, path in files.items():
        sorter.add(name, *(imported(path, files) - {name}))
    try:
        sorter.prepare()
    except CycleError as error:
        return [list(error.args[1])]
    return []


def imported(path: Path, files: Container[str]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{each.name}" for each in node.names)
            found.update(name if name in files else node.module for name in names)
    return {name for name in found if name in files}


def test_no_import_circle_between_files() -> None:
    assert circles(ROOT / name for name in (*wheel_packages(), "benchmarks", "examples", "tools")) == []


def test_an_import_circle_is_found_out(tmp_path: Path) -> None:
    package = tmp_path / "ring"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("from ring import two\n")
    (package / "two.py").write_text("def late():\n    from ring.three import name\n")
    hint = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ring.one\n"
    (package / "three.py").write_text(hint)
    assert set(circles([package])[0]) == {"ring.one", "ring.two", "ring.three"}


def test_generated_protobuf_code_is_that_of_the_proto_files(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "tools.protos", tmp_path)
    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_text() for path in (tmp_path / "protos" / "v1").iterdir()}
    kept = {path.name: path.read_text() for path in (ROOT / "protos" / "v1").glob("*_pb2*.py*")}
    assert sorted(made) == sorted(kept)
    different = [name for name in made if made[name] != kept[name]]
    assert not different, f"run `make protos`: {different}"


PAGES = [
    "README.md",
    "ARCHITECTURE.md",
    *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md"))),
]


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in ".")
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", text)
    linked = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in linked if not (ROOT / page).parent.joinpath(link).exists()]
    assert missing == []


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["run", "submit", "--help"], ["version"], ["completion", "bash"]],
)
def test_a_command_that_needs_nothing_loads_nothing_heavy(arguments: list[str]) -> None:
    loaded = modules_after(f"from cli.main import execute\nassert execute({arguments!r}) == 0")
    assert not loaded & {"grpc", "google", "sqlalchemy", "torch", "numpy"}


@pytest.mark.parametrize("module", ["muster", "peer.daemon", "coordinator.server", "simulator.processes"])
def test_torch_waits_until_there_is_a_tensor(module: str) -> None:
    assert "torch" not in modules_after(f"import {module}")


def test_ruff_finds_nothing() -> None:
    done = run(SCRIPTS / "ruff", "check", "--no-cache", ".")
    assert done.returncode == 0, done.stdout


def test_ruff_would_format_nothing() -> None:
    done = run(SCRIPTS / "ruff", "format", "--no-cache", "--check", ".")
    assert done.returncode == 0, done.stdout


def test_everything_that_the_tests_run_with_is_pinned() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *pyproject["dependencies"],
        *(each for group in pyproject["optional-dependencies"].values() for each in group),
    ]
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    names = {canonical(requirement) for requirement in wanted} - {"muster-fl"}
    assert names <= pinned
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


def canonical(requirement: str) -> str:
    name = requirement
    for mark in "[<>=!~; ":
        name = name.partition(mark)[0]
    return name.lower().replace("_", "-")
