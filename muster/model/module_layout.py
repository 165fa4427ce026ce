"""What a PyTorch module is made of: its layout, and why it cannot have one.

Works on `state_dict()`. A tensor that shares its memory with an earlier one (tied weights) is an alias of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from muster.errors import ConfigError, TransferError
from muster.model.layout import (
    ANY,
    BUFFER_MOVES,
    FLAG_MOVES,
    INTEGER_MOVES,
    KEEP,
    LOCAL,
    MAX,
    MEAN,
    MOVES,
    ParameterLayout,
    TensorSpec,
)
from muster.model.version_file import TORCH_DTYPES

if TYPE_CHECKING:
    from muster.spec.model import ExchangeTable

# What becomes of buffers and counters of which the task says nothing, by the run spec's exchange.buffers.
UNMOVED = {"local": LOCAL, "coordinator": KEEP}
SPELLINGS = {dtype: spelling for spelling, dtype in TORCH_DTYPES.items()}
NOTHING: Mapping[str, str] = MappingProxyType({})

Memory = tuple[object, ...]


def layout_of(
    model: nn.Module, moves: Mapping[str, str] = NOTHING, exchange: ExchangeTable | None = None
) -> ParameterLayout:
    """The model's layout; `moves` is the task's own word on what is not trained, see `muster.Task.buffers`, and
    `exchange` the run's on what peers send at all.

    Raises `ConfigError`: "model.unsupported" naming a tensor that does not fit, "model.nothing_trained",
    "model.bad_move", "model.bad_pattern".
    """
    tensors: list[TensorSpec] = []
    buffers: list[TensorSpec] = []
    counters: list[TensorSpec] = []
    fixed: list[TensorSpec] = []
    state = state_of(model)
    owners, aliases = _tied(state)
    kinds = _Kinds(model, state)
    asked = _Moves(moves, UNMOVED.get("averaged" if exchange is None else exchange.buffers))
    chosen = _Chosen(exchange)
    for name in owners:
        spec = _spec_of(name, state[name])
        if name in kinds.trained:
            if chosen.travels(name):
                tensors.append(spec)
            else:
                fixed.append(_moving(spec, LOCAL))
            continue
        move = asked.of(name, state[name], frozen=name in kinds.frozen)
        if move in ("", KEEP, LOCAL):
            fixed.append(_moving(spec, move))
        else:
            (buffers if state[name].is_floating_point() else counters).append(_moving(spec, move))
    asked.check(kinds.trained)
    kinds.check(model, state)
    chosen.check(travelling=sum(spec.size for spec in tensors))
    return ParameterLayout(
        tensors=tuple(tensors),
        fixed=tuple(fixed),
        aliases=tuple(aliases),
        buffers=tuple(buffers),
        counters=tuple(counters),
    )


def _spec_of(name: str, tensor: Tensor) -> TensorSpec:
    return TensorSpec(name=name, shape=tuple(tensor.shape), dtype=SPELLINGS[tensor.dtype])


def _moving(spec: TensorSpec, move: str) -> TensorSpec:
    return TensorSpec(name=spec.name, shape=spec.shape, dtype=spec.dtype, move=move)


def memory_of(tensor: Tensor) -> Memory:
    """The same for two tensors that lie in the same place in the same way."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _tied(state: Mapping[str, Tensor]) -> tuple[list[str], list[tuple[str, str]]]:
    """The names that own their memory, in order, and (name, owner) of the others."""
    owners: dict[Memory, str] = {}
    own: list[str] = []
    aliases: list[tuple[str, str]] = []
    for name, tensor in state.items():
        owner = owners.setdefault(memory_of(tensor), name) if tensor.numel() else name
        if owner == name:
            own.append(name)
        else:
            aliases.append((name, owner))
    return own, aliases


class _Kinds:
    """Which names of a state dict are parameters: by their memory, for a name may be another in the state dict."""

    def __init__(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        trained = {memory_of(p) for p in parameters.values() if p.requires_grad and p.numel()}
        frozen = {memory_of(p) for p in parameters.values() if not p.requires_grad and p.numel()} - trained
        self.trained: set[str] = set()
        self.frozen: set[str] = set()
        for name, tensor in state.items():
            empty = parameters.get(name) if not tensor.numel() else None
            if empty is not None:
                (self.trained if empty.requires_grad else self.frozen).add(name)
            elif memory_of(tensor) in trained:
                self.trained.add(name)
            elif memory_of(tensor) in frozen:
                self.frozen.add(name)

    def check(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """That all that is trained is in the state, and that there is some."""
        held = {memory_of(tensor) for tensor in state.values()}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.numel() and memory_of(parameter) not in held:
                raise unsupported(
                    name,
                    "is trained and not in its state_dict() as it is",
                    fix="leave it in state_dict(), or freeze it with requires_grad_(False)",
                )
        if not any(state[name].numel() for name in self.trained):
            raise ConfigError(
                "model.nothing_trained",
                "the model has no parameter that is trained",
                cause="it has none, or none of them requires a gradient",
                fix="give Task.model a model with parameters that require gradients",
            )


class _Chosen:
    """Which of the trained parameters travel, by the patterns of the run spec's `[exchange]`."""

    def __init__(self, exchange: ExchangeTable | None) -> None:
        self._include = () if exchange is None else exchange.include
        self._exclude = () if exchange is None else exchange.exclude
        self._unmet = {*self._include, *self._exclude}

    def travels(self, name: str) -> bool:
        met = {pattern for pattern in (*self._include, *self._exclude) if fnmatchcase(name, pattern)}
        self._unmet -= met
        included = not self._include or any(pattern in met for pattern in self._include)
        return included and not any(pattern in met for pattern in self._exclude)

    def check(self, travelling: int) -> None:
        """That every pattern names something, and that something is left."""
        told = "names no parameter that is trained"
        wrong = (
            f"{min(self._unmet)!r} {told}" if self._unmet else "" if travelling else "no parameter travels"
        )
        if wrong:
            raise ConfigError(
                "model.bad_pattern",
                f"the run spec's [exchange]: {wrong}",
                cause="include and exclude are patterns of names in state_dict(), such as 'head.*'",
                fix="correct exchange.include or exchange.exclude in the run spec",
            )


class _Moves:
    """How what is not trained moves: as the task says it, else as the run does, else by what it is."""

    def __init__(self, patterns: Mapping[str, str], unsaid: str | None = None) -> None:
        self._patterns = dict(patterns)
        self._unsaid = unsaid
        self._unmet = set(self._patterns)
        for pattern, move in self._patterns.items():
            if move not in MOVES:
                raise _bad_move(f"{pattern!r} = {move!r} is none of {', '.join(MOVES)}")

    def of(self, name: str, tensor: Tensor, *, frozen: bool) -> str:
        met = [pattern for pattern in self._patterns if name == pattern or fnmatchcase(name, pattern)]
        self._unmet.difference_update(met)
        if not met:
            floating, flag = tensor.is_floating_point(), tensor.dtype == torch.bool
            if self._unsaid is not None and not frozen:
                return self._unsaid
            return "" if frozen else MEAN if floating else ANY if flag else MAX
        move = self._patterns[name if name in met else met[0]]
        kind = (
            "floating"
            if tensor.is_floating_point()
            else "flags"
            if tensor.dtype == torch.bool
            else "integers"
        )
        fitting = {"floating": BUFFER_MOVES, "flags": FLAG_MOVES, "integers": INTEGER_MOVES}[kind]
        if move not in (*fitting, KEEP, LOCAL):
            raise _bad_move(
                f"{name!r} is {kind}, which move by {', '.join(fitting)}, {KEEP} or {LOCAL}, not by {move!r}"
            )
        return move

    def check(self, trained: set[str]) -> None:
        for pattern in sorted(self._unmet):
            also = " that is not trained" if any(fnmatchcase(name, pattern) for name in trained) else ""
            raise _bad_move(f"{pattern!r} names no tensor of the model{also}")


def _bad_move(what: str) -> ConfigError:
    return ConfigError(
        "model.bad_move",
        f"the task's `buffers`: {what}",
        cause="it says how what is not trained moves, by its name in state_dict() or a pattern of names",
        fix="correct `buffers` in the task",
    )


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, detached, sharing the module's memory; every value a dense tensor of a known dtype."""
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise unsupported(name, f"is a {type(value).__name__} and no tensor")
        if is_lazy(value):
            raise unsupported(
                name,
                "is lazy: it has no shape yet",
                fix="call the model once with an example in Task.model, before it is returned",
            )
        if value.layout is not torch.strided or value.is_meta or value.is_nested:
            raise unsupported(name, "is not a dense tensor")
        if value.dtype not in SPELLINGS:
            raise unsupported(name, f"has dtype {value.dtype}")
        if any(step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True)):
            raise unsupported(
                name,
                "has elements that share one place in memory, as expand() makes them",
                fix="register it with .contiguous()",
            )
        state[name] = value.detach()
    return state


def unsupported(
    name: str,
    what: str,
    fix: str = "register it as a plain buffer or parameter, or keep it out of state_dict with persistent=False",
) -> ConfigError:
    """An error `model.unsupported` about one tensor of a module."""
    return ConfigError(
        "model.unsupported",
        f"the model's {name!r} {what}",
        cause="a model version holds dense tensors of floating, integer and boolean dtypes",
        fix=fix,
    )


def check_same(model: nn.Module, wanted: ParameterLayout) -> dict[str, Tensor]:
    """The module's state, if it has the tensors of the layout, tied as there. Raises `TransferError`
    "model.layout_mismatch". Which of them are trained is the layout's to say."""
    state = state_of(model)
    own, aliases = _tied(state)
    ours = {name: _spec_of(name, state[name]) for name in own}
    theirs = {spec.name: _moving(spec, "") for spec in wanted.all_tensors}
    if ours == theirs and sorted(aliases) == sorted(wanted.aliases):
        return state
    names = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
    tied = sorted({name for name, _ in set(aliases) ^ set(wanted.aliases)})
    detail = (
        f"{names[0]!r} is {_describe(ours.get(names[0]))} here, {_describe(theirs.get(names[0]))} there"
        if names
        else f"{tied[0]!r} shares its memory otherwise"
    )
    raise TransferError(
        "model.layout_mismatch",
        f"the model version is not of this task's model: {detail}",
        cause="the task, or an option that shapes its model, differs between the machines",
        fix="install the same version of the task on every machine",
    )


def _describe(spec: TensorSpec | None) -> str:
    return "absent" if spec is None else f"{spec.dtype} {list(spec.shape)}"
