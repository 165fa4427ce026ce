"""Frameworks that one worker process needed, imported by the next one while it waits.

A task's own code is never imported ahead: it may be edited until the run begins. Nobody edits these.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from typing import Any

FRAMEWORKS = frozenset({
    "PIL", "accelerate", "cv2", "datasets", "joblib", "lightning", "matplotlib", "monai", "mpmath", "networkx",
    "numpy", "pandas", "pyarrow", "safetensors", "scipy", "sklearn", "sympy", "timm", "tokenizers", "torch",
    "torchaudio", "torchvision", "transformers",
})  # fmt: skip


def frameworks(args: dict[str, Any], progress: Callable[[float], None]) -> dict[str, Any]:  # noqa: ARG001  # every job's form
    """Their modules that this process has imported, in the order in which it did."""
    return {"modules": [name for name in sys.modules if name.partition(".")[0] in FRAMEWORKS]}


def preload(args: dict[str, Any], progress: Callable[[float], None]) -> dict[str, Any]:  # noqa: ARG001  # every job's form
    for name in args["modules"]:
        if name.partition(".")[0] in FRAMEWORKS and name not in sys.modules:
            with contextlib.suppress(
                Exception
            ):  # a module that only its own package can import, or that is broken
                importlib.import_module(name)
    return {}
