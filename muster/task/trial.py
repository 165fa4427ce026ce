"""One trial of a task before it is worked with: forward, backward and evaluation of one batch.

It finds in the first seconds what else costs round after round, and says it in a sentence with the user's own file and
line: no parameters to train, a model that grows, examples that the loss does not take, a loss that is no loss.
Nothing of it stays where it is done on copies (`muster.task.copies.spared`). Otherwise parameters are not stepped, and
gradients, buffers and plain attributes are put back. So are, always, the generators of random numbers that the data
carry. (The global ones are seeded anew before anything that counts.)
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeGuard, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from methods.kinds import ALGORITHMS
from muster import plugins
from muster.errors import MusterError, TaskError
from muster.task.evaluation import to_device
from muster.task.loading import is_map_style
from muster.task.task import Task
from muster.task.tracebacks import own_frame

_PLAIN = (bool, int, float, complex, str, bytes)  # attributes that a trial may change and that are put back
_VALUES_TOLD = 6
_NODES_MAX = 10_000
_PARTS_MAX = 100  # a longer list holds examples

T = TypeVar("T")


def asks_loss(algorithm: str) -> bool:
    """Whether training by this algorithm goes through `Task.loss`, so that it can be tried."""
    return _asks_gradient(algorithm) is not None


def _asks_gradient(algorithm: str) -> bool | None:
    """What the algorithm says that it asks of a task's loss: a gradient, the loss alone, or (None) maybe nothing."""
    found: bool | None = plugins.fact(ALGORITHMS, algorithm, "asks_gradient", None)
    return found


def tries_loss(task: Task, algorithm: str) -> bool:
    """The same for this task, which may have its own training loop."""
    return type(task).fit is Task.fit and asks_loss(algorithm)


def has_examples(data: Dataset[Any] | None) -> TypeGuard[Dataset[Any]]:
    """Whether there are some that can be read without using them up."""
    return data is not None and is_map_style(data) and len(cast(Any, data)) > 0


def run(what: str, work: Callable[[], T]) -> T:
    """What a method of the task gives. Raises `TaskError` "task.failed" naming the user's own line."""
    try:
        return work()
    except MusterError:
        raise
    except Exception as error:
        _failed(what, error, "")


def loaded(what: str, load: Callable[[], T]) -> T:
    """The data that a method of the task gives. Raises `TaskError` "task.data_failed" naming the user's own line."""
    try:
        return load()
    except MusterError:
        raise
    except Exception as error:
        _failed(what, error, "", error_id="task.data_failed")


def first_batch(data: Dataset[Any], size: int) -> Any:
    """The first examples of a map-style dataset as one batch, as training makes them. Raises `TaskError`
    "task.bad_examples", "task.data_failed"."""
    count = min(size, len(cast(Any, data)))
    with kept(data):
        examples = loaded(
            "the dataset's __getitem__", lambda: [cast(Any, data)[index] for index in range(min(2, count))]
        )
        try:
            return next(iter(DataLoader(Subset(data, range(count)), batch_size=count)))
        except Exception as error:
            raise TaskError(
                "task.bad_examples",
                f"the examples cannot be put together to a batch: the first is {form(examples[0])}"
                + (f", the second {form(examples[1])}" if len(examples) > 1 else ""),
                cause=f"{type(error).__name__}: {error}",
                fix="give every example as a tuple (input, target) of numbers or of tensors of the same shape",
                traceback="".join(traceback.format_exception(error)),
            ) from error


def try_loss(task: Task, model: nn.Module, batch: Any, *, algorithm: str = "", finite: bool = True) -> float:
    """One forward and, unless the algorithm asks for no gradient, one backward pass; gives the loss.

    The model is on its device and holds what it is to start from; `finite`: it has to give finite values.

    Raises `TaskError` "task.nothing_to_train", "task.growing_model", "task.bad_examples", "task.bad_loss",
    "task.failed".
    """
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    if not trained:
        raise TaskError(
            "task.nothing_to_train",
            "the model has no parameters to train",
            cause=f"it has {sum(1 for _ in model.parameters())} parameters, and none of them requires a gradient",
            fix="leave requires_grad of what is to be trained as it is, True",
        )
    device = next(iter(trained.values())).device
    batch = to_device(batch, device)
    if type(task).loss is Task.loss:
        _check_pair(batch)
    gradient = _asks_gradient(algorithm) is not False
    before = _shapes(model)
    with kept(model), kept(task):
        model.train(gradient)
        with torch.set_grad_enabled(gradient):
            loss = _loss(task, model, batch)
            _check_grown(before, _shapes(model))
            _check_loss(loss, batch, gradient=gradient, finite=finite)
            if gradient:
                _backward(loss, trained, batch, finite=finite)
    return float(loss.detach())


def try_evaluation(
    task: Task, model: nn.Module, data: Dataset[Any], *, batch_size: int = 256
) -> Mapping[str, Any]:
    """The default evaluation on the first batch of `data`; of a task that evaluates in its own way nothing is asked.

    Raises `TaskError` "task.failed", "task.bad_examples"."""
    if type(task).evaluate is not Task.evaluate:
        return {}
    from muster.task.evaluation import evaluate_classifier

    batch = first_batch(data, batch_size)
    if type(task).loss is Task.loss:
        _check_pair(batch)
    count = min(batch_size, len(cast(Any, data)))
    with kept(model), kept(task), kept(data):
        try:
            return evaluate_classifier(task, model, Subset(data, range(count)))
        except Exception as error:
            _failed("the evaluation", error, f"; a batch is {form(batch)}")


def form(value: Any) -> str:
    """What a batch or an example looks like: "a tuple of 2: float32 [32, 8], int64 [32]"."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"numpy {value.dtype} {list(value.shape)}"
    if isinstance(value, Mapping):
        parts = [f"{name!r}: {form(each)}" for name, each in list(value.items())[:_VALUES_TOLD]]
        return f"a dict of {len(value)}: {', '.join(parts)}"
    if isinstance(value, list | tuple):
        kinds = {type(each) for each in value}
        if len(value) > 2 and len(kinds) == 1 and not isinstance(value[0], Tensor):
            return f"a {type(value).__name__} of {len(value)} {kinds.pop().__name__}"
        parts = [form(each) for each in value[:_VALUES_TOLD]]
        return f"a {type(value).__name__} of {len(value)}: {', '.join(parts)}"
    return "a string" if isinstance(value, str) else f"a {type(value).__name__}"


# -- inside ----------------------------------------------------------------------------------------------


def _failed(what: str, error: Exception, seen: str, *, error_id: str = "task.failed") -> NoReturn:
    told = "".join(traceback.format_exception(error))
    raise TaskError(
        error_id,
        f"{what} raised {type(error).__name__}: {error}{seen}",
        cause=own_frame(told) or "see the traceback",
        fix="mend the task; muster task check TASK --data KEY=VALUE tries it out on this machine",
        traceback=told,
    ) from error


def _check_pair(batch: Any) -> None:
    pair = isinstance(batch, list | tuple) and len(batch) == 2
    if pair and all(isinstance(each, Tensor) for each in batch):
        return
    raise TaskError(
        "task.bad_examples",
        f"the task's loss takes batches of (input, target) tensors, and a batch is {form(batch)}",
        cause="the task has no loss of its own, and the default is cross entropy of model(input) against target",
        fix="define loss(self, model, batch) in the task, or give such examples",
    )


def _loss(task: Task, model: nn.Module, batch: Any) -> Any:
    try:
        return task.loss(model, batch)
    except Exception as error:
        _failed("the loss", error, f"; a batch is {form(batch)}")


def _check_loss(loss: Any, batch: Any, *, gradient: bool, finite: bool) -> None:
    wrong = fix = ""
    if not isinstance(loss, Tensor):
        wrong, fix = f"is {form(loss)} and no tensor", "return the tensor itself, without .item() or float()"
    elif loss.ndim != 0:
        wrong, fix = f"is a tensor of shape {list(loss.shape)} and no scalar", "return its mean: .mean()"
    elif not loss.is_floating_point():
        wrong, fix = f"is of dtype {loss.dtype}", "return a floating-point scalar"
    elif gradient and not loss.requires_grad:
        wrong, fix = (
            "has no gradient: it depends on no parameter that is trained",
            "compute it from the model's output, without detach(), .data or no_grad()",
        )
    elif finite and not bool(torch.isfinite(loss)):
        wrong, fix = (
            f"is {loss.detach().item()} at the first batch",
            "look for NaN or too large values in the data",
        )
    if wrong:
        raise TaskError("task.bad_loss", f"the task's loss {wrong}; a batch is {form(batch)}", fix=fix)


def _backward(loss: Tensor, trained: Mapping[str, nn.Parameter], batch: Any, *, finite: bool) -> None:
    try:
        torch.autograd.backward(loss)
    except Exception as error:
        _failed("the backward pass of the loss", error, f"; a batch is {form(batch)}")
    found = {name: each.grad for name, each in trained.items() if each.grad is not None}
    wrong = ""
    if not found:
        wrong = "gives none of the trained parameters a gradient"
    for name, grad in found.items() if finite else ():
        if not bool(torch.isfinite(grad.coalesce().values() if grad.is_sparse else grad).all()):
            wrong = f"gives {name!r} a gradient that is not finite at the first batch"
            break
    if wrong:
        raise TaskError(
            "task.bad_loss",
            f"the task's loss {wrong}; a batch is {form(batch)}",
            fix="look for roots of 0, logarithms of 0 and divisions by 0, and for NaN in the data",
        )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...] | None]:
    return {
        name: None if nn.parameter.is_lazy(value) else tuple(value.shape)
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor)
    }


def _check_grown(
    before: Mapping[str, tuple[int, ...] | None], after: Mapping[str, tuple[int, ...] | None]
) -> None:
    if before == after:
        return
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    raise TaskError(
        "task.growing_model",
        f"the model's tensors changed with the first batch: {', '.join(map(repr, names[:_VALUES_TOLD]))}",
        cause="what is trained together is laid out when the run begins, from what Task.model gives",
        fix="make every layer with its sizes in model() (no Lazy layers, none that is added in forward)",
    )


@contextmanager
def kept(thing: Any) -> Generator[None]:
    """Puts back what a trial may change: mode, gradients and buffers of a module, plain attributes of the object and of
    its parts, and the random generators found in it."""
    modules = list(thing.modules()) if isinstance(thing, nn.Module) else []
    modes = [(each, each.training) for each in modules]
    buffers = [(each, name, value, value.clone()) for each in modules for name, value in _buffers(each)]
    gradients = [(each, each.grad) for each in (thing.parameters() if modules else ())]
    for parameter, _ in gradients:
        parameter.grad = None
    plain = [(each, _plain(each)) for each in (modules or [thing])]
    generators = _generators(thing)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, value, saved in buffers:
                value.copy_(saved)
                setattr(module, name, value)
        for parameter, grad in gradients:
            parameter.grad = grad
        for each, values in plain:
            getattr(each, "__dict__", {}).update(values)
        for put_back in generators:
            put_back()


def _buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    found = module.named_buffers(recurse=False, remove_duplicate=False)
    return [(name, value) for name, value in found if not nn.parameter.is_lazy(value)]


def _plain(thing: Any) -> dict[str, Any]:
    return {
        name: value for name, value in getattr(thing, "__dict__", {}).items() if isinstance(value, _PLAIN)
    }


def _generators(thing: Any) -> list[Callable[[], None]]:
    """How to put back each random generator that is reached from the object; it looks at so many objects at most."""
    found: list[Callable[[], None]] = []
    seen: set[int] = set()
    open_ = [thing]
    while open_ and len(seen) < _NODES_MAX:
        each = open_.pop()
        if id(each) in seen or isinstance(each, (*_PLAIN, Tensor, np.ndarray)):
            continue
        seen.add(id(each))
        if isinstance(each, torch.Generator):
            found.append(_putting(each.set_state, each.get_state()))
        elif isinstance(each, random.Random):
            found.append(_putting(each.setstate, each.getstate()))
        elif isinstance(each, np.random.RandomState):
            found.append(_putting(each.set_state, each.get_state()))
        elif isinstance(each, np.random.Generator):
            found.append(_putting_bits(each.bit_generator, each.bit_generator.state))
        elif isinstance(each, dict | list | tuple | set):
            values = list(each.values()) if isinstance(each, dict) else each
            open_ += values if len(each) <= _PARTS_MAX else ()
        elif hasattr(each, "__dict__") and not isinstance(each, type):
            open_ += vars(each).values()
    return found


def _putting(put: Callable[[Any], Any], state: Any) -> Callable[[], None]:
    return lambda: put(state)


def _putting_bits(bits: Any, state: Any) -> Callable[[], None]:
    return lambda: setattr(bits, "state", state)
