"""One trial of a task's own training loop (`Task.fit`) before it trains: what it raises, or reports, or makes of the
module, is known before any training was paid for.

Nobody but the loop knows how long it takes, so its data bound it: `train_data` and `test_data` give the first batch
alone, and `[train]` one pass or one step. One that has examples from elsewhere is stopped at its next step, or word of
progress, once `STOP_SECONDS` are over.

A loop that fails may only need more examples than a batch. So it is asked again, with all data, of which a `DataLoader`
gives one batch each time. What it raises before its first step or word of progress, training would raise too, and what
is a mistake of its program (`_MISTAKES`) at any time. Anything else may still come of so few examples, and is let be.

Everything happens on copies (`muster.task.copies.spared`); of whom they cannot be made, no trial is made. What a loop
keeps elsewhere, in files or in globals, stays, unless it looks at `FitContext.trial`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from muster.model.initial import seed_generators
from muster.seeds import derive_seed
from muster.task.copies import spared
from muster.task.fitreport import checked
from muster.task.loading import is_map_style
from muster.task.task import FitContext, FitReport, Task
from muster.task.trial import kept, run

STOP_SECONDS = 10.0

_MISTAKES = (TypeError, NameError, AttributeError, ImportError)
_ROOM = (MemoryError, torch.OutOfMemoryError)  # for two modules at once; training needs one


@dataclass(frozen=True, kw_only=True)
class FitTried:
    """`ended`: the loop gave `report`, None where it leaves training to the run's algorithm. If not, `told` why."""

    ended: bool
    report: FitReport | None = None
    told: str = ""


class _Enough(BaseException):
    """Ends a loop from within; no `except Exception` of the loop's own takes it for a failure."""


def has_own_fit(task: Task) -> bool:
    """Whether the task overrides `Task.fit`."""
    return type(task).fit is not Task.fit


def try_fit(
    task: Task,
    model: nn.Module,
    data: Dataset[Any] | None,
    context: FitContext,
    *,
    who: str,
    check: Callable[[nn.Module], None],
) -> FitTried:
    """`data` is what `train_data` gives at this site, None where it fails; `who` names the loop ("my.task:Task.fit");
    `check` raises if it made another module of the one that it was given.

    Raises `TaskError` "task.failed", "task.bad_report", and what `check` raises.
    """
    if data is not None and not is_map_style(data):
        return FitTried(ended=False, told="its examples can be read only once")
    trial = _Trial(task, model, data, context)
    if (missing := trial.not_copied()) is not None:
        return FitTried(ended=False, told=f"{missing} cannot be copied")
    for batch in (context.train["batch_size"], None):
        try:
            with trial.loop(batch) as (loop, tried):
                found: Any = loop()
        except _Enough:
            return FitTried(ended=False, told=f"it was stopped after {STOP_SECONDS:.0f} s")
        except _ROOM as error:
            return FitTried(ended=False, told=f"there is no room for two models: {error}")
        except Exception as error:  # the user's own
            if batch is not None:
                continue
            if isinstance(error, _MISTAKES) or not trial.signs:
                run("fit", partial(_raise, error))
            return FitTried(
                ended=False, told=f"it fails on so few examples, with {type(error).__name__}: {error}"
            )
        report = None if found is None else checked(found, who)
        check(tried)
        return FitTried(ended=True, report=report)
    raise AssertionError("unreachable: with all data it ends, or fails")


def _raise(error: Exception) -> None:
    raise error


class _Trial:
    """`signs`: of life in the newest loop, steps of optimizers and words of progress."""

    def __init__(self, task: Task, model: nn.Module, data: Dataset[Any] | None, context: FitContext) -> None:
        self._task = task
        self._model = model
        self._data = data
        self._context = context
        self.signs = 0

    def not_copied(self) -> str | None:
        double, model, shared = spared(self._task, self._model)
        if model is self._model:
            return "the module"
        return "the task" if double is self._task else f"the task's {shared[0]!r}" if shared else None

    @contextmanager
    def loop(self, batch: int | None) -> Generator[tuple[Callable[[], object], nn.Module]]:
        """The loop to be called, on copies, and the module that it trains; of each dataset it has one batch of that
        size, or all, one batch at a time."""
        double, model, _ = spared(self._task, self._model)
        for name in ("train_data", "test_data"):
            found = self._data if name == "train_data" else None
            vars(double)[name] = self._loading(double, name, found, batch)
        began = time.monotonic()
        self.signs = 0

        def sign(*_: object) -> None:
            self.signs += 1
            if time.monotonic() - began >= STOP_SECONDS:
                raise _Enough

        train = self._context.train if batch is None else _shortened(self._context.train)
        context = replace(self._context, progress=sign, train=train, trial=True)
        hook = register_optimizer_step_post_hook(sign)
        seed_generators(derive_seed(context.seed, "trial"))
        try:
            with (
                nullcontext() if self._data is None else kept(self._data),
                nullcontext() if batch is not None else _one_batch_each(),
            ):
                yield lambda: double.fit(model, context), model
        finally:
            hook.remove()

    def _loading(
        self, double: Task, name: str, found: Dataset[Any] | None, batch: int | None
    ) -> Callable[..., Any]:
        own = _own(self._task, double, name)

        def load(site: Any, *more: Any, **named: Any) -> Any:
            asked = found is not None and site.name == self._context.site.name and not (more or named)
            data = found if asked else own(site, *more, **named)
            return data if batch is None or not is_map_style(data) else _first(data, batch)

        return load


def _own(task: Task, double: Task, name: str) -> Callable[..., Any]:
    """The task's method that loads data, of the double and keeping nothing."""
    load = getattr(task, name)
    load = getattr(load, "__wrapped__", load)
    if inspect.ismethod(load) and load.__self__ is task:
        return cast(Callable[..., Any], load.__func__.__get__(double))
    return cast(Callable[..., Any], load)


@contextmanager
def _one_batch_each() -> Generator[None]:
    """Every pass over a `DataLoader` ends after its first batch."""
    whole = DataLoader.__iter__

    def first(loader: DataLoader[Any]) -> Iterator[Any]:
        return islice(whole(loader), 1)

    DataLoader.__iter__ = first  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        DataLoader.__iter__ = whole  # type: ignore[method-assign]


def _first(data: Any, count: int) -> Any:
    """The first examples, as the same kind of dataset where that has a public form."""
    count = min(count, len(data))
    if type(data) is TensorDataset:
        return TensorDataset(*(tensor[:count].clone() for tensor in data.tensors))
    if isinstance(data, list | tuple | Tensor):
        return data[:count]
    return Subset(data, range(count))


def _shortened(train: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**train, "steps": 1} if train.get("steps") is not None else {**train, "epochs": 1}
