"""Four peers on a ring that admit and mix each other's updates, with no coordinator among them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from exchange import Manifest, PayloadReader, PayloadWriter
from muster import Site, Task
from muster.model.layout import PARAMS
from muster.model.modelfile import ModelFile
from muster.spec.model import RunSpec
from muster.transport.memory import MemoryHub, MemoryTransport
from simulator import Network, run

NAMES = ("ada", "ben", "cy", "dee")
RING = {name: (NAMES[at - 1], NAMES[(at + 1) % len(NAMES)]) for at, name in enumerate(NAMES)}
ROUNDS = 6
Lie = Callable[[Path], Path]  # the file that is handed out instead of the honest one


class Blobs(Task):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def train_data(self, site: Site) -> TensorDataset:
        generator = torch.Generator().manual_seed(site.data["index"])
        targets = torch.arange(32) % 2
        return TensorDataset(torch.randn(32, 4, generator=generator) + 2 * targets[:, None], targets)


def make_spec(seed: int) -> RunSpec:
    return RunSpec.model_validate(
        {
            "task": "some.where:Blobs",
            "rounds": ROUNDS,
            "seed": seed,
            "train": {"lr": 0.3, "batch_size": 8},
            "aggregation": {"rule": "mean"},
            "round": {"deadline_seconds": 60},
        }
    )


def ring(
    folder: Path, *, seed: int = 0, liar: str = "", lie: Lie | None = None, away: str = ""
) -> dict[str, Any]:
    """The peers after all rounds. One lies about each of its updates, or is cut off from everybody."""
    from muster_methods.ring import RingPeer  # pyright: ignore[reportMissingImports]

    class Liar(RingPeer):  # type: ignore[misc]  # it is installed by the fixture alone
        def train(self, number: int) -> Path:
            path: Path = super().train(number)
            return path if lie is None else lie(path)

    folder.mkdir()
    network = Network(seed, delay_seconds_max=0.5)
    for name in NAMES:
        if away not in ("", name):
            network.part(away, name)
    hub = MemoryHub(faults=network)
    peers: dict[str, Any] = {
        name: (Liar if name == liar else RingPeer)(
            name=name,
            graph=RING,
            folder=folder / name,
            spec=make_spec(seed),
            task=Blobs(),
            data={"index": index},
            transport=MemoryTransport(hub, name=name),
        )
        for index, name in enumerate(NAMES)
    }

    async def together() -> None:
        await asyncio.gather(*(peer.run() for peer in peers.values()))
        for peer in peers.values():
            await peer.server.stop(0.0)

    run(together(), seed=seed)
    return peers


def values(peer: Any) -> Tensor:
    with closing(ModelFile(peer.version)) as file:
        return file.vector.clone()


def spread(peers: list[Any]) -> float:
    """How far apart their models are, of how far they have come."""
    with closing(ModelFile(peers[0].folder / "version0")) as file:
        rows = torch.stack([values(peer) for peer in peers]) - file.vector
    return float((rows - rows.mean(0)).norm() / rows.norm())


def test_the_losses_fall_and_the_models_come_together(
    tmp_path: Path, installed_methods: Mapping[str, str]
) -> None:
    peers = ring(tmp_path / "ring")
    for peer in peers.values():
        assert len(peer.losses) == ROUNDS
        assert peer.losses[-1] < 0.75 * peer.losses[0]
        assert not peer.missed
    assert spread(list(peers.values())) < 0.15


def test_the_mixture_is_the_metropolis_average(tmp_path: Path, installed_methods: Mapping[str, str]) -> None:
    peers = ring(tmp_path / "ring")
    with closing(ModelFile(tmp_path / "ring" / "ada" / "version0")) as file:
        start = file.vector.clone()
    trained: dict[str, Tensor] = {}
    for name in NAMES:
        with closing(PayloadReader(tmp_path / "ring" / name / f"{ROUNDS}.{name}.update")) as reader:
            trained[name] = start + torch.frombuffer(bytearray(reader.chunk(PARAMS, 0)), dtype=torch.float32)
    for name, peer in peers.items():
        near = (name, *RING[name])
        wanted = torch.stack([trained[each] for each in near]).mean(0)  # each of a ring has two neighbours
        torch.testing.assert_close(values(peer), wanted, atol=1e-6, rtol=0)


def test_the_same_seed_gives_the_same_models_to_the_byte(
    tmp_path: Path, installed_methods: Mapping[str, str]
) -> None:
    def models(name: str, seed: int) -> dict[str, bytes]:
        return {peer.name: peer.version.read_bytes() for peer in ring(tmp_path / name, seed=seed).values()}

    first = models("first", 1)
    assert models("second", 1) == first
    assert all(mine != first[name] for name, mine in models("other", 2).items())


def _rewritten(path: Path, change: Callable[[Manifest], Manifest], body: Callable[[bytes], bytes]) -> Path:
    with closing(PayloadReader(path)) as reader:
        manifest, held = reader.manifest, bytes(reader.chunk(PARAMS, 0))
    told = path.with_suffix(".told")
    writer = PayloadWriter(told, change(manifest))
    writer.append(PARAMS, body(held))
    writer.finish()
    return told


def not_finite(path: Path) -> Path:
    def body(held: bytes) -> bytes:
        chunk = torch.frombuffer(bytearray(held), dtype=torch.float32)
        chunk[3] = torch.nan
        return chunk.numpy().tobytes()

    return _rewritten(path, lambda manifest: manifest, body)


def another_layout(path: Path) -> Path:
    def change(manifest: Manifest) -> Manifest:
        return Manifest(**{**vars(manifest), "layout_digest": "0" * 64})

    return _rewritten(path, change, lambda held: held)


@pytest.mark.parametrize(
    ("lie", "told"), [(not_finite, "update.not_finite"), (another_layout, "update.mismatch")]
)
def test_who_lies_is_rejected_by_name_and_the_others_go_on(
    tmp_path: Path, installed_methods: Mapping[str, str], lie: Lie, told: str
) -> None:
    peers = ring(tmp_path / "ring", liar="cy", lie=lie)
    assert peers["ben"].missed == peers["dee"].missed == [(n, "cy", told) for n in range(1, ROUNDS + 1)]
    assert not peers["ada"].missed
    for name in ("ada", "ben", "dee"):
        assert peers[name].losses[-1] < 0.75 * peers[name].losses[0]
    assert bool(values(peers["ben"]).isfinite().all())


def test_who_is_away_is_not_waited_for_beyond_the_deadline(
    tmp_path: Path, installed_methods: Mapping[str, str]
) -> None:
    peers = ring(tmp_path / "ring", away="cy")
    assert [(n, name) for n, name, _ in peers["ben"].missed] == [(n, "cy") for n in range(1, ROUNDS + 1)]
    assert len(peers["cy"].missed) == 2 * ROUNDS
    for name in ("ada", "ben", "dee"):
        assert peers[name].losses[-1] < 0.75 * peers[name].losses[0]
