"""Muster: one PyTorch model, trained across machines that keep their data.

What a user imports stands here. Each name is loaded when it is first asked for, so that `import muster`
costs nothing and no command pays for what it does not use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muster.errors import MusterError
    from muster.spec.load import load_spec
    from muster.spec.model import RunSpec
    from muster.task.task import FitContext, FitReport, Site, Task

    __version__: str

__all__ = [
    "FitContext",
    "FitReport",
    "MusterError",
    "RunSpec",
    "Site",
    "Task",
    "__version__",
    "load_spec",
]

_HOME = {
    "FitContext": "muster.task.task",
    "FitReport": "muster.task.task",
    "MusterError": "muster.errors",
    "RunSpec": "muster.spec.model",
    "Site": "muster.task.task",
    "Task": "muster.task.task",
    "load_spec": "muster.spec.load",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from muster.runtime.version import muster_version

        value: Any = muster_version()
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'muster' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
