"""Are these packages the ones that were installed?

Plain names such as `peer` or `protos` can be shadowed by a folder of the user's own, and another distribution may write
over them without a word from pip. So every start compares where the packages are found, and what their files hold, with
what the installation recorded. Editable installations and bare checkouts are checkouts: there the packages have only to
lie together, beside the `pyproject.toml` of this project.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, PackageNotFoundError, packages_distributions
from pathlib import Path

from muster.errors import ConfigError

DISTRIBUTION = "muster-fl"
PACKAGES = (
    "aggregators",
    "cli",
    "compressors",
    "coordinator",
    "exchange",
    "methods",
    "muster",
    "peer",
    "protos",
    "simulator",
)
FIX = f"python -m venv ENV && ENV/bin/pip install {DISTRIBUTION}: one environment for Muster alone"


@dataclass(frozen=True, kw_only=True)
class Installation:
    """`checkout` is True for an editable installation too."""

    root: Path
    checkout: bool


def check_installation() -> Installation:
    """Where Muster lies. Imports none of its packages.

    Raises `ConfigError`: "installation.incomplete" (a package is not found), "installation.shadowed" (one is found
    elsewhere than the others, or than the installation), "installation.overwritten" (a file is not what was installed).
    """
    try:
        distribution = Distribution.from_name(DISTRIBUTION)
    except PackageNotFoundError:
        distribution = None
    found = {name: location(name) for name in PACKAGES}
    missing = sorted(name for name, place in found.items() if place is None)
    if missing:
        raise ConfigError(
            "installation.incomplete",
            f"{', '.join(missing)} cannot be found: Muster is not installed whole",
            fix=FIX,
        )
    return check_locations({name: place for name, place in found.items() if place is not None}, distribution)


def check_locations(found: Mapping[str, Path], distribution: Distribution | None) -> Installation:
    """As `check_installation`, of packages found in these folders (each the package's own)."""
    home = found["muster"].parent
    if _is_checkout(home):
        _require_together(found, home, "Muster runs from the checkout there")
        return Installation(root=home, checkout=True)
    if distribution is None:
        raise ConfigError(
            "installation.incomplete",
            f"Muster runs from {home}, where no installation of {DISTRIBUTION} is recorded",
            cause="its files were copied there by hand, or its metadata was removed",
            fix=FIX,
        )
    root = Path(str(distribution.locate_file(""))).resolve()
    _require_together(found, root, f"{DISTRIBUTION} {distribution.version} is installed there")
    _require_unchanged(distribution)
    return Installation(root=root, checkout=False)


def check_together(packages: Iterable[str]) -> None:
    """Checks that these packages of Muster are imported from where this one is. Quick, for programs that import Muster.

    Raises `ConfigError` "installation.shadowed".
    """
    root = Path(__file__).resolve().parents[2]
    found = {name: place for name in packages if (place := location(name)) is not None}
    _require_together(found, root, "Muster runs from there")


def owned(package: str) -> Path | None:
    """Where this top-level package lies if it is Muster's own (in a checkout, `examples` and `tests` are too)."""
    place = location(package)
    root = Path(__file__).resolve().parents[2]
    if place is None or place != root / package:
        return None
    return place if package in PACKAGES or _is_checkout(root) else None


def location(package: str) -> Path | None:
    """The folder, or the file, that `import package` takes, or took; None if it finds nothing."""
    spec = _spec(package)
    if spec is not None and spec.origin is not None:
        origin = Path(spec.origin).resolve()
        return origin if spec.submodule_search_locations is None else origin.parent
    return next(iter(portions_of(package)), None)  # a folder without __init__.py


def portions_of(package: str) -> list[Path]:
    """The folders in which its modules are looked for: several, where they have no __init__.py."""
    spec = _spec(package)
    return [] if spec is None else [Path(place).resolve() for place in spec.submodule_search_locations or ()]


def _spec(package: str) -> ModuleSpec | None:
    module = sys.modules.get(package)
    return module.__spec__ if module is not None else importlib.util.find_spec(package)


def _is_checkout(folder: Path) -> bool:
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
        return bool(tomllib.loads(text).get("project", {}).get("name") == DISTRIBUTION)
    except (OSError, ValueError):
        return False


def _require_together(found: Mapping[str, Path], root: Path, why: str) -> None:
    strays = {name: place for name, place in found.items() if place != root / name}
    if strays:
        listed = ", ".join(f"{name} is loaded from {place}" for name, place in sorted(strays.items()))
        raise ConfigError(
            "installation.shadowed",
            f"{listed}, but belongs in {root}",
            cause=f"{why}; something else of that name comes before it on sys.path",
            fix=f"rename yours, or start in another folder, without PYTHONPATH; or: {FIX}",
        )


def _require_unchanged(distribution: Distribution) -> None:
    changed: list[str] = []
    for file in distribution.files or ():
        if file.suffix == ".py" and file.parts[0] in PACKAGES and file.hash is not None:
            try:
                body = Path(str(distribution.locate_file(file))).read_bytes()
            except OSError:
                body = b""
            digest = (
                base64.urlsafe_b64encode(hashlib.new(file.hash.mode, body).digest()).rstrip(b"=").decode()
            )
            if digest != file.hash.value:
                changed.append(str(file))
    if not changed:
        return
    tops = {Path(file).parts[0] for file in changed}
    owners = packages_distributions()
    others = sorted({owner for top in tops for owner in owners.get(top, ()) if owner != DISTRIBUTION})
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    raise ConfigError(
        "installation.overwritten",
        f"{changed[0]}{more}: not what {DISTRIBUTION} {distribution.version} installed",
        cause=f"{', '.join(others)} has files in the same folders"
        if others
        else "the files were edited or written over after the installation",
        fix=f"pip install --force-reinstall --no-deps {DISTRIBUTION}" + (f", and {FIX}" if others else ""),
    )
