"""Every form of tensor that a module may hold travels, or is refused by its name before anything has run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from muster.errors import ConfigError, TaskError
from muster.model.integers import bounds, narrow, widen
from muster.model.layout import ParameterLayout
from muster.model.modelfile import (
    ModelFile,
    check_takes,
    check_unchanged,
    export_state,
    layout_of,
    load_into,
    write_initial,
)

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
WHOLE = [
    torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
]  # fmt: skip
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def modules(draw: st.DrawFn) -> nn.Module:
    """A module with one to many parameters, frozen or trained, tied or not, and buffers, lying as they may."""
    module = nn.Module()
    count = draw(st.integers(1, 12))
    module.register_parameter("first", nn.Parameter(torch.ones(2)))
    for number in range(count):
        shape = draw(SHAPES)
        kind = draw(st.sampled_from(["trained", "frozen", "float", "whole", "passing"]))
        if kind in ("trained", "frozen", "float", "passing"):
            tensor = torch.randn(shape).to(draw(st.sampled_from(FLOATS)))
        else:
            tensor = torch.randint(0, 2, shape).to(draw(st.sampled_from(WHOLE)))
        if len(shape) > 1 and draw(st.booleans()):
            tensor = tensor.transpose(0, 1)
        if kind in ("trained", "frozen"):
            module.register_parameter(f"p{number}", nn.Parameter(tensor, requires_grad=kind == "trained"))
            if draw(st.booleans()):
                module.register_parameter(f"tied{number}", getattr(module, f"p{number}"))
        else:
            if kind == "float" and draw(st.booleans()):
                tensor = torch.full_like(
                    tensor, draw(st.sampled_from([float("inf"), float("-inf"), float("nan")]))
                )
            module.register_buffer(f"b{number}", tensor, persistent=kind != "passing")
    return module


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(module=modules())
def test_any_module_comes_back_from_its_version_as_it_was(module: nn.Module, tmp_path: Path) -> None:
    wanted = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    layout = layout_of(module)
    trained = {name for name, each in module.named_parameters() if each.requires_grad and each.numel()}
    assert {spec.name for spec in layout.tensors if spec.size} == trained
    write_initial(tmp_path / "v", layout, module)
    file = ModelFile(tmp_path / "v")
    assert file.layout == layout
    exported = export_state(file)
    check_takes(module)
    load_into(module, file)
    check_unchanged(module, file)
    file.close()
    assert exported.keys() == wanted.keys()
    for found in (exported, module.state_dict()):
        for name, tensor in wanted.items():
            assert found[name].dtype == tensor.dtype, name
            assert found[name].shape == tensor.shape, name
            assert str(found[name].reshape(-1).tolist()) == str(tensor.reshape(-1).tolist()), name


@given(dtype=st.sampled_from(WHOLE), data=st.data())
def test_integers_of_every_width_keep_value_and_order(dtype: torch.dtype, data: st.DataObject) -> None:
    limits = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    values = data.draw(st.lists(st.integers(*limits), min_size=1, max_size=9))
    wide = widen(torch.tensor(values, dtype=dtype))
    least, most = bounds(dtype)
    assert all(least <= value <= most for value in wide.tolist())
    assert narrow(wide, dtype).tolist() == values
    assert [values[i] for i in wide.argsort(stable=True).tolist()] == sorted(values)


class _Copies(nn.Linear):
    """Whose state dict has a copy, from a hook."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.register_buffer("scale", torch.ones(3))
        self._register_state_dict_hook(lambda _module, state, *_: state.update(scale=state["scale"].clone()))


class _Rebuilt(nn.Module):
    """Whose buffer is made anew of its parameter whenever the state is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        state: dict[str, Tensor] = super().state_dict(*args, **kwargs)
        state["doubled"] = 2 * self.weight.detach()
        return state


def _overlapping() -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(torch.arange(6.0).view(2, 3))
    module.register_buffer("row", module.weight.detach()[0])
    return module


@pytest.mark.parametrize(
    ("make", "name"),
    [(_Copies, "scale"), (_Rebuilt, "doubled"), (_overlapping, "weight")],
    ids=["copies", "rebuilt", "overlapping"],
)
def test_what_a_module_does_not_take_is_named(make: Callable[[], nn.Module], name: str) -> None:
    with pytest.raises(ConfigError, match=f"does not take its '{name}'") as caught:
        check_takes(make())
    assert caught.value.id == "model.not_taken"


def _with(name: str, buffer: Tensor) -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_buffer(name, buffer)
    return module


class _Hidden(nn.Linear):
    """Whose state dict keeps a trained parameter to itself."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self._register_state_dict_hook(lambda _module, state, *_: state.__delitem__("bias"))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(3)), "'0.weight' is lazy"),
        (lambda: _with("c", torch.ones(2, dtype=torch.complex64)), "'c' has dtype torch.complex64"),
        (lambda: _with("q", torch.ones(2).to(torch.float8_e4m3fn)), "'q' has dtype torch.float8_e4m3fn"),
        (lambda: _with("wide", torch.ones(1).expand(4)), "'wide' has elements that share one place"),
        (_Hidden, "'bias' is trained and not in its state_dict()"),
        (lambda: nn.Linear(2, 2).requires_grad_(False), "no parameter that is trained"),
        (nn.ReLU, "no parameter that is trained"),
    ],
)
def test_what_cannot_travel_is_named(make: Callable[[], nn.Module], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        layout_of(make())
    assert caught.value.fix


def test_what_float32_cannot_hold_is_named(tmp_path: Path) -> None:
    module = _with("mask", torch.full((2,), torch.finfo(torch.float64).min, dtype=torch.float64))
    with pytest.raises(ConfigError, match="'mask' has values that float32 cannot hold"):
        write_initial(tmp_path / "v", layout_of(module), module)
    layout = layout_of(module, {"mask": "keep"})
    write_initial(tmp_path / "w", layout, module)
    file = ModelFile(tmp_path / "w")
    assert torch.equal(export_state(file)["mask"], module.state_dict()["mask"])
    file.close()


@pytest.mark.parametrize(
    ("moves", "told"),
    [
        ({"running_meen": "mean"}, "'running_meen' names no tensor"),
        ({"weight": "mean"}, "'weight' names no tensor of the model that is not trained"),
        (
            {"running_mean": "avg"},
            "'avg' is none of mean, max, min, any, trimmed-max, trimmed-min, trimmed-any, keep",
        ),
        ({"running_mean": "any"}, "'running_mean' is floating"),
        ({"num_*": "mean"}, "'num_batches_tracked' is integers"),
        ({"num_*": "trimmed-any"}, "'num_batches_tracked' is integers"),
    ],
)
def test_a_move_that_cannot_be_is_named(moves: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        layout_of(nn.BatchNorm1d(3), moves)
    assert caught.value.id == "model.bad_move"


def test_what_training_makes_of_a_model_is_named(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight.requires_grad_(False)
    write_initial(tmp_path / "v", layout_of(module), module)
    file = ModelFile(tmp_path / "v")
    with torch.no_grad():
        module[0].weight.add_(1)
    check_unchanged(module, file)
    with torch.no_grad():
        module[1].weight.add_(1)
    with pytest.raises(TaskError, match=r"'1\.weight', which requires no gradient") as caught:
        check_unchanged(module, file)
    assert caught.value.id == "task.frozen_changed"
    module[1].weight.requires_grad_(True)  # thawed for training: it does not travel all the same
    with pytest.raises(TaskError, match=r"'1\.weight', which requires no gradient in Task\.model"):
        check_unchanged(module, file)
    values = module[1].weight.detach()
    del module[1].weight
    module[1].register_buffer("weight", values)
    with pytest.raises(TaskError, match=r"'1\.weight', which requires no gradient in Task\.model"):
        check_unchanged(module, file)
    for change in (
        lambda: setattr(module[1], "bias", module[0].bias),
        lambda: setattr(module[1], "bias", nn.Parameter(torch.ones(4))),
        lambda: module.append(nn.Linear(3, 3)),
    ):
        change()
        with pytest.raises(TaskError, match="changed what the model is made of") as caught:
            check_unchanged(module, file)
        assert caught.value.id == "task.model_changed"
    file.close()


def test_integers_of_a_version_of_old_may_change_where_they_are_no_parameters(tmp_path: Path) -> None:
    """Such versions hold every integer as fixed, and say of none how it moves."""
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    layout = layout_of(module)
    old = replace(layout, counters=(), fixed=tuple(replace(spec, move="") for spec in layout.counters))
    write_initial(tmp_path / "v", old, module)
    file = ModelFile(tmp_path / "v")
    module(torch.randn(4, 2))
    check_unchanged(module, file)
    file.close()


def test_layouts_of_stored_versions_read_and_keep_their_digests(tmp_path: Path) -> None:
    text = (
        '{"tensors":[["weight",[2],"F32"]],"fixed":[],"aliases":[],"buffers":[["least",[],"F32","min"]],'
        '"counters":[["seen",[],"BOOL","any"],["steps",[],"I64","max"]]}'
    )
    stored = ParameterLayout.from_json(text)
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(torch.ones(2)))
    module.register_buffer("least", torch.tensor(1.0))
    module.register_buffer("seen", torch.tensor(False))
    module.register_buffer("steps", torch.tensor(0))
    assert stored.digest == layout_of(module, {"least": "min"}).digest
    trimmed = layout_of(module, {"seen": "trimmed-any", "steps": "trimmed-max", "least": "trimmed-min"})
    for layout in (stored, trimmed):
        write_initial(tmp_path / "v", layout, module)
        file = ModelFile(tmp_path / "v")
        assert file.layout == layout
        file.close()
