"""One update on its way in: what its header must say, what its body is checked against, and what a refusal leaves.

The order is the protocol's: complete, admitted, in the blob store. Killed between any two of these, a body is checked
again; a refusal is recorded before it is told.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from pathlib import Path

from coordinator.engine.state import AssignmentState, RunState, UpdateRefused
from coordinator.intake.completed_uploads import CompletedUploads
from coordinator.intake.layouts import Layouts
from coordinator.intake.spool import Spool
from coordinator.runs import Runs
from coordinator.store import Store
from exchange.facts import UpdateFacts
from exchange.names import FACTOR
from muster.errors import TransferError, UpdateRejected
from muster.files.blobs import BlobStore
from muster.transfer.streams import PartialBody
from protos.v1.tensors_pb2 import BlobHeader


class Intake:
    """Checks uploads against their assignments, and admits complete ones."""

    def __init__(
        self,
        *,
        runs: Runs,
        store: Store,
        blobs: BlobStore,
        spool: Spool,
        layouts: Layouts,
        completed: CompletedUploads,
        executor: Executor,
    ) -> None:
        self._runs = runs
        self._store = store
        self._blobs = blobs
        self._spool = spool
        self._layouts = layouts
        self._completed = completed
        self._executor = executor

    def open(self, header: BlobHeader) -> PartialBody:
        """What is held of this update, to go on with; empty for a new one. Blocks."""
        return PartialBody.open(self._spool.path(header.assignment_id), header)

    async def check_header(self, run: RunState, assignment: AssignmentState, header: BlobHeader) -> None:
        if (header.run_id, header.round) != (assignment.run_id, assignment.round):
            raise UpdateRejected(
                "update.stale_round",
                f"the update is for run {header.run_id!r} round {header.round}, "
                f"its assignment for run {assignment.run_id!r} round {assignment.round}",
                fix="drop it; the next round asks again",
            )
        from exchange.admission import update_bytes_max

        layout = await self._layouts.of(run)
        error: UpdateRejected | None = None
        if header.layout_digest != layout.digest:
            error = UpdateRejected(
                "update.wrong_layout",
                "the update's tensors have other names, shapes or dtypes than this run's model",
                fix="install the same version of the task on coordinator and peer",
            )
        elif header.size_bytes > (
            most := update_bytes_max(run.spec, layout, assignment.work.base, assignment.work.role)
        ):
            error = UpdateRejected(
                "update.oversize",
                f"the update has {header.size_bytes} bytes; with codec {run.spec.compression.up!r} "
                f"it can have at most {most}",
                fix="install the same version of Muster and of the task on coordinator and peer",
            )
        if error is not None:
            await self._refused(assignment, error)
            raise error

    async def admit(self, run: RunState, assignment: AssignmentState, digest: str) -> UpdateFacts:
        """Complete, checked and in the blob store; a rejection is recorded before it is told."""
        from exchange.admission import Expected, admit

        path = self._spool.path(assignment.assignment_id)
        body = self._completed.take(assignment.assignment_id)
        if body is None:
            body = await asyncio.to_thread(_reopen, path)
        try:
            if body.header.digest != digest:
                raise TransferError(
                    "transfer.digest", "the body that is held has another digest than the commit"
                )
            loop = asyncio.get_running_loop()
            await body.complete()
            estimate, factor = await self._beside(run, assignment)
            expected = Expected(
                assignment_id=assignment.assignment_id,
                peer_id=assignment.peer_id,
                run_id=run.run_id,
                round=assignment.round,
                base_version=assignment.work.base,
                base_digest=run.models[assignment.work.base].digest,
                layout=await self._layouts.of(run),
                spec=run.spec,
                role=assignment.work.role,
                source_digest=run.source_digest,
                estimate=estimate,
                factor=factor,
            )
            facts = await loop.run_in_executor(self._executor, admit, path, digest, expected)
        except UpdateRejected as error:
            body.remove()
            await self._refused(assignment, error)
            raise
        finally:
            body.close()
        await self._blobs.adopt(path, digest)
        body.remove()
        return facts

    async def _beside(self, run: RunState, assignment: AssignmentState) -> tuple[Path | None, Path | None]:
        """What an update against its base version is read with: the peer's estimate and the round's factor, if any."""
        from exchange import links

        differences, factor = links.sends_differences(run.spec), links.shares_factor(run.spec)
        if not (differences or factor):
            return None, None
        blobs = self._blobs
        states = await self._store.optimizer_states(run.run_id, assignment.work.base)
        held = {name: blobs.path(digest) for name, digest in states.items()}
        estimate = held.get(links.state_name(assignment.peer_id)) if differences else None
        return estimate, held.get(FACTOR) if factor else None

    async def _refused(self, assignment: AssignmentState, error: UpdateRejected) -> None:
        await self._runs.post_surely(
            UpdateRefused(
                run_id=assignment.run_id,
                assignment_id=assignment.assignment_id,
                error_id=error.id,
                message=str(error),
            )
        )


def _reopen(path: Path) -> PartialBody:
    try:
        return PartialBody.reopen(path)
    except FileNotFoundError:
        raise TransferError(
            "transfer.nothing_held", "nothing of this update is held here", fix="begin the upload"
        ) from None
