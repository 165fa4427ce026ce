"""Copies of a module and of its task, to do with as one likes: what evaluation or a trial keeps in them is made without
gradients, in another mode or for other examples, and what comes after would take it for its own.

What cannot be reached from the module's or the task's attributes is not copied: globals, class attributes, closures,
`functools.cache`. Data sets are not either, nor are tensors and arrays of a task above `COPIED_BYTES_MAX`.
"""

from __future__ import annotations

import copy
from collections import deque
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

from muster.task.loading import is_map_style
from muster.task.task import Task

COPIED_BYTES_MAX = 1 << 28  # of one tensor of a task; what is larger is taken for its data
_DEPTH_MAX = 8
_PARTS_MAX = 1000  # a longer list holds examples
_ERRORS = (RuntimeError, MemoryError, TypeError, NotImplementedError)


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module | None:
    """The copy, with what the module keeps outside its `state_dict` too; None where it cannot be copied or there is no
    room for two. `memo` is what stands for what in it, as `copy.deepcopy` has it."""
    # What training left with a graph behind it cannot be copied, and evaluation needs no graph.
    kept = (value for module in model.modules() for value in vars(module).values())
    memo = {} if memo is None else memo
    memo |= {id(value): value.detach() for value in kept if isinstance(value, Tensor) and not value.is_leaf}
    try:
        return copy.deepcopy(model, memo)
    except _ERRORS:
        return None


class Spared(NamedTuple):
    """Copies of a task and its module."""

    task: Task
    model: nn.Module
    shared: tuple[str, ...]  # attributes of the task that could not be copied


def spared(task: Task, model: nn.Module) -> Spared:
    """A task and a module that can be worked with in place of these, which stay as they are. What of the task cannot be
    copied the two tasks share; of what cannot be copied at all the original is given."""
    try:
        double = copy.copy(task)
    except _ERRORS:
        double = task
    memo: dict[int, Any] = {id(task): double}
    shared: list[Any] = []
    _find_shared(vars(task), shared, _DEPTH_MAX)
    of_model = {id(each) for each in (*model.parameters(), *model.buffers())}
    memo |= {id(each): each for each in shared if id(each) not in of_model}
    known = dict(memo)  # a copy that fails half-way leaves halves in its own
    # `copy.deepcopy` enters a memo under its own address. No other object may come to lie there, and be taken for it.
    alive = [memo, known]
    tried = copied(model, known)
    if tried is None:
        tried = memo[id(model)] = model
    else:
        memo = known
    uncopied: list[str] = []
    for name, value in vars(task).items() if double is not task else ():
        known = dict(memo)
        alive.append(known)
        try:
            vars(double)[name] = copy.deepcopy(value, known)
        except Exception:  # whatever the user's own objects raise when they are copied
            uncopied.append(name)
            continue
        memo = known
    return Spared(double, tried, tuple(uncopied))


def _find_shared(value: Any, found: list[Any], depth: int) -> None:
    """What stands for itself in a copy: data sets, and what is as large as one."""
    if isinstance(value, nn.Module | str | bytes | type):
        return
    if isinstance(value, Tensor | np.ndarray):
        if value.nbytes > COPIED_BYTES_MAX:
            found.append(value)
    elif isinstance(value, dict | list | tuple | set | deque):
        if len(value) > _PARTS_MAX:
            found.append(value)
        elif depth:
            for each in value.values() if isinstance(value, dict) else value:
                _find_shared(each, found, depth - 1)
    elif isinstance(value, Dataset) or is_map_style(value):
        found.append(value)
    elif depth and isinstance(inner := getattr(value, "__dict__", None), dict):
        _find_shared(inner, found, depth - 1)


def without_inference(task: Task) -> None:
    """Makes tensors of inference mode that the task keeps, in its attributes and in lists, tuples, dicts and objects in
    them, plain ones: autograd takes no others, and they would spoil every training after the evaluation."""
    _plain(vars(task), set(), _DEPTH_MAX)


def _plain(value: Any, seen: set[int], depth: int) -> Any:
    """What is to stand in the value's place: itself, unless it is such a tensor or a tuple with one in it."""
    if isinstance(value, Tensor):
        if not value.is_inference():
            return value
        plain = value.detach().clone()
        return nn.Parameter(plain, value.requires_grad) if isinstance(value, nn.Parameter) else plain
    if not depth or id(value) in seen or isinstance(value, type):
        return value
    seen.add(id(value))
    if isinstance(value, tuple):
        parts = [_plain(each, seen, depth - 1) for each in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        for index, each in enumerate(value if len(value) <= _PARTS_MAX else ()):
            value[index] = _plain(each, seen, depth - 1)
        return value
    inner = value if isinstance(value, dict) else getattr(value, "__dict__", None)
    if isinstance(inner, dict) and len(inner) <= _PARTS_MAX:
        for key, each in list(inner.items()):
            if (new := _plain(each, seen, depth - 1)) is not each:
                inner[key] = new
    return value
