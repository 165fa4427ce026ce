"""Update and state files, written by one thread and by several; what stops the writing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressors.powersgd import Factors
from muster.errors import TaskError
from muster.layout import CHUNK_COORDINATES
from muster.modelfile import ModelFile, layout_of, write_initial
from muster.payload import PayloadReader
from muster.places import pieces
from muster.task import FitReport
from peer.orders import TrainOrder
from peer.update import WrittenUpdate, write_update

CHUNKS = 6

Write = Callable[..., WrittenUpdate]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trained(tmp_path: Path) -> nn.Module:
    """A module of several chunks and a last short one, in two dtypes; its base lies in `tmp_path`."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(512, 2500), nn.Linear(100, 1000).to(torch.bfloat16))
    assert layout_of(model).chunk_count == CHUNKS
    write_initial(tmp_path / "base", layout_of(model), model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return model


@pytest.fixture
def write(tmp_path: Path, trained: nn.Module) -> Write:
    def make(name: str, codec: str, feedback: str, before: WrittenUpdate | None = None) -> WrittenUpdate:
        factor = None
        if codec.endswith(":common") and before is not None:  # of the left sides, as it goes with version 1
            layout = layout_of(trained)
            size = Factors(2, [pieces(layout, index)[0] for index in range(CHUNKS)], 1).size
            factor = str(tmp_path / "factor")
            torch.randn(size, generator=torch.Generator().manual_seed(4)).numpy().tofile(factor)
        order = TrainOrder(
            task="a:B",
            task_folders=(),
            options={},
            site_name="ada",
            site_data={},
            site_seed=0,
            device="cpu",
            base=str(tmp_path / "base"),
            seed=3,
            assignment_id="a",
            run_id="run",
            round=1,
            base_version=0 if factor is None else 1,
            factor=factor,
            base_digest="b" * 64,
            train={"worker_momentum": 0.9},
            codec=codec,
            feedback=feedback,
            counted_round=0,
            update=str(tmp_path / name),
            state={} if before is None else {key: str(path) for key, path in before.staged.items()},
            staged=str(tmp_path / f"{name}.state"),
        )
        base, report = ModelFile(tmp_path / "base"), FitReport(examples=5, steps=1)
        try:
            return write_update(order, trained, base, report, drill=None, views=())
        finally:
            base.close()

    return make


def bytes_of(update: Path, written: WrittenUpdate) -> dict[str, Any]:
    return {"update": update.read_bytes(), **{key: path.read_bytes() for key, path in written.staged.items()}}


@pytest.mark.parametrize(
    ("codec", "feedback"),
    [
        ("int8:stochastic", "none"),
        ("topk:0.01+int8+rice", "ef14"),
        ("powersgd:2", "ef14"),
        ("powersgd:2:common", "ef14"),
        ("sign", "momentum:0.9"),
        ("int8|int4|topk:0.1", "ef14"),
    ],
)
def test_four_threads_write_the_bytes_of_one(tmp_path: Path, write: Write, codec: str, feedback: str) -> None:
    found: list[dict[str, Any]] = []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        first = write(f"first-{threads}", codec, feedback)
        found.append(bytes_of(tmp_path / f"first-{threads}", first))
        momentum = first.staged["momentum"]
        momentum.write_bytes(bytes(momentum.stat().st_size))  # another than it would become by itself
        second = write(f"second-{threads}", codec, feedback, first)
        found.append(bytes_of(tmp_path / f"second-{threads}", second))
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert found[0] != found[1]  # the state was read


def test_bodies_and_state_stand_in_the_order_of_the_chunks(
    tmp_path: Path, trained: nn.Module, write: Write
) -> None:
    torch.set_num_threads(4)
    written = write("update", "identity", "none")
    base = ModelFile(tmp_path / "base")
    wanted = torch.empty(base.layout.size)
    at = 0
    for parameter in trained.parameters():
        wanted[at : at + parameter.numel()] = parameter.detach().float().view(-1)
        held = base.vector[at : at + parameter.numel()].to(parameter.dtype).float()
        wanted[at : at + parameter.numel()] -= held
        at += parameter.numel()
    base.close()
    reader = PayloadReader(tmp_path / "update")
    bodies = b"".join(reader.chunk("params", index) for index in range(CHUNKS))
    reader.close()
    assert bodies == wanted.numpy().tobytes()
    assert written.staged["momentum"].read_bytes() == bodies


@pytest.mark.parametrize("threads", [1, 4])
def test_a_value_that_is_not_finite_is_told_and_leaves_no_thread(
    trained: nn.Module, write: Write, threads: int
) -> None:
    with torch.no_grad():
        next(trained.parameters()).view(-1)[2 * CHUNK_COORDINATES + 5] = float("nan")
    torch.set_num_threads(threads)
    running = threading.active_count()
    with pytest.raises(TaskError, match="not finite"):
        write("update", "int8", "none")
    assert threading.active_count() == running
