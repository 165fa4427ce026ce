"""Update and state files, written by one thread and by several; what stops the writing."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from compressors.lowrank.powersgd import Factors
from exchange.contexts import pieces
from exchange.contribution import Contribution
from exchange.local_update import LocalUpdate, StateFiles
from exchange.payload import PayloadReader
from exchange.request import UpdateRequest
from exchange.update import WrittenUpdate, write_update
from muster.errors import TaskError
from muster.model.layout import CHUNK_COORDINATES
from muster.model.modelfile import ModelFile, layout_of, write_initial
from muster.task.task import FitReport

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
    def make(
        name: str, codec: str, feedback: str, before: WrittenUpdate | None = None, *, senders: int = 1
    ) -> WrittenUpdate:
        factor = None
        if codec.endswith(":common") and before is not None:  # of the left sides, as it goes with version 1
            layout = layout_of(trained)
            size = Factors(2, [pieces(layout, index)[0] for index in range(CHUNKS)], 1).size
            factor = tmp_path / "factor"
            torch.randn(size, generator=torch.Generator().manual_seed(4)).numpy().tofile(factor)
        request = UpdateRequest(
            seed=3,
            assignment_id="a",
            run_id="run",
            round=1,
            senders=senders,
            base_version=0 if factor is None else 1,
            factor=factor,
            base_digest="b" * 64,
            worker_momentum=0.9,
            codec=codec,
            feedback=feedback,
            update=tmp_path / name,
            state={} if before is None else before.staged,
            staged=str(tmp_path / f"{name}.state"),
        )
        base, report = ModelFile(tmp_path / "base"), FitReport(examples=5, steps=1)
        try:
            return write_update(request, trained, base, Contribution.of(report))
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
        ("topk:0.01", "dgc:0.9:clip=0.5"),
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
    bodies = bodies_of(tmp_path / "update")
    assert bodies == delta_of(trained, tmp_path / "base").numpy().tobytes()
    assert written.staged["momentum"].read_bytes() == bodies


def delta_of(trained: nn.Module, path: Path) -> Tensor:
    """What training changed [d], tensor by tensor."""
    base = ModelFile(path)
    wanted = torch.empty(base.layout.size)
    at = 0
    for parameter in trained.parameters():
        wanted[at : at + parameter.numel()] = parameter.detach().float().view(-1)
        held = base.vector[at : at + parameter.numel()].to(parameter.dtype).float()
        wanted[at : at + parameter.numel()] -= held
        at += parameter.numel()
    base.close()
    return wanted


def bodies_of(update: Path) -> bytes:
    reader = PayloadReader(update)
    try:
        return b"".join(reader.chunk("params", index) for index in range(CHUNKS))
    finally:
        reader.close()


def test_an_update_is_clipped_as_a_whole_to_the_threshold_by_the_root_of_the_senders(
    tmp_path: Path, trained: nn.Module, write: Write
) -> None:
    """The norm of all chunks: were each clipped by itself, all would have the same."""
    delta = delta_of(trained, tmp_path / "base")
    norm = float(delta.double().norm())
    for senders in (1, 4):
        limit, name = 0.8 * norm / senders**0.5, f"of-{senders}"
        written = write(name, "identity", f"dgc:0:clip={0.8 * norm!r}", senders=senders)
        sent = torch.frombuffer(bytearray(bodies_of(tmp_path / name)), dtype=torch.float32)
        assert float(sent.double().norm()) == pytest.approx(limit, rel=1e-6)
        torch.testing.assert_close(sent, delta * (limit / norm), rtol=1e-6, atol=0)
        assert written.staged["momentum"].read_bytes() == sent.numpy().tobytes()  # it is clipped before that


def test_an_update_below_the_threshold_is_not_touched(
    tmp_path: Path, trained: nn.Module, write: Write
) -> None:
    norm = float(delta_of(trained, tmp_path / "base").double().norm())
    feedbacks = "dgc:0.9", f"dgc:0.9:clip={2.001 * norm!r}", f"dgc:0.9:clip={1.999 * norm!r}"
    without, below, above = (
        bytes_of(tmp_path / str(number), write(str(number), "topk:0.01", feedback, senders=4))
        for number, feedback in enumerate(feedbacks)
    )
    assert below == without
    assert above != without


def test_what_a_drill_sees_is_clipped_each_by_itself(tmp_path: Path, trained: nn.Module) -> None:
    base, view = ModelFile(tmp_path / "base"), tmp_path / "view"
    delta = delta_of(trained, tmp_path / "base")
    (3 * delta).numpy().tofile(view)
    norm = float(delta.double().norm())
    honest = LocalUpdate(trained, base, [view], cast("StateFiles", None), 0.0)
    honest.clip(1.5 * norm)
    rows = torch.cat([honest.chunk(index).clone() for index in range(CHUNKS)], dim=1)
    honest.close()
    base.close()
    assert torch.equal(rows[0], delta)
    torch.testing.assert_close(rows[1], 1.5 * delta, rtol=1e-6, atol=0)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("feedback", ["none", "dgc:0.9:clip=1"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_told_and_leaves_no_thread(
    trained: nn.Module, write: Write, threads: int, feedback: str, bad: float
) -> None:
    with torch.no_grad():
        next(trained.parameters()).view(-1)[2 * CHUNK_COORDINATES + 5] = bad
    torch.set_num_threads(threads)
    running = threading.active_count()
    with pytest.raises(TaskError, match="not finite"):
        write("update", "topk:0.1", feedback)
    assert threading.active_count() == running
