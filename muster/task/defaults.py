"""What a task sets for all of torch: it holds for the task's own code, and for no other code in the process.

A task may call `torch.set_default_dtype`, `torch.set_default_device` or `torch.set_grad_enabled` where it likes, at the
import of its module too. Whatever it left is there again when its code next runs, and away when ours does; gradients
alone are on whenever its code begins, or one evaluation would end all training after it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from muster.task.task import Task

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Defaults:
    dtype: torch.dtype = torch.float32
    device: torch.device = _CPU

    @classmethod
    def present(cls) -> _Defaults:
        return cls(torch.get_default_dtype(), torch.get_default_device())

    def set(self) -> None:
        torch.set_default_dtype(self.dtype)
        if torch.get_default_device() != self.device:
            torch.set_default_device(None if self.device == _CPU else self.device)


_left: dict[str, _Defaults] = {}  # by the name of the task's module


@contextmanager
def code_of(task: Task | str) -> Generator[None]:
    """Around code of the task, or of the module of that name."""
    module = task if isinstance(task, str) else type(task).__module__
    before, gradients = _Defaults.present(), torch.is_grad_enabled()
    _left.get(module, before).set()
    torch.set_grad_enabled(True)
    try:
        yield
    finally:
        _left[module] = _Defaults.present()
        before.set()
        torch.set_grad_enabled(gradients)
