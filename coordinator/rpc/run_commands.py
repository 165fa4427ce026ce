"""Commands on runs: submit, pause, resume, stop, remove. Each may be sent again: a run as wanted is an answer."""

from __future__ import annotations

import asyncio
import re
from random import Random
from weakref import WeakValueDictionary

from pydantic import ValidationError

from coordinator.engine.state import Event, PauseRequested, ResumeRequested, RunSubmitted, StopRequested
from coordinator.journal import Journal
from coordinator.retention import Retention
from coordinator.rpc.listing import Listing
from coordinator.runs import Runs
from coordinator.store import Store, rows
from coordinator.submission.submissions import Submissions
from muster.errors import ConfigError, MusterError, NotFoundError, StateError, UnreachableError, UsageError
from muster.runtime import clock
from muster.runtime.randomness import hex_id
from muster.spec.model import RunSpec
from muster.texts import one_line
from muster.transport.base import CallContext
from protos.v1 import admin_pb2 as pb

SPEC_BYTES_MAX = 1 << 19  # a spec is a page; it goes out with every offer and stands in every list
REQUEST_ID_CHARS_MAX = 200
SUBMISSIONS_MAX = 8  # that wait for their check, each with its spec in memory


class RunCommands:
    """`random` draws the ids."""

    def __init__(
        self,
        *,
        runs: Runs,
        submissions: Submissions,
        store: Store,
        journal: Journal,
        listing: Listing,
        retention: Retention,
        random: Random,
    ) -> None:
        self._runs = runs
        self._submissions = submissions
        self._store = store
        self._journal = journal
        self._random = random
        self._listing = listing
        self._retention = retention
        # By request id: one that comes twice at once finds what it made, and none waits for another's task.
        self._submitting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._under_check = 0

    async def submit_run(self, request: pb.SubmitRunRequest, context: CallContext) -> pb.SubmitRunResponse:
        if self._under_check >= SUBMISSIONS_MAX:
            raise UnreachableError(
                "transport.busy",
                f"the coordinator has {self._under_check} submissions to check, its limit",
                cause="each has its task loaded and tried, which takes time and memory",
                fix="submit again in a minute",
            )
        self._under_check += 1
        try:
            return await self._submit_run(request, context.identity.actor)
        finally:
            self._under_check -= 1

    async def _submit_run(self, request: pb.SubmitRunRequest, actor: str) -> pb.SubmitRunResponse:
        spec = _spec(request.spec_json, request.spec_toml)
        request_id = request.request_id or hex_id(self._random, 8)
        if request_id != one_line(request_id, REQUEST_ID_CHARS_MAX):
            raise UsageError(
                "run.bad_request_id",
                f"a request id is one line of at most {REQUEST_ID_CHARS_MAX} characters",
                fix="a UUID will do",
            )
        async with self._submitting.setdefault(request_id, asyncio.Lock()):
            known = await self._store.run_by_request(request_id)
            if known is None:
                run_id = f"{_slug(spec.name or spec.task.split(':')[1])}-{hex_id(self._random, 3)}"
                event = RunSubmitted(
                    run_id=run_id,
                    spec=spec,
                    spec_toml=request.spec_toml,
                    request_id=request_id,
                    actor=actor,
                )
                await self._submissions.submit(event)
                known = await self._listing.run(run_id)
        run = await self._listing.whole_run(known)
        return pb.SubmitRunResponse(run=run, warnings=[each.reason for each in run.warnings])

    async def pause_run(self, request: pb.PauseRunRequest, context: CallContext) -> pb.PauseRunResponse:
        actor = context.identity.actor
        row = await self._change(PauseRequested(run_id=request.run_id, actor=actor), "PAUSED")
        return pb.PauseRunResponse(run=self._listing.run_message(row))

    async def resume_run(self, request: pb.ResumeRunRequest, context: CallContext) -> pb.ResumeRunResponse:
        """Of one that runs too: whoever is set aside in it is asked again."""
        actor = context.identity.actor
        row = await self._change(ResumeRequested(run_id=request.run_id, actor=actor), "RUNNING")
        return pb.ResumeRunResponse(run=self._listing.run_message(row))

    async def stop_run(self, request: pb.StopRunRequest, context: CallContext) -> pb.StopRunResponse:
        reason = one_line(request.reason) or "stopped by the admin"
        if request.run_id in self._runs.unreadable:
            await self._store.end_unread(
                request.run_id, f"cancelled: {reason}", clock.now(), fence=self._journal.fence
            )
            self._runs.end_unreadable(request.run_id)
        actor = context.identity.actor
        row = await self._change(
            StopRequested(run_id=request.run_id, reason=reason, actor=actor), "CANCELLED"
        )
        return pb.StopRunResponse(run=self._listing.run_message(row))

    async def remove_run(self, request: pb.RemoveRunRequest, context: CallContext) -> pb.RemoveRunResponse:
        run = self._listing.run_message(await self._listing.run(request.run_id))
        await self._retention.remove_run(run.run_id)
        return pb.RemoveRunResponse(run=run)

    async def _change(self, event: Event, wanted: str) -> rows.RunRow:
        """Posts the event and gives the run's row. A run that is not live and as wanted already is an answer too."""
        row = await self._listing.run(event.run_id)
        reason = self._runs.unreadable.get(event.run_id)
        if reason is not None and row.state != wanted:
            raise StateError(
                "run.unreadable",
                f"run {event.run_id!r} cannot go on at this coordinator",
                cause=reason,
                fix=f"start the coordinator again once that is mended, or end the run: muster run stop {event.run_id}",
            )
        try:
            committed = await self._runs.post(event)
        except NotFoundError:  # it has ended, or stands still
            row = await self._listing.run(event.run_id)
            if row.state == wanted:
                return row
            raise StateError(
                "run.ended", f"run {event.run_id!r} has ended ({row.state}): {row.reason}"
            ) from None
        if not committed.accepted:
            raise StateError("run.wrong_state", f"run {event.run_id!r} stays as it is: {committed.reason}")
        return await self._listing.run(event.run_id)


def _spec(text: str, toml: str) -> RunSpec:
    for name, given in (("spec_json", text), ("spec_toml", toml)):
        if len(given.encode()) > SPEC_BYTES_MAX:
            raise ConfigError(
                "spec.too_long",
                f"{name} has more than {SPEC_BYTES_MAX} bytes",
                cause="it is probably another file",
            )
    try:
        spec = RunSpec.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError(
            "spec.invalid", f"the run spec is not valid: {problems}", fix="muster config validate SPEC"
        ) from error
    except MusterError:
        raise
    except ValueError as error:
        raise ConfigError("spec.invalid", f"the run spec is not JSON: {error}") from error
    if spec.name != one_line(spec.name):
        raise ConfigError("spec.invalid", "name: holds line breaks or characters that cannot be shown")
    return spec


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"
