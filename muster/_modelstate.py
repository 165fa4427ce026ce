"""Between a PyTorch module and a model version: its layout, loading, reading by chunks, exporting.

Works on `state_dict()`: floating tensors make up the vector, integer and boolean ones are fixed, and a tensor
that shares its memory with an earlier one (tied weights) is an alias of it and travels once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from muster._versionfile import TORCH_DTYPES, ModelFile, chunk_pieces, write_model
from muster.errors import ConfigError, TransferError
from muster.hashedfile import BlobInfo
from muster.layout import CHUNK_COORDINATES, ParameterLayout, TensorSpec

_SPELLINGS = {dtype: spelling for spelling, dtype in TORCH_DTYPES.items()}


def layout_of(model: nn.Module) -> ParameterLayout:
    """The model's layout. Raises `ConfigError` "model.unsupported" naming a tensor that does not fit."""
    tensors: list[TensorSpec] = []
    fixed: list[TensorSpec] = []
    aliases: list[tuple[str, str]] = []
    owners: dict[tuple[object, ...], str] = {}
    for name, tensor in _state_of(model).items():
        if tensor.numel():
            memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            owner = owners.setdefault(memory, name)
            if owner != name:
                aliases.append((name, owner))
                continue
        spec = TensorSpec(name=name, shape=tuple(tensor.shape), dtype=_SPELLINGS[tensor.dtype])
        (tensors if tensor.is_floating_point() else fixed).append(spec)
    return ParameterLayout(tensors=tuple(tensors), fixed=tuple(fixed), aliases=tuple(aliases))


def load_into(model: nn.Module, file: ModelFile) -> None:
    """Copies a model version into the module, each tensor rounded to its own dtype, on its own device.

    Raises `TransferError` "model.layout_mismatch" if the version is not of this model.
    """
    _check_same(layout_of(model), file.layout)
    state = _state_of(model)
    fixed = file.fixed
    with torch.no_grad():
        for name, values in fixed.items():
            state[name].copy_(values)
        for spec, values in _tensors_of(file):
            state[spec.name].copy_(values)


class ModelState:
    """A module's present values as chunks of the flat vector; the vector is never made whole."""

    def __init__(self, model: nn.Module) -> None:
        self.layout = layout_of(model)
        self._state = _state_of(model)

    @property
    def fixed(self) -> dict[str, Tensor]:
        """The module's own fixed tensors by name."""
        return {spec.name: self._state[spec.name] for spec in self.layout.fixed}

    def read(self, index: int, out: Tensor) -> None:
        """Chunk `index`, widened or narrowed to float32, into out [c]."""
        for piece in chunk_pieces(self.layout, index):
            flat = self._state[piece.spec.name].reshape(-1)
            out[piece.at : piece.at + piece.stop - piece.start].copy_(flat[piece.start : piece.stop])

    def chunks(self) -> Iterator[Tensor]:
        """All chunks in order, each in the same scratch."""
        scratch = torch.empty(min(CHUNK_COORDINATES, self.layout.size), dtype=torch.float32)
        for index in range(self.layout.chunk_count):
            start, stop = self.layout.chunk_bounds(index)
            chunk = scratch[: stop - start]
            self.read(index, chunk)
            yield chunk


def read_state(model: nn.Module) -> ModelState:
    """The module's values for reading; later changes of the module show in it."""
    return ModelState(model)


def write_initial(path: Path, layout: ParameterLayout, model: nn.Module) -> BlobInfo:
    """Writes the module as it stands as a model version."""
    state = read_state(model)
    _check_same(state.layout, layout)
    return write_model(path, layout, state.chunks(), state.fixed)


def export_state(file: ModelFile) -> dict[str, Tensor]:
    """The version as the plain model's `load_state_dict` takes it: every name, in native dtypes.

    Native float32 tensors are views of the mapped file and cost no memory; the others and aliases are copies.
    """
    state = {spec.name: values.to(TORCH_DTYPES[spec.dtype]) for spec, values in _tensors_of(file)}
    state |= file.fixed
    for name, source in file.layout.aliases:
        state[name] = state[source].clone()
    return state


def _tensors_of(file: ModelFile) -> Iterator[tuple[TensorSpec, Tensor]]:
    vector = file.vector
    for spec, offset in zip(file.layout.tensors, file.layout.offsets, strict=True):
        yield spec, vector[offset : offset + spec.size].view(spec.shape)


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, detached, sharing the module's memory; every value a dense tensor of a known dtype."""
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta:
            raise _unsupported(name, "is not a dense tensor")
        if value.dtype not in _SPELLINGS:
            raise _unsupported(name, f"has dtype {value.dtype}")
        state[name] = value
    return state


def _unsupported(name: str, what: str) -> ConfigError:
    return ConfigError(
        "model.unsupported",
        f"the model's {name!r} {what}",
        cause="a model version holds dense tensors of floating, integer and boolean dtypes",
        fix="register it as a plain buffer or parameter, or keep it out of state_dict with persistent=False",
    )


def _check_same(found: ParameterLayout, wanted: ParameterLayout) -> None:
    if found == wanted:
        return
    ours = {spec.name: spec for spec in found.tensors + found.fixed}
    theirs = {spec.name: spec for spec in wanted.tensors + wanted.fixed}
    names = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
    detail = (
        f"{names[0]!r} is {_describe(ours.get(names[0]))} here, {_describe(theirs.get(names[0]))} there"
        if names
        else "their tensors stand in another order or are tied otherwise"
    )
    raise TransferError(
        "model.layout_mismatch",
        f"the model version is not of this task's model: {detail}",
        cause="the task, or an option that shapes its model, differs between the machines",
        fix="install the same version of the task on every machine",
    )


def _describe(spec: TensorSpec | None) -> str:
    return "absent" if spec is None else f"{spec.dtype} {list(spec.shape)}"
