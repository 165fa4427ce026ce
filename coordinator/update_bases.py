"""What updates were made against: the version and round of each one's own assignment, and what goes with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from exchange.job import UpdateBase, UpdateInput
from exchange.names import FACTOR
from muster.errors import NotFoundError

if TYPE_CHECKING:
    from coordinator.store import Store
    from muster.files.blobs import BlobStore
    from muster.spec.model import RunSpec


class UpdateBases:
    """Of the updates of one run. Each version is looked up once."""

    def __init__(self, store: Store, blobs: BlobStore, run_id: str, spec: RunSpec) -> None:
        self._store = store
        self._blobs = blobs
        self._run_id = run_id
        self._spec = spec
        self._digests: dict[int, str] = {}
        self._states: dict[int, Mapping[str, str]] = {}

    async def of(self, peer_id: str, *, version: int, round: int) -> UpdateBase:
        """Raises `NotFoundError` "model.not_found" if the run has no such version."""
        from exchange import links

        if version not in self._digests:
            model = await self._store.model(self._run_id, version=version)
            if model is None:
                raise NotFoundError(
                    "model.not_found",
                    f"run {self._run_id!r} has no version {version}",
                    fix=f"muster model list {self._run_id}",
                )
            self._digests[version] = model.digest
            self._states[version] = await self._store.optimizer_states(self._run_id, version)
        states = self._states[version]
        differences = links.sends_differences(self._spec)
        estimate = states.get(links.state_name(peer_id)) if differences else None
        factor = states.get(FACTOR) if links.shares_factor(self._spec) else None
        return UpdateBase(
            version=version,
            digest=self._digests[version],
            round=round,
            estimate=None if estimate is None else self._blobs.path(estimate),
            factor=None if factor is None else self._blobs.path(factor),
        )


def kept_beside(updates: Iterable[UpdateInput]) -> frozenset[str]:
    """Digests of what the updates are decoded with."""
    paths = (path for update in updates for path in (update.base.estimate, update.base.factor))
    return frozenset(path.name for path in paths if path is not None)
