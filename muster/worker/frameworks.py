"""Frameworks that one worker process needed, imported by the next one while it waits.

A task's own code is never imported ahead: it may be edited until the run begins. Nobody edits what is installed; a
module of the user's own that bears a framework's name is left to the run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from muster.runtime.installed import is_installed

FRAMEWORKS = frozenset({
    "PIL", "accelerate", "cv2", "datasets", "joblib", "lightning", "matplotlib", "monai", "mpmath", "networkx",
    "numpy", "pandas", "pyarrow", "safetensors", "scipy", "sklearn", "sympy", "timm", "tokenizers", "torch",
    "torchaudio", "torchvision", "transformers",
})  # fmt: skip


def frameworks(args: dict[str, Any], progress: Callable[[float], None]) -> dict[str, Any]:  # noqa: ARG001  # every job's form
    """Their modules that this process has imported, in the order in which it did."""
    return {"modules": [name for name in sys.modules if name.partition(".")[0] in FRAMEWORKS]}


def preload(args: dict[str, Any], progress: Callable[[float], None]) -> dict[str, Any]:  # noqa: ARG001  # every job's form
    """The job that imports frameworks ahead of a task; gives which were imported."""
    before = set(sys.modules)
    found: dict[str, bool] = {}
    for name in args["modules"]:
        top = name.partition(".")[0]
        if top in FRAMEWORKS and name not in sys.modules and found.setdefault(top, _comes_installed(top)):
            with contextlib.suppress(
                Exception
            ):  # a module that only its own package can import, or that is broken
                importlib.import_module(name)
    _forget_others(before)
    return {}


def _comes_installed(top: str) -> bool:
    """Whether `import top` takes an installed one, and not what lies before that on sys.path."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    places = [*(spec.submodule_search_locations or ())] or [spec.origin or ""]
    return all(is_installed(place) for place in places)


def _forget_others(before: set[str]) -> None:
    """A framework may itself import something by a name that the user has taken: the run reads that anew."""
    names = sys.modules.keys() - before
    others = {name for name in names if "." not in name and not _is_installed(sys.modules[name])}
    for name in names:
        if name.partition(".")[0] in others:
            del sys.modules[name]


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    places = [*getattr(module, "__path__", ())] if file is None else [file]
    return all(is_installed(place) for place in places)  # what Python has built in lies nowhere
