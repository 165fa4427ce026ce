"""SPSA from the worker's job to the coordinator's link, against its equations written out; what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import Philox
from numpy.typing import NDArray
from torch import Tensor, nn

from compressors.sketches.one_byte import GRID, to_bytes
from exchange import links
from exchange.contexts import ChunkContexts
from exchange.payload import PayloadReader
from muster.errors import ConfigError, TaskError
from muster.model.layout import CHUNK_COORDINATES
from muster.model.modelfile import ModelFile, layout_of, write_initial
from muster.seeds import assignment_seed, derive_seed
from muster.spec.model import RunSpec
from muster.task.loading import load_task
from muster.task.task import Site, Task
from peer.training import build
from peer.training.batches import Batches
from peer.work import jobs
from peer.work import orders as peer_orders
from peer.work.orders import Trained, TrainOrder
from protos.v1.membership_pb2 import Assignment, Base, Work

ROUND, PEER, BASE = 4, "ada", "ba5e"
SLOPES = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster


class Slopes(muster.Task):
    def model(self):
        width = self.options.get("width", 30)
        model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Dropout(0.5), nn.Linear(width, 2))
        if self.options.get("frozen"):
            model[0].bias.requires_grad_(False)
        return model.to(torch.bfloat16) if self.options.get("narrow") else model

    def train_data(self, site):
        generator = torch.Generator().manual_seed(3)
        targets = torch.arange(41) % 2
        inputs = torch.randn(41, 3, generator=generator) + 2.0 * targets[:, None]
        return TensorDataset(inputs * site.data.get("scale", 1.0), targets)
"""

Made = tuple[TrainOrder, RunSpec]


@pytest.fixture(autouse=True)
def _fresh_places() -> Iterator[None]:
    jobs._places.clear()  # pyright: ignore[reportPrivateUsage]
    yield
    jobs._places.clear()  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
def order(tmp_path: Path, toy_folder: Path) -> Callable[..., Made]:
    """A training order as the run spec has it, of `Slopes` with these options, and the spec."""
    (toy_folder / "slopes_task.py").write_text(SLOPES)

    def make(
        up: str = "one-byte:10",
        task: str = "slopes_task:Slopes",
        site: dict[str, Any] | None = None,
        **options: Any,
    ) -> Made:
        train = {"algorithm": "spsa", "lr": 0.2, "batch_size": 16}
        spec = RunSpec.model_validate(
            {"task": task, "rounds": 9, "train": train, "compression": {"up": up}, "task_options": options}
        )
        torch.manual_seed(1)
        model = load_task(task, [toy_folder], options).model()
        base = tmp_path / "base.safetensors"
        write_initial(base, layout_of(model), model)
        offer = Assignment(
            assignment_id="r.4.ada.1",
            run_id="r",
            round=ROUND,
            work=Work(role="train", base=Base(version=ROUND - 1, digest=BASE)),
            seed=assignment_seed(spec.seed, "train", ROUND, PEER),
        )
        ada = peer_orders.Site(name=PEER, task_folders=(str(toy_folder),))
        made = peer_orders.train_order(
            ada, offer, spec, data=site or {}, device="cpu", base=base, stem=tmp_path / "ada", state={}
        )
        return made, spec

    return make


def train(order: TrainOrder) -> Trained:
    return Trained(**jobs.train(asdict(order), lambda share: None))


def bodies(order: TrainOrder) -> list[bytes]:
    reader = PayloadReader(Path(order.update))
    group = reader.manifest.groups[0]
    found = [bytes(reader.chunk("params", index)) for index in range(group.chunk_count)]
    reader.close()
    return found


def directions(places: ChunkContexts, count: int) -> NDArray[np.float32]:
    """[count, size] of +-1, by numpy's own Philox."""
    layout = places.layout
    found = np.empty((count, layout.size), dtype=np.float32)
    for index in range(layout.chunk_count):
        start, stop = layout.chunk_bounds(index)
        key = np.array([places.at(index).own, 0], dtype=np.uint64)
        for s in range(count):
            counter = np.array([0, s // 8, 0, 0], dtype=np.uint64)
            words = Philox(key=key, counter=counter).random_raw(-(-(stop - start) // 8))
            found[s, start:stop] = np.where(words.view(np.uint8)[: stop - start] >> s % 8 & 1, 1, -1)
    return found


def expected(task: Task, base: Tensor, z: NDArray[np.float32], order: TrainOrder) -> NDArray[np.uint8]:
    """[P] the bytes of -lr / P times the slopes, each on its own batch, with eps 1e-3."""
    data = task.train_data(Site(name=PEER))
    batches = Batches(data, 16, derive_seed(order.seed, "batches"))
    drawn = [batch for _ in range(1 + len(z) // 2) for batch, _ in batches.one_pass()]
    slopes: list[float] = []
    for direction, batch in zip(torch.from_numpy(z), drawn, strict=False):
        above, below = (loss(task, base + sign * 1e-3 * direction, batch) for sign in (1, -1))
        slopes.append((above - below) / 2e-3)
    return to_bytes(np.array(slopes) * (-0.2 / len(z)))


def loss(task: Task, vector: Tensor, batch: Any) -> float:
    model = task.model().eval()
    nn.utils.vector_to_parameters(vector, model.parameters())
    with torch.no_grad():
        return float(task.loss(model, batch))


@pytest.mark.parametrize("width", [30, 45_000])  # of one chunk, and of more
def test_the_coordinator_moves_by_what_the_peer_found(
    order: Callable[..., Made], toy_folder: Path, width: int
) -> None:
    made, spec = order(width=width)
    trained = train(made)
    assert (trained.examples, trained.steps) == (41, 10)
    assert math.isfinite(trained.metrics["loss"])
    base = ModelFile(Path(made.base))
    layout = base.layout
    places = links.contexts(spec, layout, base_digest=BASE, round=ROUND, peer_id=PEER)
    z = directions(places, 10)
    wanted = expected(load_task(made.task, [toy_folder], made.options), base.vector.clone(), z, made)
    base.close()
    assert np.count_nonzero(wanted) == 10
    assert bodies(made) == [wanted.tobytes()] * -(-layout.size // CHUNK_COORDINATES)
    link = links.Link(spec, links.codecs(spec, ROUND)[0], places, estimate=None, factor=None)
    decoded = torch.empty(layout.size)
    for index, body in enumerate(bodies(made)):
        link.decode(memoryview(body), decoded[slice(*layout.chunk_bounds(index))], index)
    link.close()
    np.testing.assert_allclose(decoded.numpy(), GRID[wanted] @ z, rtol=1e-4, atol=1e-6)
    assert float(decoded.norm()) > 1e-3


def test_the_same_order_gives_the_same_bytes_and_another_peer_has_other_directions(
    order: Callable[..., Made],
) -> None:
    made, _ = order()
    first = train(made).digest
    torch.manual_seed(999)
    assert train(made).digest == first
    assert train(replace(made, seed=5)).digest != first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"narrow": True}, "'0.weight' is torch.bfloat16"),
    ],
)
def test_models_whose_parameters_are_narrow_are_refused(
    order: Callable[..., Made], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        train(order(**changes)[0])
    assert caught.value.id == "train.unsuited_model"


@pytest.mark.parametrize("changes", [{"frozen": True}, {"task": "toy_task:Toy"}], ids=str)
def test_what_is_not_trained_is_no_part_of_the_directions(
    order: Callable[..., Made], changes: dict[str, Any]
) -> None:
    made, _ = order(**changes)
    base = ModelFile(Path(made.base))
    base.close()
    train(made)
    assert base.layout.fixed or base.layout.buffers
    assert len(bodies(made)) == base.layout.chunk_count


@pytest.mark.parametrize("up", ["int8", "one-byte:4+zstd", "identity"])
def test_another_codec_is_refused(order: Callable[..., Made], up: str) -> None:
    with pytest.raises(ConfigError, match="only the codec one-byte sends") as caught:
        train(order(up)[0])
    assert caught.value.id == "train.needs_one_byte"


def test_a_loss_that_is_not_finite_is_told_of(order: Callable[..., Made]) -> None:
    with pytest.raises(TaskError) as caught:
        train(order(site={"scale": math.inf})[0])
    assert caught.value.id == "task.not_finite"


@pytest.mark.parametrize("eps", [0.0, -1e-3, math.nan, math.inf])
def test_eps_is_above_zero(eps: float) -> None:
    with pytest.raises(ConfigError, match="eps is above 0"):
        build("spsa", {"eps": eps})
    with pytest.raises(ConfigError, match="no option 'samples'"):
        build("spsa", {"samples": 4})
