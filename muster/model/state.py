"""Between a PyTorch module and a model version: loading, reading by chunks, exporting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from muster.errors import ConfigError, TaskError, TransferError
from muster.files.hashedfile import BlobInfo
from muster.model.integers import widen
from muster.model.layout import CHUNK_COORDINATES, COUNTERS, PARAMS, ParameterLayout, TensorSpec
from muster.model.module_layout import check_same, layout_of, memory_of, state_of, unsupported
from muster.model.version_file import TORCH_DTYPES, ModelFile, chunk_pieces, write_model


def load_into(model: nn.Module, file: ModelFile) -> None:
    """Copies a model version into the module, each tensor rounded to its own dtype, on its own device.

    Raises `TransferError` "model.layout_mismatch" if the version is not of this model, `ConfigError` "model.not_taken"
    if the module reads otherwise than it was set.
    """
    state = check_same(model, file.layout)
    with torch.no_grad():
        for name, values in _values_of(file):
            state[name].copy_(values)
    fresh = check_same(model, file.layout)
    # What lies where it was written holds what was written; only what lies elsewhere has to be looked at.
    moved = {name for name, tensor in fresh.items() if memory_of(tensor) != memory_of(state[name])}
    for name, values in _values_of(file) if moved else ():
        if name in moved:
            _check_taken(name, fresh[name], values.to(TORCH_DTYPES[_dtype_of(file, name)]))


def load_local(model: nn.Module, layout: ParameterLayout, tensors: Mapping[str, Tensor]) -> None:
    """Copies a peer's own values into the module that `load_into` has filled: those of `local_of` an earlier time.

    Raises `TransferError` "model.layout_mismatch" if they are not of this model.
    """
    state = check_same(model, layout)
    with torch.no_grad():
        for spec in layout.local:
            values = tensors.get(spec.name)
            if values is None or tuple(values.shape) != spec.shape:
                raise TransferError(
                    "model.layout_mismatch",
                    f"this peer's own {spec.name!r} is not of this task's model",
                    cause="the task has changed during the run",
                    fix="start the run anew",
                )
            state[spec.name].copy_(values)


def local_of(model: nn.Module, layout: ParameterLayout) -> dict[str, Tensor]:
    """What of the module is this peer's own, by name, sharing its memory."""
    state = check_same(model, layout) if layout.local else {}
    return {spec.name: state[spec.name] for spec in layout.local}


def check_takes(model: nn.Module) -> None:
    """Sets every tensor of the module to another value and reads all of them back; then it has its values again.

    Raises `ConfigError` "model.not_taken" naming what the module does not take: a tensor that it makes anew when it is
    asked, from others or for the state dict only, or one that lies in another one's memory. Its values are lost then.
    """
    before = {name: tensor.clone() for name, tensor in state_of(model).items()}
    _check_set(model)
    with torch.no_grad():
        for name, tensor in state_of(model).items():
            tensor.copy_(before[name])


def _check_set(model: nn.Module) -> None:
    wanted: dict[str, Tensor] = {}
    owners: dict[object, str] = {}
    state = state_of(model)
    with torch.no_grad():
        for number, (name, tensor) in enumerate(state.items()):
            owner = owners.setdefault(memory_of(tensor), name) if tensor.numel() else name
            if owner == name:
                value = 3 + 37 * number % 83  # of no plain relation to its neighbours
                other = ~tensor if tensor.dtype == torch.bool else torch.full_like(tensor, value)
                wanted[name] = other
                tensor.copy_(other)
            else:
                wanted[name] = wanted[owner]
    fresh = state_of(model)
    for name, values in wanted.items():
        if name not in fresh:
            raise _not_taken(name)
        _check_taken(name, fresh[name], values)


def check_unchanged(model: nn.Module, base: ModelFile) -> None:
    """That the module still has the tensors of the version which training began with, and the parameters that were
    frozen then their values, whatever requires a gradient by now.

    Raises `TaskError` "task.model_changed", "task.frozen_changed".
    """
    try:
        state = check_same(model, base.layout)
    except (TransferError, ConfigError) as error:
        raise TaskError(
            "task.model_changed",
            f"training changed what the model is made of: {error.message}",
            cause="the module made, dropped, grew or tied tensors while it was trained or called",
            fix="give the model all its tensors in Task.model, in their final shapes, and set them in place",
        ) from error
    parameters = {memory_of(parameter) for parameter in model.parameters()}
    fixed = base.fixed
    for spec in base.layout.fixed:
        tensor = state[spec.name]
        # Fixed and without a move are frozen parameters, and in the layouts of old versions integers of any kind.
        frozen = not spec.move and (tensor.is_floating_point() or memory_of(tensor) in parameters)
        if frozen and not _equal(tensor, fixed[spec.name]):
            raise TaskError(
                "task.frozen_changed",
                f"training changed the parameter {spec.name!r}, which requires no gradient in Task.model and so "
                "does not travel",
                cause="what was frozen when Task.model gave the model stays as it is in every version",
                fix="let it require a gradient in Task.model; or, if the task sets it itself, say how it moves: "
                f"buffers = {{{spec.name!r}: 'mean'}} in the task, or 'keep' for its first value in every round",
            )


class ModelState:
    """A module's present values as chunks; no vector is ever made whole.

    `layout` is that of the version which the module was filled from, which says what is trained. Raises as
    `check_same` does.
    """

    def __init__(self, model: nn.Module, layout: ParameterLayout) -> None:
        self.layout = layout
        self._state = check_same(model, layout)

    @property
    def fixed(self) -> dict[str, Tensor]:
        """The module's own fixed tensors by name."""
        return {spec.name: self._state[spec.name] for spec in self.layout.fixed}

    def check_range(self) -> None:
        """Raises `ConfigError` "model.unsupported" where float32 makes infinities of finite values."""
        for spec in self.layout.tensors + self.layout.buffers:
            tensor = self._state[spec.name]
            if tensor.dtype == torch.float64 and not torch.equal(
                tensor.isfinite(), tensor.float().isfinite()
            ):
                raise unsupported(
                    spec.name,
                    "has values that float32 cannot hold",
                    fix="use values within float32, or infinities; or keep it as it is with `buffers` in the task",
                )

    def read(self, index: int, out: Tensor, group: str = PARAMS) -> None:
        """Chunk `index`, widened or narrowed to float32, into out [c]; of counters into int64."""
        for piece in chunk_pieces(self.layout.groups[group], index):
            flat = self._state[piece.spec.name].reshape(-1)[piece.start : piece.stop]
            out[piece.at : piece.at + piece.stop - piece.start].copy_(
                widen(flat) if group == COUNTERS else flat
            )

    def chunks(self, group: str = PARAMS) -> Iterator[Tensor]:
        """All chunks in order, each in the same scratch."""
        vector = self.layout.groups[group]
        dtype = torch.int64 if group == COUNTERS else torch.float32
        scratch = torch.empty(min(CHUNK_COORDINATES, vector.size), dtype=dtype)
        for index in range(vector.chunk_count):
            start, stop = vector.chunk_bounds(index)
            chunk = scratch[: stop - start]
            self.read(index, chunk, group)
            yield chunk


def read_state(model: nn.Module, layout: ParameterLayout | None = None) -> ModelState:
    """The module's values for reading; later changes of the module show in it. Without a layout, the module's own."""
    return ModelState(model, layout or layout_of(model))


def write_initial(path: Path, layout: ParameterLayout, model: nn.Module) -> BlobInfo:
    """Writes the module as it stands as a model version."""
    state = read_state(model, layout)
    state.check_range()
    beside = {group: state.chunks(group) for group in layout.groups if group != PARAMS}
    return write_model(path, layout, state.chunks(), state.fixed, beside)


def export_state(file: ModelFile) -> dict[str, Tensor]:
    """The version as the plain model's `load_state_dict` takes it: every name, in native dtypes.

    Native float32 tensors are views of the mapped file and cost no memory; the others and aliases are copies.
    """
    dtypes = {spec.name: TORCH_DTYPES[spec.dtype] for spec in file.layout.all_tensors}
    state = {name: values.to(dtypes[name]) for name, values in _values_of(file)}
    for name, source in file.layout.aliases:
        state[name] = state[source].clone()
    return state


def _values_of(file: ModelFile) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the version; those of parameters and buffers float32 views of the map."""
    layout = file.layout
    yield from _views(layout.tensors, file.vector)
    yield from _views(layout.buffers, file.buffers)
    yield from file.counters.items()
    yield from file.fixed.items()


def _views(specs: Iterable[TensorSpec], flat: Tensor) -> Iterator[tuple[str, Tensor]]:
    at = 0
    for spec in specs:
        yield spec.name, flat[at : at + spec.size].view(spec.shape)
        at += spec.size


def _dtype_of(file: ModelFile, name: str) -> str:
    return next(spec.dtype for spec in file.layout.all_tensors if spec.name == name)


def _equal(one: Tensor, other: Tensor) -> bool:
    """To the bit, wherever they lie."""
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8)


def _check_taken(name: str, found: Tensor, wanted: Tensor) -> None:
    if not _equal(found, wanted):
        raise _not_taken(name)


def _not_taken(name: str) -> ConfigError:
    return ConfigError(
        "model.not_taken",
        f"the model does not take its {name!r}: set to other values, it reads as before",
        cause="it is made anew whenever it is asked for, is a copy in state_dict(), or lies in another one's memory",
        fix="make it a parameter or buffer with memory of its own, or keep it out of state_dict with persistent=False",
    )
