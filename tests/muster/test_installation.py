"""The check of the installation, on installations made for it."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from muster.errors import ConfigError
from muster.runtime.installation import PACKAGES, check_installation, check_locations, location

ROOT = Path(__file__).parents[2]


def install(root: Path) -> Distribution:
    """Every package with one file, and the record of it."""
    record: list[str] = []
    for name in PACKAGES:
        (root / name).mkdir(parents=True)
        body = f"# {name}\n".encode()
        (root / name / "__init__.py").write_bytes(body)
        digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()
        record.append(f"{name}/__init__.py,sha256={digest},{len(body)}")
    info = root / "muster_fl-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: muster-fl\nVersion: 1.0\n")
    (info / "RECORD").write_text("\n".join([*record, "muster_fl-1.0.dist-info/RECORD,,"]))
    return Distribution.at(info)


def places(root: Path) -> dict[str, Path]:
    return {name: root / name for name in PACKAGES}


def refusal(found: dict[str, Path], distribution: Distribution | None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_locations(found, distribution)
    return caught.value


def test_this_checkout_is_fine() -> None:
    found = check_installation()
    assert found.checkout and found.root == ROOT


def test_an_installation_whose_packages_lie_where_it_lies_is_fine(tmp_path: Path) -> None:
    found = check_locations(places(tmp_path), install(tmp_path))
    assert found.root == tmp_path and not found.checkout


def test_a_bare_checkout_needs_no_installation(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "muster-fl"\n')
    assert check_locations(places(tmp_path), None).checkout


@pytest.mark.parametrize("kind", ["installed", "checkout"])
def test_a_package_from_elsewhere_is_named_with_its_place(tmp_path: Path, kind: str) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    distribution = install(root)
    if kind == "checkout":
        (root / "pyproject.toml").write_text('[project]\nname = "muster-fl"\n')
    error = refusal({**places(root), "peer": other / "peer"}, distribution)
    assert error.id == "installation.shadowed"
    assert error.message == f"peer is loaded from {other}/peer, but belongs in {root}"


def test_our_packages_under_a_foreign_project_are_no_checkout(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert refusal(places(tmp_path), None).id == "installation.incomplete"


def test_another_copy_than_the_installed_one_is_refused(tmp_path: Path) -> None:
    distribution = install(tmp_path / "site")
    error = refusal(places(tmp_path / "copied"), distribution)
    assert error.id == "installation.shadowed" and "muster is loaded from" in error.message


@pytest.mark.parametrize("change", ["overwritten", "removed"])
def test_a_file_that_is_not_what_was_installed_is_named(tmp_path: Path, change: str) -> None:
    distribution = install(tmp_path)
    file = tmp_path / "protos" / "__init__.py"
    if change == "removed":
        file.unlink()
    else:
        file.write_text("# somebody else's\n")
    error = refusal(places(tmp_path), distribution)
    assert error.id == "installation.overwritten" and "protos/__init__.py" in error.message


def test_a_folder_of_the_users_own_is_caught_from_the_outside(tmp_path: Path) -> None:
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "__init__.py").write_text("")
    code = "from muster.runtime.installation import check_installation\ncheck_installation()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    ended = subprocess.run(
        [sys.executable, "-P", "-c", code], check=False, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert f"[installation.shadowed] peer is loaded from {tmp_path}/peer" in ended.stderr


def test_what_is_not_there_has_no_location() -> None:
    assert location("no_package_of_this_name") is None
    assert location("muster") == ROOT / "muster"
