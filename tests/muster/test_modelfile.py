"""Model versions: what is written can be read by anyone, what is read is checked, and models come back whole."""

import gc
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from muster.errors import ConfigError, InternalError, StorageError, TransferError
from muster.model.layout import CHUNK_COORDINATES, ParameterLayout, TensorSpec
from muster.model.modelfile import (
    ModelFile,
    ModelWriter,
    export_state,
    layout_of,
    load_into,
    read_state,
    write_initial,
    write_model,
)


class Everything(nn.Module):
    """Every kind of tensor that a state dict may hold, and more coordinates than one chunk has."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.scale = nn.Parameter(torch.randn(()))
        self.embed = nn.Embedding(700, 400)
        self.norm = nn.BatchNorm1d(5)
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.narrow = nn.Linear(30, 20).to(torch.bfloat16)
        self.short = nn.Parameter(torch.randn(3).half())
        self.wide = nn.Parameter(torch.randn(4).float().double())
        self.strided = nn.Parameter(torch.randn(6, 4).t())
        self.head = nn.Linear(400, 700, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("ids", torch.arange(3, dtype=torch.int32) + seed)
        self.register_buffer("none", torch.empty(0, dtype=torch.int64))
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.norm.num_batches_tracked += seed + 2**40


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model"


def test_a_model_of_every_kind_round_trips(path: Path) -> None:
    model = Everything(seed=1)
    layout = layout_of(model)
    info = write_initial(path, layout, model)
    assert info.size_bytes == path.stat().st_size
    file = ModelFile(path)
    assert file.layout == layout
    assert file.vector.shape == (layout.size,)
    assert layout.chunk_count == 2
    other = Everything(seed=2)
    load_into(other, file)
    file.close()
    _assert_equal(_state(other), _state(model))
    assert other.head.weight is other.embed.weight


def test_the_layout_tells_floating_fixed_and_tied_tensors_apart() -> None:
    layout = layout_of(Everything())
    moves = {spec.name: spec.move for spec in layout.counters}
    assert moves == {"mask": "any", "ids": "max", "none": "max", "norm.num_batches_tracked": "max"}
    assert {spec.name: spec.move for spec in layout.buffers} == {
        "norm.running_mean": "mean",
        "norm.running_var": "mean",
    }
    assert layout.fixed == ()
    assert layout.aliases == (("head.weight", "embed.weight"),)
    dtypes = {spec.name: spec.dtype for spec in layout.tensors}
    assert dtypes["narrow.weight"] == "BF16"
    assert dtypes["short"] == "F16"
    assert dtypes["wide"] == "F64"
    assert "scratch" not in dtypes
    assert layout.size == 1 + 700 * 400 + 10 + 0 + 620 + 3 + 4 + 24
    assert layout.columns_size == layout.size + 10
    assert ParameterLayout.from_json(layout.to_json()) == layout


def test_a_view_of_another_shape_is_no_alias(path: Path) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.arange(4.0).view(2, 2))
    model.register_buffer("turned", model.weight.detach().t())
    model.register_buffer("row", model.weight.detach()[0])
    layout = layout_of(model)
    assert layout.aliases == ()
    write_initial(path, layout, model)
    file = ModelFile(path)
    assert file.vector.tolist() == [0, 1, 2, 3]
    assert file.buffers.tolist() == [0, 2, 1, 3, 0, 1]
    file.close()


def test_the_safetensors_library_reads_a_model_version(path: Path) -> None:
    model = Everything(seed=3)
    layout = layout_of(model)
    write_initial(path, layout, model)
    read = safetensors.torch.load_file(path)
    state = _state(model)
    assert read.keys() == state.keys() - {"head.weight"}
    for spec in layout.tensors + layout.buffers:
        assert read[spec.name].dtype == torch.float32
        assert torch.equal(read[spec.name], state[spec.name].float())
    for spec in layout.counters + layout.fixed:
        assert torch.equal(read[spec.name], state[spec.name])


def test_an_export_loads_into_the_plain_model(path: Path, tmp_path: Path) -> None:
    model = Everything(seed=4)
    write_initial(path, layout_of(model), model)
    file = ModelFile(path)
    exported = export_state(file)
    file.close()
    safetensors.torch.save_file(exported, tmp_path / "export.safetensors")
    plain = Everything(seed=5)
    plain.load_state_dict(safetensors.torch.load_file(tmp_path / "export.safetensors"))
    _assert_equal(_state(plain), _state(model))


def test_the_master_copy_keeps_what_a_narrow_parameter_cannot_hold(path: Path) -> None:
    model = nn.Linear(8, 1, bias=False).to(torch.bfloat16)
    layout = layout_of(model)
    values = 1 + torch.arange(8) * 2.0**-12  # all of them 1 in bfloat16
    write_model(path, layout, [values], {})
    file = ModelFile(path)
    assert torch.equal(file.vector, values)
    load_into(model, file)
    held = torch.empty(8)
    file.read_native(0, held)
    state = torch.empty(8)
    read_state(model).read(0, state)
    assert torch.equal(held, torch.ones(8))
    assert torch.equal(held, state)
    assert torch.equal(export_state(file)["weight"], torch.ones(1, 8).bfloat16())
    file.close()


def test_chunks_read_from_a_module_are_the_vector(path: Path) -> None:
    model = Everything(seed=6)
    write_initial(path, layout_of(model), model)
    state = read_state(model)
    file = ModelFile(path)
    joined = torch.cat([chunk.clone() for chunk in state.chunks()])
    assert torch.equal(joined, file.vector)
    second = torch.empty(state.layout.size - CHUNK_COORDINATES)
    state.read(1, second)
    assert torch.equal(second, file.vector[CHUNK_COORDINATES:])
    native = torch.empty(CHUNK_COORDINATES)
    file.read_native(0, native)
    assert torch.equal(native, file.vector[:CHUNK_COORDINATES])
    with torch.no_grad():
        model.scale.fill_(9)
    assert next(state.chunks())[0] == 9
    file.close()


def test_the_vector_is_a_view_that_outlives_the_file_and_never_changes_it(path: Path) -> None:
    model = nn.Linear(100, 100)
    write_initial(path, layout_of(model), model)
    before = path.read_bytes()
    file = ModelFile(path)
    vector = file.vector
    assert vector.data_ptr() == file.vector.data_ptr()
    assert vector.data_ptr() % 64 == 0
    wanted = vector.sum()
    file.close()
    file.close()
    path.unlink()
    gc.collect()
    assert vector.sum() == wanted
    vector.fill_(0)
    path.write_bytes(before)
    with pytest.raises(InternalError, match=r"model\.closed"):
        _ = file.vector
    with pytest.raises(InternalError, match=r"model\.closed"):
        _ = file.fixed


def test_writing_into_the_view_leaves_the_file_alone(path: Path) -> None:
    model = nn.Linear(10, 10)
    write_initial(path, layout_of(model), model)
    before = path.read_bytes()
    file = ModelFile(path)
    file.vector.fill_(7)
    file.close()
    assert path.read_bytes() == before


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (
        write_initial(tmp_path / name, layout_of(Everything(seed=7)), Everything(seed=7)) for name in "ab"
    )
    assert first == second
    assert first.digest != write_initial(tmp_path / "c", layout_of(Everything()), Everything(seed=8)).digest


def test_a_model_in_which_nothing_is_trained_has_no_layout() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    model.register_buffer("step", torch.tensor(3))
    with pytest.raises(ConfigError) as caught:
        layout_of(model)
    assert caught.value.id == "model.nothing_trained"


def test_a_version_from_before_buffers_were_told_apart_reads_as_it_did(path: Path) -> None:
    names = ("weight", "bias", "running_mean", "running_var")
    old = ParameterLayout(
        tensors=tuple(TensorSpec(name=name, shape=(3,), dtype="F32") for name in names),
        fixed=(TensorSpec(name="num_batches_tracked", shape=(), dtype="I64"),),
    )
    assert set(json.loads(old.to_json())) == {"tensors", "fixed", "aliases"}
    write_model(path, old, [torch.arange(12.0)], {"num_batches_tracked": torch.tensor(7)})
    file = ModelFile(path)
    assert file.layout == old
    model = nn.BatchNorm1d(3)
    load_into(model, file)
    file.close()
    assert model.running_var.tolist() == [9, 10, 11]  # type: ignore[union-attr]
    assert model.num_batches_tracked == 7
    assert torch.equal(next(read_state(model, old).chunks()), torch.arange(12.0))


# --- what cannot be a model version ------------------------------------------------------------------------------


def _extra_state() -> nn.Module:
    class WithState(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"a": 1}

    return WithState(2, 2)


def _sparse() -> nn.Module:
    model = nn.Module()
    model.register_buffer("s", torch.eye(2).to_sparse())
    return model


def _complex() -> nn.Module:
    model = nn.Module()
    model.register_buffer("c", torch.ones(2, dtype=torch.complex64))
    return model


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_extra_state, "'_extra_state' is a dict and no tensor"),
        (_sparse, "'s' is not a dense tensor"),
        (_complex, "'c' has dtype torch.complex64"),
        (lambda: nn.Linear(2, 2, device="meta"), "'weight' is not a dense tensor"),
    ],
)
def test_models_without_a_layout_are_named(make: Callable[[], nn.Module], why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)) as caught:
        layout_of(make())
    assert caught.value.id == "model.unsupported"


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (nn.Linear(3, 2), "'weight' is F32 [2, 3] here, F32 [2, 2] there"),
        (nn.Linear(2, 2, bias=False), "'bias' is absent here, F32 [2] there"),
        (nn.Linear(2, 2).double(), "'weight' is F64 [2, 2] here, F32 [2, 2] there"),
        (nn.BatchNorm1d(2), "'weight' is F32 [2] here, F32 [2, 2] there"),
    ],
)
def test_a_version_of_another_model_is_not_loaded(path: Path, other: nn.Module, why: str) -> None:
    model = nn.Linear(2, 2)
    write_initial(path, layout_of(model), model)
    before = _state(other)
    file = ModelFile(path)
    with pytest.raises(TransferError, match=re.escape(why)) as caught:
        load_into(other, file)
    file.close()
    assert caught.value.id == "model.layout_mismatch"
    _assert_equal(_state(other), before)


def test_a_version_with_other_ties_is_not_loaded(path: Path) -> None:
    tied, loose = (
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
    )
    tied[1].bias = tied[0].bias
    write_initial(path, layout_of(tied), tied)
    file = ModelFile(path)
    with pytest.raises(TransferError, match=r"'1\.bias' is F32"):
        load_into(loose, file)
    file.close()


# --- writing -----------------------------------------------------------------------------------------------------

TWO_CHUNKS = ParameterLayout(
    tensors=(TensorSpec(name="w", shape=(CHUNK_COORDINATES + 3,), dtype="F32"),),
    fixed=(TensorSpec(name="n", shape=(), dtype="I64"),),
)


def test_chunks_come_in_order_and_whole(path: Path) -> None:
    writer = ModelWriter(path, TWO_CHUNKS, {"n": torch.tensor(1.0)})
    writer.write_chunk(0, torch.zeros(CHUNK_COORDINATES))
    writer.write_chunk(1, torch.zeros(3))
    with pytest.raises(InternalError, match="fixed_mismatch"):
        writer.finish()
    writer.close()
    writer = ModelWriter(path, TWO_CHUNKS, {"n": torch.tensor(1)})
    for index, wrong in (
        (1, torch.zeros(3)),
        (0, torch.zeros(3)),
        (0, torch.zeros(CHUNK_COORDINATES).double()),
    ):
        with pytest.raises(InternalError, match="chunk_order"):
            writer.write_chunk(index, wrong)
    writer.write_chunk(0, torch.zeros(CHUNK_COORDINATES))
    with pytest.raises(InternalError, match="only 1 of 2 chunks"):
        writer.finish()
    writer.write_chunk(1, torch.ones(3))
    with pytest.raises(InternalError, match="chunk_order"):
        writer.write_chunk(2, torch.zeros(0))
    info = writer.finish()
    writer.close()
    file = ModelFile(path)
    assert file.vector[-3:].tolist() == [1, 1, 1]
    assert info.size_bytes == path.stat().st_size
    file.close()


def test_a_model_of_too_many_tensors_is_refused_before_anything_is_written(path: Path) -> None:
    specs = tuple(TensorSpec(name=f"layer.{i}.weight", shape=(1,), dtype="F32") for i in range(20_000))
    with pytest.raises(ConfigError, match="20000 tensors do not fit") as caught:
        ModelWriter(path, ParameterLayout(tensors=specs), {})
    assert caught.value.id == "model.too_many_tensors"
    assert not path.exists()


def test_a_full_disk_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="no space left") as caught:
        write_model(
            Path("/dev/full"), TWO_CHUNKS, [torch.zeros(CHUNK_COORDINATES)] * 2, {"n": torch.tensor(1)}
        )
    assert caught.value.id == "storage.disk_full"


# --- reading what nobody vouches for -----------------------------------------------------------------------------

Rows = dict[str, Any]


@pytest.fixture
def small(path: Path) -> tuple[Path, Rows, bytes]:
    """A small model version: its path, its header's JSON, its data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    write_initial(path, layout_of(model), model)
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    return path, json.loads(whole[8 : 8 + length]), whole[8 + length :]


def _write(path: Path, rows: Rows, data: bytes, align: int = 64) -> None:
    text = json.dumps(rows).encode()
    text += b" " * (-(8 + len(text)) % align)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _refused(path: Path, why: str) -> None:
    with pytest.raises(TransferError, match=why) as caught:
        ModelFile(path)
    assert caught.value.id == "model.malformed"


def test_the_rewritten_file_is_good_to_begin_with(small: tuple[Path, Rows, bytes]) -> None:
    _write(*small)
    ModelFile(small[0]).close()


def test_truncated_files_and_trailing_bytes(small: tuple[Path, Rows, bytes]) -> None:
    path, _, _ = small
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        _refused(path, "not a model version")
    path.write_bytes(whole + b"\0")
    _refused(path, "the file has")


def _missing(rows: Rows) -> None:
    del rows["1.num_batches_tracked"]


def _extra(rows: Rows) -> None:
    rows["more"] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}


def _renamed(rows: Rows) -> None:
    rows["0.weights"] = rows.pop("0.weight")


def _other_dtype(rows: Rows) -> None:
    rows["0.weight"]["dtype"] = "I32"


def _other_shape(rows: Rows) -> None:
    rows["0.weight"]["shape"] = [3, 2]


def _swapped(rows: Rows) -> None:
    first, second = rows["1.weight"], rows["1.bias"]
    first["data_offsets"], second["data_offsets"] = second["data_offsets"], first["data_offsets"]


@pytest.mark.parametrize("change", [_extra, _renamed, _other_dtype, _other_shape, _swapped])
def test_tensors_other_than_the_layouts(
    small: tuple[Path, Rows, bytes], change: Callable[[Rows], None]
) -> None:
    path, rows, data = small
    change(rows)
    _write(path, rows, data)
    _refused(path, "not those of its layout")


def test_a_missing_tensor(small: tuple[Path, Rows, bytes]) -> None:
    path, rows, data = small
    del rows["1.num_batches_tracked"]
    _write(path, rows, data[:-8])
    _refused(path, "not those of its layout")


def test_data_that_cannot_be_mapped_as_float32(small: tuple[Path, Rows, bytes]) -> None:
    path, rows, data = small
    text = json.dumps(rows).encode()
    text += b" " * (-(8 + len(text)) % 64 + 1)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    _refused(path, "multiple of 64")


@pytest.mark.parametrize(
    ("layout", "why"),
    [
        ("", "not JSON"),
        ("[]", "not an object"),
        ("{}", "a row that is not one"),
        ('{"tensors":3,"fixed":[],"aliases":[]}', "a row that is not one"),
        ('{"tensors":["abc"],"fixed":[],"aliases":[]}', "a row that is not one"),
        ('{"tensors":[["w",[-1],"F32"]],"fixed":[],"aliases":[]}', "a row that is not one"),
        ('{"tensors":[["w",[1.0],"F32"]],"fixed":[],"aliases":[]}', "a row that is not one"),
        ('{"tensors":[["w",[1],"F33"]],"fixed":[],"aliases":[]}', "a row that is not one"),
        ('{"tensors":[["w",[1],[]]],"fixed":[],"aliases":[]}', "a row that is not one"),
        ('{"tensors":[[1,[1],"F32"]],"fixed":[],"aliases":[]}', "a row that is not one"),
        ('{"tensors":[],"fixed":[],"aliases":[["a"]]}', "a row that is not one"),
        ('{"tensors":[],"fixed":[],"aliases":[["a",[]]]}', "a row that is not one"),
        ('{"tensors":[["w",[1],"I64"]],"fixed":[],"aliases":[]}', "a dtype that cannot stand there"),
        ('{"tensors":[],"fixed":[["w",[1],"F32","max"]],"aliases":[]}', "a dtype that cannot stand there"),
        ('{"tensors":[["w",[1],"F32","max"]],"fixed":[],"aliases":[]}', "a dtype that cannot stand there"),
        (
            '{"tensors":[],"fixed":[],"aliases":[],"buffers":[["w",[1],"I64","max"]]}',
            "a dtype that cannot stand there",
        ),
        (
            '{"tensors":[],"fixed":[],"aliases":[],"counters":[["w",[1],"F32","max"]]}',
            "a dtype that cannot stand there",
        ),
        (
            '{"tensors":[],"fixed":[],"aliases":[],"counters":[["w",[1],"I64","sum"]]}',
            "a row that is not one",
        ),
        ('{"tensors":[],"fixed":[],"aliases":[],"counters":[]}', "canonically"),
        ('{"tensors":[["w",[1],"F32"]],"fixed":[["w",[1],"I64"]],"aliases":[]}', "is taken"),
        ('{"tensors":[["__metadata__",[1],"F32"]],"fixed":[],"aliases":[]}', "is taken"),
        ('{"tensors":[],"fixed":[],"aliases":[["a","b"]]}', "an alias of nothing"),
        ('{"tensors":[["w",[1],"F32"]],"fixed":[],"aliases":[["w","w"]]}', "named as a tensor"),
        ('{"tensors":[], "fixed":[],"aliases":[]}', "canonically"),
        ('{"tensors":[],"fixed":[],"aliases":[],"more":1}', "canonically"),
        ('{"tensors":[],"tensors":[],"fixed":[],"aliases":[]}', "key occurs twice"),
        (
            '{"tensors":[["w",[9223372036854775807,9],"F32"]],"fixed":[],"aliases":[]}',
            "not those of its layout",
        ),
    ],
)
def test_layouts_that_are_none(small: tuple[Path, Rows, bytes], layout: str, why: str) -> None:
    path, rows, data = small
    rows["__metadata__"]["muster.layout"] = layout
    _write(path, rows, data)
    _refused(path, why)


@pytest.mark.parametrize("metadata", [{}, {"muster.layout": "{}", "more": ""}, {"other": "{}"}])
def test_other_metadata(small: tuple[Path, Rows, bytes], metadata: dict[str, str]) -> None:
    path, rows, data = small
    rows["__metadata__"] = metadata
    _write(path, rows, data)
    _refused(path, "metadata is not exactly")
