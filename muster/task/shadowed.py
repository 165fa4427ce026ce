"""A task's module that a package of the same name hides.

Task folders are searched last, so that nothing in them stands in for a package of Muster's. Then a user's own folder
named `examples` or `peer` is never looked into, which has to be said: the module that is found instead is another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from muster.errors import ConfigError
from muster.runtime.installation import location, owned, portions_of


def not_meant(module_name: str, folders: Iterable[str]) -> ConfigError | None:
    """If importing the module would give one of Muster's own while a task folder has one of that name."""
    place, yours = _places(module_name, folders)
    if yours is None or owned(_top(module_name)) is None:
        return None
    inside = yours.joinpath(*module_name.split(".")[1:])
    return _told(module_name, place, yours) if inside.is_dir() or _file(inside).is_file() else None


def hidden(module_name: str, folders: Iterable[str]) -> ConfigError | None:
    """If a task folder has a package (or file) of that name which is not the one that is imported: why the module, or a
    name in it, may not have been found."""
    place, yours = _places(module_name, folders)
    return None if yours is None else _told(module_name, place, yours)


def _places(module_name: str, folders: Iterable[str]) -> tuple[Path | None, Path | None]:
    """Where the module's top package is imported from, and what a task folder has of that name, if that is another."""
    place = location(_top(module_name))
    if place is None:
        return None, None
    portions = {place, *portions_of(_top(module_name))}
    for folder in folders:
        for yours in (Path(folder, _top(module_name)), _file(Path(folder, _top(module_name)))):
            if yours.exists() and yours.resolve() not in portions:
                return place, yours
    return place, None


def _told(module_name: str, place: Path | None, yours: Path) -> ConfigError:
    top = _top(module_name)
    whose = "Muster's own package" if owned(top) is not None else "an installed package"
    return ConfigError(
        "task.shadowed",
        f"{top!r} is {whose}, at {place}, and hides {yours}",
        cause="task folders are searched after what is installed, so that nothing in them stands in for it",
        fix=f"rename {yours}, and the task to match: my_{module_name}:Class",
    )


def _top(module_name: str) -> str:
    return module_name.partition(".")[0]


def _file(path: Path) -> Path:
    return path.with_name(f"{path.name}.py")
