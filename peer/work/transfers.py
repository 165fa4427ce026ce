"""What goes to and fro in bulk: base versions in, updates out. It outlasts every break of the line."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from exchange.names import FACTOR
from muster.errors import (
    DeadlineError,
    InternalError,
    MusterError,
    NotFoundError,
    StorageError,
    TransferError,
    UnreachableError,
)
from muster.files.digests import checked_digest
from muster.runtime import clock
from muster.runtime.backoff import Backoff
from muster.runtime.failpoints import failpoint
from muster.spec.model import RunSpec
from muster.transfer.streams import Tail, fetch, read_chunks, upload
from muster.transport.base import Encoded
from muster.wire import FETCH_MODEL, GET_UPDATE_STATUS, PLAN_MODEL, RESTORE_MODEL
from peer.connection.checks import beside_bytes_max, plan_mistake
from peer.connection.connection import CoordinatorConnection
from peer.connection.reports import worth_retrying
from peer.store.disk_reserve import DiskReserve
from peer.store.models import DeadlineAt, ModelCache
from peer.work.fixed import fixed_tail
from protos.v1.membership_pb2 import Assignment, Restore
from protos.v1.models_pb2 import (
    FetchModelRequest,
    GroupFile,
    PlanModelRequest,
    PlanModelResponse,
    RestoreModelBegin,
    RestoreModelRequest,
)
from protos.v1.tensors_pb2 import BlobHeader
from protos.v1.updates_pb2 import BeginUpdateRequest, GetUpdateStatusRequest, Receipt

log = structlog.get_logger()

CALL_SECONDS_MAX = 10.0
RESTORE_SECONDS_MAX = 3600.0  # for giving the coordinator back a version; it gives up a sender that stalls
UNDRAWN_MAX = 1024  # runs that are remembered; the oldest is tried again
ATTEMPT_SECONDS_MIN = 10.0  # for an attempt that begins when the deadline is near or past

# Of the line's making or the coordinator's, so that the same may succeed later.
PASSING = (UnreachableError, DeadlineError, InternalError)

Result = TypeVar("Result")
Rebuild = Callable[[Path, Sequence[Path], Path, Path | None], Awaitable[str]]
"""(an older version, the deltas that follow it, where to put the new one) -> its digest"""
Draw = Callable[[Assignment, Path, DeadlineAt], Awaitable[str]]
"""(an offer of the run, where to put version 0, until when) -> its digest"""


class Transfers:
    """Every transfer goes on until it is done, is refused, or its deadline passes while the line is up.

    Time without a session does not count: the coordinator, when it is back, says itself what it still waits
    for.
    """

    def __init__(self, room: DiskReserve, line: CoordinatorConnection, rebuild: Rebuild, draw: Draw) -> None:
        self._room = room
        self._line = line
        self._rebuild = rebuild
        self._draw = draw
        # Runs whose version 0 does not come out here as it is, the newest last.
        self._undrawn: OrderedDict[str, None] = OrderedDict()
        self._models = ModelCache(room.folder, self._fetch)

    async def open(self, wanted: Iterable[str]) -> None:
        """Removes the model versions, whole and half, that are left from before and are not wanted."""
        await self._models.open(wanted)

    @asynccontextmanager
    async def base(self, offer: Assignment, *, deadline_at: DeadlineAt) -> AsyncGenerator[Path]:
        """The base version of the offer, fetched if need be; it stays until the caller is done.

        Raises `DeadlineError`, `StorageError`, and what the coordinator refuses with.
        """
        async with self._models.use(offer, deadline_at) as path:
            yield path

    @asynccontextmanager
    async def factor(self, offer: Assignment, *, deadline_at: DeadlineAt) -> AsyncGenerator[Path | None]:
        """The factor that goes with the base version of the offer; version 0 has none. Raises as `base` does."""
        if not offer.work.base.version:
            yield None
            return
        digest = (await self._plan(offer, [], deadline_at)).factor_digest
        if not digest:
            raise NotFoundError(
                "model.no_factor",
                f"the coordinator has no factor for version {offer.work.base.version} of run {offer.run_id!r}",
                fix="run the same version of Muster on coordinator and peer",
            )
        async with self._models.companion(
            checked_digest(digest), lambda path: self._fetch_beside(offer, digest, path, deadline_at)
        ) as path:
            yield path

    @asynccontextmanager
    async def groups(
        self, offer: Assignment, names: Collection[str], *, deadline_at: DeadlineAt
    ) -> AsyncGenerator[Mapping[str, Path]]:
        """The files of those of the named groups that are kept beside the base version of the offer. Raises as `base`
        does, and `TransferError` "model.bad_plan"."""
        found: dict[str, Path] = {}
        if not (offer.work.base.version and set(names) - {FACTOR}):
            yield found
            return
        plan = await self._plan(offer, [], deadline_at)
        if mistake := plan_mistake(plan, offer):
            raise TransferError(
                "model.bad_plan",
                f"the coordinator's plan for version {offer.work.base.version} makes no sense: {mistake}",
                fix="run the same version of Muster on coordinator and peer",
            )
        async with AsyncExitStack() as stack:
            for file in plan.groups:
                if file.name in names:
                    fetch = partial(self._fetch_group, offer, file, deadline_at)
                    path = await stack.enter_async_context(self._models.companion(file.digest, fetch))
                    found[file.name] = path
            yield found

    async def _fetch_group(
        self, offer: Assignment, file: GroupFile, deadline_at: DeadlineAt, target: Path
    ) -> None:
        self._room.check(file.size_bytes, f"group {file.name!r} of run {offer.run_id!r}")
        await self._fetch_blob(offer.run_id, file.digest, target, deadline_at, _exactly(file.size_bytes))

    async def deliver(
        self, offer: Assignment, update: Path, digest: str, *, deadline_at: DeadlineAt
    ) -> Receipt:
        """Brings the update to the coordinator; the same update always gets the same receipt.

        Raises `DeadlineError`, `StorageError` if the update cannot be read, and what the coordinator refuses
        with.
        """
        begin = BeginUpdateRequest(
            credentials=self._line.credentials,
            header=BlobHeader(
                size_bytes=update.stat().st_size,
                digest=digest,
                layout_digest=offer.work.base.layout_digest,
                run_id=offer.run_id,
                round=offer.round,
                assignment_id=offer.assignment_id,
            ),
        )
        return await self._persist(
            lambda seconds: upload(
                self._line.channel, begin, update, timeout_seconds=seconds, backoff=Backoff(self._line.random)
            ),
            deadline_at,
        )

    async def was_delivered(self, offer: Assignment, digest: str) -> bool:
        """Whether the coordinator has given a receipt for this very update. Raises if it cannot be asked."""
        request = GetUpdateStatusRequest(
            credentials=self._line.credentials, assignment_id=offer.assignment_id
        )
        try:
            answer = await self._line.channel.unary(
                GET_UPDATE_STATUS, request, timeout_seconds=CALL_SECONDS_MAX
            )
        except PASSING:
            raise
        except MusterError as error:
            log.info("assignment.unknown", assignment_id=offer.assignment_id, error=str(error))
            return False
        return answer.HasField("receipt") and answer.receipt.digest == digest

    async def restore(self, wanted: Restore) -> None:
        """Sends the coordinator a version that it has lost, if it is here. Whatever goes wrong is only logged: the
        coordinator asks others, or again."""
        try:
            async with self._models.held(wanted.digest) as path:
                if path is None or path.stat().st_size != wanted.size_bytes:
                    return
                log.info("model.restoring", run_id=wanted.run_id, digest=wanted.digest)
                stream = self._line.channel.stream(
                    RESTORE_MODEL, self._restoration(wanted, path), timeout_seconds=RESTORE_SECONDS_MAX
                )
                async with aclosing(stream):
                    await anext(stream, None)
        except (MusterError, OSError) as error:
            log.warning("model.not_restored", run_id=wanted.run_id, error=str(error))

    async def _restoration(
        self, wanted: Restore, path: Path
    ) -> AsyncGenerator[RestoreModelRequest | Encoded, None]:
        header = BlobHeader(size_bytes=wanted.size_bytes, digest=wanted.digest, run_id=wanted.run_id)
        yield RestoreModelRequest(begin=RestoreModelBegin(credentials=self._line.credentials, header=header))
        async with aclosing(read_chunks(path, 0)) as chunks:
            async for chunk in chunks:
                yield chunk

    def forget(self, run_id: str) -> None:
        """A run is over, and its model versions are not needed any more."""
        self._models.forget(run_id)
        self._undrawn.pop(run_id, None)

    async def _fetch(self, offer: Assignment, target: Path, deadline_at: DeadlineAt) -> None:
        self._room.check(
            offer.work.base.size_bytes, f"version {offer.work.base.version} of run {offer.run_id!r}"
        )
        try:
            made = (
                offer.work.base.version == 0
                and await self._drawn(offer, offer.work.base.digest, target, deadline_at)
            ) or await self._follow(offer, target, deadline_at)
        except BaseException:  # unlike a fetch, which keeps its part beside it, this cannot be gone on with
            target.unlink(missing_ok=True)
            raise
        if not made:
            if offer.work.base.version == 0 and target.exists():
                target.replace(_own(target))
            target.unlink(missing_ok=True)
            whole = _exactly(offer.work.base.size_bytes)
            try:
                async with self._tail(offer, _own(target), deadline_at) as tail:
                    await self._fetch_blob(
                        offer.run_id, offer.work.base.digest, target, deadline_at, whole, tail=tail
                    )
            finally:
                _own(target).unlink(missing_ok=True)

    @asynccontextmanager
    async def _tail(
        self, offer: Assignment, own: Path, deadline_at: DeadlineAt
    ) -> AsyncGenerator[Tail | None]:
        """What no round changes of the version, as far as it is here: it ends a version that is held or, where the run
        leaves it at home, one that the task draws; `own` may hold one that came out otherwise in what rounds change.
        """
        async with self._models.newest(offer.run_id) as held:
            if held is not None:
                yield await asyncio.to_thread(fixed_tail, held)
                return
        if RunSpec.from_json(offer.spec_json).exchange.tensors != "trainable":
            yield None
            return
        try:
            if not own.exists():
                await self._draw(offer, own, deadline_at)
            drawn = await asyncio.to_thread(fixed_tail, own)
        except MusterError as error:
            if error.id == "worker.timeout":
                raise
            log.warning("model.not_drawn", run_id=offer.run_id, reason=str(error))
            drawn = None
        yield drawn

    def _draws(self, offer: Assignment) -> bool:
        return offer.run_id not in self._undrawn

    async def _drawn(self, offer: Assignment, digest: str, target: Path, deadline_at: DeadlineAt) -> bool:
        """Whether version 0, whose digest is known, was made here. What the task did not make once it is not asked for
        again; the caller removes what else there is in `target` then. Raises `TaskError` "worker.timeout", after which
        no time is left for anything else.
        """
        if not self._draws(offer):
            return False
        traceback = ""
        try:
            if await self._draw(offer, target, deadline_at) == digest:
                failpoint("peer.drawn")
                log.info("model.drawn", run_id=offer.run_id)
                return True
            self._give_up_drawing(offer)
            reason = (
                "it came out otherwise: another version of torch or another kind of CPU than the "
                "coordinator's, or a task whose model() takes values from elsewhere than its seed"
            )
        except MusterError as error:  # whatever it is, the version can be fetched if there is time
            reason, traceback = str(error), error.fields.get("traceback", "")
            if not (isinstance(error, StorageError) or worth_retrying(error, time_left=False)):
                self._give_up_drawing(offer)
            if error.id == "worker.timeout":
                raise
        log.warning("model.not_drawn", run_id=offer.run_id, reason=reason, traceback=traceback)
        return False

    def _give_up_drawing(self, offer: Assignment) -> None:
        self._undrawn[offer.run_id] = None
        while len(self._undrawn) > UNDRAWN_MAX:
            self._undrawn.popitem(last=False)

    async def _follow(self, offer: Assignment, target: Path, deadline_at: DeadlineAt) -> bool:
        """Makes the version of the one that is held, or else of version 0, and the deltas between them, if that is
        cheaper.

        Whatever goes wrong with it only means that the version is fetched whole; the caller removes what there is in
        `target` then.
        """
        async with self._models.newest(offer.run_id) as held:
            draws = held is None and self._draws(offer)
            if held is None and not draws:
                return False
            plan = await self._plan(offer, [held.name] if held else [], deadline_at, draws=draws)
            if mistake := plan_mistake(plan, offer):
                log.warning("model.bad_plan", run_id=offer.run_id, reason=mistake)
                return False
            if not plan.deltas or (held is not None and plan.base_digest != held.name):
                return False
            first = target.with_name(f"{target.name}.first")
            paths = [target.with_name(f"{target.name}.{number}") for number in range(len(plan.deltas))]
            try:
                if held is None and not await self._drawn(offer, plan.base_digest, first, deadline_at):
                    return False
                for delta, path in zip(plan.deltas, paths, strict=True):
                    size = _exactly(delta.size_bytes)
                    await self._fetch_blob(offer.run_id, delta.digest, path, deadline_at, size)
                scale = await self._scale(offer, plan.scale_digest, deadline_at)
                digest = await self._rebuild(held or first, paths, target, scale)
                if digest == offer.work.base.digest:
                    return True
                log.warning("model.rebuilt_wrong", run_id=offer.run_id, version=offer.work.base.version)
            except PASSING:
                raise
            except (
                MusterError
            ) as error:  # gone, damaged or of another size: whatever it is, the version is whole
                log.warning("model.not_rebuilt", run_id=offer.run_id, error=str(error))
            finally:
                for path in (first, *paths):
                    path.unlink(missing_ok=True)
            return False

    async def _scale(self, offer: Assignment, digest: str, deadline_at: DeadlineAt) -> Path | None:
        """The vector that the run's steps are multiplied by, if they are."""
        if not digest:
            return None
        return await self._models.beside(
            offer.run_id,
            checked_digest(digest),
            lambda target: self._fetch_beside(offer, digest, target, deadline_at),
        )

    async def _plan(
        self, offer: Assignment, held: Sequence[str], deadline_at: DeadlineAt, *, draws: bool = False
    ) -> PlanModelResponse:
        request = PlanModelRequest(
            run_id=offer.run_id,
            digest=offer.work.base.digest,
            held_digests=held,
            credentials=self._line.credentials,
            draws_initial=draws,
        )
        return await self._persist(
            lambda seconds: self._line.channel.unary(
                PLAN_MODEL, request, timeout_seconds=min(seconds, CALL_SECONDS_MAX)
            ),
            deadline_at,
        )

    async def _fetch_beside(
        self, offer: Assignment, digest: str, target: Path, deadline_at: DeadlineAt
    ) -> None:
        """Something of which no plan tells the size."""
        most = beside_bytes_max(offer)
        self._room.check(most, f"what goes with version {offer.work.base.version} of run {offer.run_id!r}")
        await self._fetch_blob(offer.run_id, digest, target, deadline_at, range(most + 1))

    async def _fetch_blob(
        self,
        run_id: str,
        digest: str,
        target: Path,
        deadline_at: DeadlineAt,
        size: range,
        *,
        tail: Tail | None = None,
    ) -> None:
        def request_at(offset: int) -> FetchModelRequest:
            return FetchModelRequest(
                run_id=run_id, digest=digest, offset=offset, credentials=self._line.credentials
            )

        await self._persist(
            lambda seconds: fetch(
                self._line.channel,
                FETCH_MODEL,
                request_at,
                target,
                timeout_seconds=seconds,
                digest=digest,
                size=size,
                durable=False,
                backoff=Backoff(self._line.random),
                tail=tail,
            ),
            deadline_at,
        )

    async def _persist(
        self, attempt: Callable[[float], Awaitable[Result]], deadline_at: DeadlineAt
    ) -> Result:
        """Attempts, each given the seconds that are left, until one succeeds or fails for good."""
        line = self._line
        backoff = Backoff(line.random)
        while True:
            left = deadline_at() - clock.now()
            online = line.online.is_set()
            try:
                return await attempt(max(left, ATTEMPT_SECONDS_MIN))
            except PASSING as error:
                if error.id == "transport.closed" or (online and deadline_at() <= clock.now()):
                    raise
                log.warning("transfer.interrupted", error=str(error))
            await asyncio.gather(line.online.wait(), asyncio.sleep(backoff.next_delay()))


def _exactly(size: int) -> range:
    return range(size, size + 1)


def _own(target: Path) -> Path:
    """Where a drawing of one's own lies that is not the version that is fetched to `target`."""
    return target.with_name(f"{target.name}.own")
