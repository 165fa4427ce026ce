"""How a peer comes by a version: which deltas lead to it from one that the peer holds, and what goes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from coordinator.runs import Runs
from coordinator.store import ModelRow, Store
from exchange.names import DELTA, FACTOR, KEPT, SCALE
from muster.files.blobs import BlobStore


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file that a peer may fetch."""

    name: str  # of the group that is kept; "" for a delta
    digest: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """Without a base the peer fetches the version whole. Digests of what there is not are ""."""

    factor_digest: str
    groups: Sequence[StoredFile]
    base_digest: str = ""
    scale_digest: str = ""
    deltas: Sequence[StoredFile] = ()


class ModelPlans:
    """How a peer comes from the versions that it holds to the one that it needs."""

    def __init__(self, *, runs: Runs, store: Store, blobs: BlobStore) -> None:
        self._runs = runs
        self._store = store
        self._blobs = blobs

    async def plan(
        self, run_id: str, wanted: ModelRow, held_digests: Sequence[str], *, draws_initial: bool
    ) -> ModelPlan:
        """The deltas from the newest version that is held, where all are here and shorter than the version; and the
        factor and the groups that go with the wanted version, whatever is held."""
        states = await self._store.optimizer_states(run_id, wanted.version)
        plan = ModelPlan(factor_digest=states.get(FACTOR, ""), groups=self._groups(states))
        found = [await self._store.model_by_digest(run_id, digest) for digest in held_digests]
        if draws_initial:
            found.append(await self._store.model(run_id, version=0))
        held = [model for model in found if model is not None and model.version < wanted.version]
        if not held:
            return plan
        base = max(held, key=lambda model: model.version)
        digests = await self._store.deltas(run_id, base.version, wanted.version)
        if len(digests) < wanted.version - base.version or not all(map(self._blobs.has, digests)):
            return plan
        deltas = [self._file("", digest) for digest in digests]
        scale = states.get(SCALE, "")
        too_long = sum(delta.size_bytes for delta in deltas) >= wanted.size_bytes
        if too_long or (scale and not self._blobs.has(scale)):
            return plan
        return replace(plan, base_digest=base.digest, scale_digest=scale, deltas=deltas)

    async def names_beside(self, run_id: str) -> tuple[str, ...]:
        """Of what peers may fetch beside a version of the run."""
        run = self._runs.get(run_id)
        if run is None or run.model is None:
            return DELTA, SCALE, FACTOR
        # What is kept once is there with every later version.
        states = await self._store.optimizer_states(run_id, run.model.version)
        return DELTA, SCALE, FACTOR, *(name for name in states if name.startswith(KEPT))

    def _groups(self, states: Mapping[str, str]) -> list[StoredFile]:
        """What is kept of groups among a version's states. One whose file is gone is named too, without a size: a peer
        that needs it learns so when it fetches it, and does not take it for zeros."""
        return [
            self._file(name.removeprefix(KEPT), digest)
            if self._blobs.has(digest)
            else StoredFile(name=name.removeprefix(KEPT), digest=digest, size_bytes=0)
            for name, digest in sorted(states.items())
            if name.startswith(KEPT)
        ]

    def _file(self, name: str, digest: str) -> StoredFile:
        return StoredFile(name=name, digest=digest, size_bytes=self._blobs.path(digest).stat().st_size)
