"""From a task's name to the task: `load_task("examples.digits:Digits", folders, options)`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from muster.errors import ConfigError, TaskError
from muster.plugins import nearest
from muster.task.shadowed import hidden, not_meant
from muster.task.task import Task


def load_task(
    reference: str, folders: Iterable[Path | str] = (), options: Mapping[str, Any] | None = None
) -> Task:
    """An instance of the task class that `reference` ("package.module:Class") names, with its `options` set.

    `folders` go to the *end* of `sys.path` (and stay there, for what the task imports later), so that a
    folder of the user's own named `peer` or `protos` never stands in for ours.

    Raises `ConfigError`: "task.malformed", "task.not_found" (no such module or class), "task.shadowed" (a package of
    that name hides it), "task.not_a_task";
    `TaskError` "task.failed_to_load" with its traceback if the module or the class raises.
    """
    from muster.task.defaults import (
        code_of,
    )  # loads torch, which finding a task's folder does not need

    module_name, class_name = _names(reference)
    searched = _search(folders)
    with code_of(module_name):
        found = _class(_module(reference, module_name, searched), reference, class_name, searched)
        try:
            task = found()
        except Exception as error:
            raise _failed(reference, error) from error
    task.options = MappingProxyType(dict(options or {}))
    return task


def lies_in(reference: str, folders: Iterable[Path | str]) -> bool | None:
    """Whether `load_task` with these folders would import the task's module from one of them, and not from where
    packages are installed; None if it would find none. Nothing is imported.

    It looks at the top package alone: what is in it, it brings itself. Raises `ConfigError` "task.malformed".
    """
    module_name, _ = _names(reference)
    searched = _search(folders)
    top = module_name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)  # of a module without a parent, so none is imported for it
    except ValueError:
        return False  # a module of this process that came from nowhere, such as __main__
    if spec is None:
        return None
    if spec.submodule_search_locations is not None:
        homes = [Path(location).parent for location in spec.submodule_search_locations]
    else:
        homes = [Path(spec.origin).parent] if spec.has_location and spec.origin else []
    return bool(homes) and all(str(home.resolve()) in searched for home in homes)


def check_name(reference: str) -> None:
    """Raises `ConfigError` "task.malformed"."""
    _names(reference)


def _names(reference: str) -> tuple[str, str]:
    module_name, _, class_name = reference.partition(":")
    if not (class_name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise ConfigError(
            "task.malformed", f"{reference!r} does not name a task", fix="write 'package.module:Class'"
        )
    return module_name, class_name


def _search(folders: Iterable[Path | str]) -> list[str]:
    """Lets modules be found in the folders, after everything else."""
    searched = [str(Path(folder).resolve()) for folder in folders]
    sys.path.extend(folder for folder in dict.fromkeys(searched) if folder not in sys.path)
    importlib.invalidate_caches()
    return searched


def _module(reference: str, module_name: str, searched: list[str]) -> ModuleType:
    if (shadowed := not_meant(module_name, searched)) is not None:
        raise shadowed
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # The task's own module, or a package above it, is not there; anything else is missing *in* the task.
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            if (shadowed := hidden(module_name, searched)) is not None:
                raise shadowed from error
            raise ConfigError(
                "task.not_found",
                f"task {reference!r}: there is no module {error.name!r} on this machine",
                cause=f"looked for in installed packages and in {', '.join(searched) or 'no task folders'}",
                fix="install the task here, or name its folder in task_folders",
            ) from error
        raise _failed(reference, error) from error
    except Exception as error:
        raise _failed(reference, error) from error


def _class(module: ModuleType, reference: str, class_name: str, searched: list[str]) -> type[Task]:
    found = getattr(module, class_name, None)
    own = tuple(sorted(name for name, value in vars(module).items() if _is_task(value)))
    if found is None:
        if (shadowed := hidden(module.__name__, searched)) is not None:
            raise shadowed
        guess = nearest(class_name, own)
        raise ConfigError(
            "task.not_found",
            f"task {reference!r}: {module.__name__} has no class {class_name!r}"
            + (f" (did you mean {guess!r}?)" if guess else ""),
            cause=f"tasks in {module.__file__}: {', '.join(own) or 'none'}",
            fix="correct the name after the colon",
        )
    if not isinstance(found, type) or not issubclass(found, Task):
        raise ConfigError(
            "task.not_a_task",
            f"task {reference!r}: {class_name} is not a subclass of muster.Task",
            cause=f"tasks in {module.__file__}: {', '.join(own) or 'none'}",
            fix=f"class {class_name}(muster.Task): ...",
        )
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise ConfigError(
            "task.not_a_task",
            f"task {reference!r}: {class_name} lacks {' and '.join(missing)}",
            cause="every task has to say its model and its training data",
            fix=f"define {' and '.join(f'{name}()' for name in missing)} in {module.__file__}",
        )
    return found


def is_map_style(data: object) -> bool:
    """Whether examples are had by index, so that reading them uses nothing up."""
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


def keep_data(task: Task) -> None:
    """Has this instance load its data once; what can be read only once is loaded anew each time."""
    for name in ("train_data", "test_data"):
        vars(task)[name] = _keeping(getattr(task, name))


def _keeping(load: Callable[..., Any]) -> Callable[..., Any]:
    kept = dict[str, Any]()

    def load_once(site: Any, *more: Any, **named: Any) -> Any:
        if more or named:  # the task's own call of it, for other data
            return load(site, *more, **named)
        if site.name not in kept:
            data = load(site)
            if not is_map_style(data):
                return data
            kept[site.name] = data
        return kept[site.name]

    vars(load_once)["__wrapped__"] = load
    return load_once


def _is_task(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Task) and not inspect.isabstract(value)


def _failed(reference: str, error: Exception) -> TaskError:
    return TaskError(
        "task.failed_to_load",
        f"task {reference!r} cannot be loaded",
        cause=f"{type(error).__name__}: {error}",
        fix="mend the task; its traceback is with this error",
        traceback="".join(traceback.format_exception(error)),
    )
