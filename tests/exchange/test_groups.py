"""Groups beside the parameters: what can be declared, how their chunks are coded and folded, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from exchange.contexts import ChunkContexts
from exchange.folds import GroupUpdates, advance, read_kept
from exchange.group_files import check_groups, specs_of, write_groups
from exchange.groups import (
    ADD,
    ANY,
    DTYPES,
    F32,
    F64,
    I64,
    MAX,
    MEAN,
    MIN,
    REPLACE,
    SHARES,
    SUM,
    Group,
    GroupCoder,
)
from exchange.payload import Manifest, PayloadReader, PayloadWriter
from exchange.request import UpdateRequest
from exchange.tensorfile import read_tensors, write_tensors
from muster.errors import ConfigError, TaskError, UpdateRejected
from muster.model.layout import ParameterLayout, TensorSpec

LAYOUT = ParameterLayout(
    tensors=(
        TensorSpec(name="weight", shape=(3, 4), dtype="F32"),
        TensorSpec(name="bias", shape=(3,), dtype="F32"),
    )
)
CONTEXTS = ChunkContexts(layout=LAYOUT, base_digest="b", round=1, sender=7)
UNIT: Mapping[str, tuple[int, ...]] = {"value": (2,)}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "params"}, "the model's own"),
        ({"name": "no/slash"}, "letters, digits"),
        ({"name": "x", "dtype": "F16"}, "none of F32, F64, I64"),
        ({"name": "x", "keep": "always"}, "keep is 'always'"),
        ({"name": "x", "fold": "krumm"}, "fold 'krumm'"),
        ({"name": "x", "fold": "median", "dtype": F64}, "of an F32 group"),
        ({"name": "x", "fold": MEAN, "dtype": I64}, "integers have no mean"),
        ({"name": "x", "codec": "int8", "dtype": F64}, "travels without loss"),
        ({"name": "x", "codec": "int9"}, "int9"),
        ({"name": "x", "codec": "topk:0.1", "feedback": "ef21"}, "for the parameters alone"),
        ({"name": "x", "codec": "powersgd:4:common"}, "for the parameters alone"),
        ({"name": "x", "tensors": {}}, "0 values"),
    ],
)
def test_what_cannot_be_a_group_is_told(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        Group(**fields)
    assert caught.value.id == "train.bad_group"


def _values(dtype: str) -> st.SearchStrategy[float | int]:
    if dtype == I64:
        return st.integers(-(2**63), 2**63 - 1)
    return st.floats(allow_nan=False, allow_infinity=False, width=32 if dtype == F32 else 64)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), dtype=st.sampled_from([F32, F64, I64]))
def test_without_a_codec_nothing_is_lost(data: st.DataObject, dtype: str) -> None:
    values = data.draw(st.lists(_values(dtype), min_size=1, max_size=20))
    group = Group(name="x", tensors={"t": (len(values),)}, dtype=dtype, fold=SUM)
    coder = GroupCoder(group, group.vector(LAYOUT), CONTEXTS)
    sent = torch.tensor(values, dtype=DTYPES[dtype])
    body = coder.encode(0, sent, {}, seed=1)
    assert len(body) <= coder.bytes_max()
    found = torch.empty_like(sent)
    coder.decode(0, memoryview(body), found)
    assert torch.equal(found, sent)


class Sender:
    """Writes updates that hold one group and nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0

    def send(
        self, group: Group, tensors: Mapping[str, Tensor], state: Mapping[str, Path] | None = None
    ) -> tuple[PayloadReader, dict[str, Path]]:
        self._made += 1
        path = self._folder / f"update-{self._made}"
        manifest = Manifest(
            run_id="r", round=1, assignment_id="a", base_digest="b", layout_digest="l",
            groups=specs_of([group], LAYOUT),
        )  # fmt: skip
        request = UpdateRequest(
            run_id="r", round=1, assignment_id="a", base_version=0, base_digest="b", codec="identity",
            feedback="none", seed=7, update=path, staged=f"{path}.state", state=state or {},
        )  # fmt: skip
        writer = PayloadWriter(path, manifest)
        with closing(writer):
            staged = write_groups(writer, [group], {group.name: tensors}, request, CONTEXTS)
            writer.finish()
        return PayloadReader(path), staged


@pytest.fixture
def sender(tmp_path: Path) -> Sender:
    return Sender(tmp_path)


@pytest.fixture
def folded(tmp_path: Path, sender: Sender) -> Callable[..., list[float]]:
    """folded(group, rows, before=...): what is kept after a round of updates with these values of "value"."""

    def fold(group: Group, rows: list[list[float]], before: Path | None = None, **more: Any) -> list[float]:
        readers = [
            sender.send(group, {"value": torch.tensor(row, dtype=DTYPES[group.dtype])})[0] for row in rows
        ]
        vector = group.vector(LAYOUT)
        updates = GroupUpdates(
            group=group,
            vector=vector,
            coders=[GroupCoder(group, vector, CONTEXTS) for _ in readers],
            readers=readers,
        )
        given: dict[str, Any] = {"shares": [1.0 / len(rows)] * len(rows), "faults": 0, "seed": 0, **more}
        advance(updates, before, tmp_path / "kept", **given)
        found = read_kept(vector, tmp_path / "kept")["value"].tolist()
        assert len(found) == 2
        return [float(value) for value in found]

    return fold


@pytest.mark.parametrize(
    ("fields", "more", "wanted"),
    [
        ({"fold": MEAN}, {}, [2.0, 0.0]),
        ({"fold": SUM}, {}, [6.0, 0.0]),
        ({"fold": SUM, "dtype": F64}, {}, [6.0, 0.0]),
        ({"fold": SUM, "dtype": I64}, {}, [6.0, 0.0]),
        ({"fold": SHARES}, {"shares": [0.5, 0.5, 0.0]}, [1.0, -1.0]),
        ({"fold": MAX}, {}, [4.0, 2.0]),
        ({"fold": MIN, "dtype": I64}, {}, [0.0, -2.0]),
        ({"fold": ANY, "dtype": I64}, {}, [1.0, 1.0]),
        ({"fold": "median"}, {}, [2.0, 0.0]),
        ({"fold": "trimmed-mean"}, {"faults": 1}, [2.0, 0.0]),
    ],
)
def test_each_fold_is_what_it_says(
    folded: Callable[..., list[float]], fields: dict[str, Any], more: dict[str, Any], wanted: list[float]
) -> None:
    group = Group(name="x", tensors=UNIT, keep=REPLACE, **fields)
    assert folded(group, [[2, -2], [0, 0], [4, 2]], **more) == wanted


def test_what_is_added_keeps_what_was_there(folded: Callable[..., list[float]], tmp_path: Path) -> None:
    group = Group(name="x", tensors=UNIT, dtype=F64, fold=MEAN, keep=ADD)
    assert folded(group, [[1, 2], [3, 4]]) == [2.0, 3.0]
    (tmp_path / "kept").rename(tmp_path / "before")
    assert folded(group, [[1, 0], [0, 1e-12]], before=tmp_path / "before") == [2.5, 3.0 + 5e-13]


def test_a_feedback_sends_later_what_a_codec_left_out(sender: Sender) -> None:
    group = Group(name="x", tensors={"value": (8,)}, codec="topk:0.125", feedback="ef14")
    values = torch.tensor([4.0, 3.0, 0, 0, 0, 0, 0, 0])
    total, state = torch.zeros(8), {}
    for _ in range(2):
        reader, state = sender.send(group, {"value": values if not state else torch.zeros(8)}, state)
        coder = GroupCoder(group, group.vector(LAYOUT), CONTEXTS)
        out = torch.empty(8)
        coder.decode(0, reader.chunk("x", 0), out)
        total += out
    assert total.tolist() == values.tolist()
    assert list(state) == ["group/x/residual"]


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({}, "'value' is missing"),
        ({"value": torch.zeros(3)}, r"shape \[3\], not \[2\]"),
        ({"value": torch.zeros(2), "other": torch.zeros(1)}, "'other' is no tensor of it"),
        ({"value": torch.tensor([0.0, torch.nan])}, "not finite"),
    ],
)
def test_a_contribution_that_is_not_as_declared_costs_its_maker(
    sender: Sender, tensors: dict[str, Tensor], told: str
) -> None:
    with pytest.raises(TaskError, match=told) as caught:
        sender.send(Group(name="x", tensors=UNIT), tensors)
    assert caught.value.id == "train.bad_contribution"


def _lying(path: Path, group: Group, values: Tensor) -> PayloadReader:
    """An update whose group holds what no honest sender writes."""
    manifest = Manifest(
        run_id="r", round=1, assignment_id="a", base_digest="b", layout_digest="l",
        groups=specs_of([group], LAYOUT),
    )  # fmt: skip
    writer = PayloadWriter(path, manifest)
    writer.append("x", GroupCoder(group, group.vector(LAYOUT), CONTEXTS).encode(0, values, {}, 0))
    writer.finish()
    return PayloadReader(path)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    ("value", "limit", "error_id"),
    [
        (torch.nan, None, "update.not_finite"),
        (torch.inf, None, "update.not_finite"),
        (1e30, None, "update.norm_too_large"),
        (2.0, 1.5, "update.norm_too_large"),
    ],
)
def test_a_group_is_admitted_as_the_parameters_are(
    tmp_path: Path, dtype: str, value: float, limit: float | None, error_id: str
) -> None:
    group = Group(name="x", tensors=UNIT, dtype=dtype, norm_max=limit)
    reader = _lying(tmp_path / "u", group, torch.tensor([0.0, value], dtype=DTYPES[dtype]))
    with pytest.raises(UpdateRejected) as caught:
        check_groups(reader, [group], CONTEXTS)
    assert caught.value.id == error_id


def test_a_body_of_another_length_does_not_decode(tmp_path: Path) -> None:
    group = Group(name="x", tensors=UNIT, dtype=F64)
    longer = Group(name="x", tensors={"value": (3,)}, dtype=F64)
    reader = _lying(tmp_path / "u", longer, torch.zeros(3, dtype=torch.float64))
    with pytest.raises(UpdateRejected) as caught:
        check_groups(reader, [group], CONTEXTS)
    assert caught.value.id == "update.undecodable"


def test_a_state_of_any_tensors_comes_back(tmp_path: Path) -> None:
    state = {
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "one": torch.tensor(3.25, dtype=torch.float64),
        "none": torch.empty(0, 4),
        "matrix": torch.arange(6).view(2, 3).T,
    }
    write_tensors(tmp_path / "state", state)
    found = read_tensors(tmp_path / "state")
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    found["half"].zero_()  # a copy of the reader's own
    assert read_tensors(tmp_path / "state")["half"].tolist() == [1.5, -2.0]


def test_a_state_that_is_no_plain_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="'sparse'") as caught:
        write_tensors(tmp_path / "state", {"sparse": torch.eye(2).to_sparse()})
    assert caught.value.id == "train.bad_state"
