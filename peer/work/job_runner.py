"""Where an assignment is worked on: its base is fetched, a worker is waited for, the job is ordered.

Nothing of it is durable; what a job makes is a pure function of its order and may be made again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from exchange.names import FACTOR
from muster import plugins
from muster.errors import MusterError, NotAllowedError, UsageError
from muster.runtime import clock
from muster.runtime.failpoints import failpoint
from muster.spec.model import RunSpec
from muster.work import EVALUATE, TRAIN
from peer.store.models import DeadlineAt
from peer.work.devices import HANG_MARGIN_SECONDS, WorkerPool, WorkerSlot
from peer.work.orders import Evaluated, Site, Trained, evaluate_order, prepare_order, train_order
from peer.work.policy import Policy
from peer.work.preparing import Preparations
from peer.work.transfers import Transfers
from protos.v1.membership_pb2 import Assignment


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How a caller hears how far its work has come; each gives it time of its own from then on."""

    prepare: Callable[[float], None]  # the worker loads its data, in so many seconds at most
    start: Callable[[float | None], None]  # the work itself starts; in so many seconds if it was prepared for


@dataclass(frozen=True, kw_only=True)
class JobRunner:
    """Does one assignment: files, preparation, training or evaluation."""

    site: Site
    policy: Policy
    workers: WorkerPool
    preparations: Preparations
    courier: Transfers

    def refusal(self, offer: Assignment) -> MusterError | None:
        """Why this peer does not take the offer, if it does not."""
        role = offer.work.role
        if role not in (TRAIN, EVALUATE) and role not in (known := plugins.names("muster.algorithms")):
            return UsageError(
                "peer.unknown_role",
                f"this peer cannot take part as {role!r}",
                cause=f"it knows {', '.join((TRAIN, EVALUATE, *known))}; a role is one of the first two or an "
                "installed local algorithm",
                fix="install the package that provides it on this peer, or the same version of Muster",
            )
        try:
            self._spec_and_data(offer)
        except ValidationError as error:
            return UsageError(
                "peer.bad_spec",
                f"this peer does not understand the run spec: {error.error_count()} mistakes",
                cause=str(error.errors()[0]["msg"]),
                fix="run the same version of Muster on coordinator and peer",
            )
        except NotAllowedError as error:
            return error
        return None

    async def train(
        self,
        offer: Assignment,
        *,
        stem: Path,
        state: Callable[[], Awaitable[Mapping[str, Path]]],
        deadline_at: DeadlineAt,
        steps: Steps,
    ) -> tuple[Path, Trained]:
        """The update file, which like all files made begins with `stem`, and what the worker says of it.

        `state` gives the run's present state when the work starts. Raises
        `NotAllowedError` (the policy has changed), what `Transfers.base` and `WorkerHost.run` raise.
        """
        spec, data = self._spec_and_data(offer)
        kept = set(offer.work.groups) - {FACTOR}
        async with (
            self._factor(offer, deadline_at) as factor,
            self.courier.groups(offer, kept, deadline_at=deadline_at) as received,
            self._ready(offer, spec, data, deadline_at, steps) as (base, desk),
        ):
            order = train_order(
                self.site,
                offer,
                spec,
                data=data,
                device=desk.device,
                base=base,
                stem=stem,
                state=await state(),
                factor=factor,
                received=received,
            )
            return Path(order.update), Trained(
                **await desk.run("train", order, seconds_left=self._left(deadline_at()))
            )

    async def evaluate(
        self,
        offer: Assignment,
        *,
        state: Callable[[], Awaitable[Mapping[str, Path]]],
        deadline_at: DeadlineAt,
        steps: Steps,
    ) -> Evaluated:
        """What the model, with what of it is this peer's own, does on this site's examples. Raises as `train` does."""
        spec, data = self._spec_and_data(offer)
        async with self._ready(offer, spec, data, deadline_at, steps) as (base, desk):
            order = evaluate_order(
                self.site, offer, spec, data=data, device=desk.device, base=base, state=await state()
            )
            return Evaluated(**await desk.run("evaluate", order, seconds_left=self._left(deadline_at())))

    def has_time(self, deadline_at: float) -> bool:
        """Whether another attempt could still be made before the deadline."""
        return self._left(deadline_at) > 2.0 * HANG_MARGIN_SECONDS

    def _left(self, deadline_at: float) -> float:
        return deadline_at - clock.now()

    @asynccontextmanager
    async def _factor(self, offer: Assignment, deadline_at: DeadlineAt) -> AsyncGenerator[Path | None]:
        if FACTOR not in offer.work.groups:
            yield None
            return
        async with self.courier.factor(offer, deadline_at=deadline_at) as path:
            yield path

    @asynccontextmanager
    async def _ready(
        self, offer: Assignment, spec: RunSpec, data: Mapping[str, Any], deadline_at: DeadlineAt, steps: Steps
    ) -> AsyncGenerator[tuple[Path, WorkerSlot]]:
        """The base, and a desk whose worker is prepared. A base that is drawn belongs to the preparation: `Task.model`
        may load weights."""
        prepares = False

        def prepare() -> None:
            nonlocal prepares
            if not prepares:
                prepares = True
                steps.prepare(spec.round.prepare_seconds)

        if not self.preparations.are_made(offer.run_id, offer.work.role):
            prepare()
        async with self.courier.base(offer, deadline_at=deadline_at) as base, AsyncExitStack() as stack:
            failpoint("peer.fetched")
            with self.preparations.waits_for(prepare):  # the worker may be at another role's or run's data
                desk = await stack.enter_async_context(self.workers.desk(self.site.name))
            order = prepare_order(self.site, offer, spec, data=data, device=desk.device, base=base)
            if not await self.preparations.is_ready(desk, order):
                prepare()  # at the latest: the worker that was prepared may be gone
                seconds = self._left(deadline_at())
                await self.preparations.make(desk, order, run_id=offer.run_id, seconds=seconds)
            steps.start(spec.round.deadline_seconds if prepares else None)
            yield base, desk

    def _spec_and_data(self, offer: Assignment) -> tuple[RunSpec, Mapping[str, Any]]:
        """Asked of the policy when an offer comes and before the work, since a restart may lie between."""
        spec = RunSpec.from_json(offer.spec_json)
        return spec, self.policy.permit(spec.task)
