"""Which source code a task is made of, as one digest: two machines with the same digest run the same code.

It covers every .py file of the outermost regular package that holds the task's module (of a module in no package, that
file), and every module that loading the task imported from the task folders. Installed libraries are not in it, nor
what a task imports only later from elsewhere than its package. Line endings make no difference.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

from blake3 import blake3

from muster.runtime.installation import PACKAGES
from muster.runtime.installed import LIBRARY_FOLDERS

FILES_MAX = 20_000  # of a package; what lies beyond is not looked at
DIGEST = re.compile(r"[0-9a-f]{64}")


def source_digest(reference: str, folders: Iterable[Path | str] = ()) -> str:
    """Of the task that `load_task` has loaded; "" if it has no source files. The first answer of a process stands: it
    is of the code that the process goes on with, whatever becomes of the files."""
    return _digest(reference, tuple(str(Path(folder).resolve()) for folder in folders))


def checked_digest(text: str) -> str:
    """A digest that came from outside, or "" if it is not one."""
    return text if DIGEST.fullmatch(text) else ""


def normal(source: bytes) -> bytes:
    """With the line endings of Unix."""
    return source.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


@cache
def _digest(reference: str, folders: tuple[str, ...]) -> str:
    module_name = reference.partition(":")[0]
    files = dict(_package(module_name))
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and name.partition(".")[0] not in PACKAGES and _lies_in(file, folders):
            files.setdefault(_path(name, module), Path(file))
    hasher = blake3()
    for name, path in sorted(files.items()):
        try:
            body = path.read_bytes()
        except OSError:
            continue
        lines = normal(body)
        hasher.update(f"{name}\0{len(lines)}\0".encode() + lines)
    return hasher.hexdigest() if files else ""


def _package(module_name: str) -> Iterator[tuple[str, Path]]:
    parts = module_name.split(".")
    above = (sys.modules.get(".".join(parts[:count])) for count in range(1, len(parts) + 1))
    outermost = next((each for each in above if getattr(each, "__file__", None)), None)
    if outermost is None or not str(outermost.__file__).endswith(".py"):
        return
    if not hasattr(outermost, "__path__"):
        yield _path(outermost.__name__, outermost), Path(str(outermost.__file__))
        return
    root, within, count = Path(str(outermost.__file__)).parent, outermost.__name__.replace(".", "/"), 0
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if name.isidentifier() and name != "__pycache__")
        for name in sorted(names):
            if name.endswith(".py") and count < FILES_MAX:
                count += 1
                path = Path(folder) / name
                yield f"{within}/{path.relative_to(root).as_posix()}", path


def _lies_in(file: str, folders: tuple[str, ...]) -> bool:
    path = Path(file).resolve()
    return path.suffix == ".py" and any(
        path.is_relative_to(folder) and not LIBRARY_FOLDERS & {*path.relative_to(folder).parts}
        for folder in folders
    )


def _path(name: str, module: ModuleType) -> str:
    """Of a module from its outermost package down, whatever machine that lies on."""
    return name.replace(".", "/") + ("/__init__.py" if hasattr(module, "__path__") else ".py")
