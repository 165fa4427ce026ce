"""The third layer of a coordinator: the services, each with the ports that it needs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from random import Random

from coordinator.intake.completed_uploads import CompletedUploads
from coordinator.intake.intake import Intake
from coordinator.intake.layouts import Layouts
from coordinator.intake.spool_quota import SpoolQuota
from coordinator.membership.enrolment import EnrolmentGate
from coordinator.model_plans import ModelPlans
from coordinator.replay import Replays
from coordinator.rpc.admin import AdminServicer
from coordinator.rpc.listing import Listing
from coordinator.rpc.models import ModelsServicer
from coordinator.rpc.peer_commands import PeerCommands
from coordinator.rpc.run_commands import RunCommands
from coordinator.rpc.sessions import MembershipServicer
from coordinator.rpc.uploads import UpdatesServicer
from coordinator.submission.submissions import Submissions
from coordinator.wiring.layers import State, Work
from muster.runtime import clock


def membership_service(state: State) -> MembershipServicer:
    return MembershipServicer(
        runs=state.runs,
        assignments=state.assignments,
        members=state.members,
        sessions=state.sessions,
        gate=EnrolmentGate(peers_max=state.config.peers_max),
        background=state.background,
        heartbeat_seconds=state.config.heartbeat_seconds,
    )


def models_service(state: State, work: Work) -> ModelsServicer:
    return ModelsServicer(
        plans=ModelPlans(runs=state.runs, store=state.store, blobs=state.blobs),
        store=state.store,
        blobs=state.blobs,
        members=state.members,
        assignments=state.assignments,
        repairs=work.repairs,
        journal=state.journal,
    )


def updates_service(state: State, work: Work, quota: SpoolQuota, executor: Executor) -> UpdatesServicer:
    completed = CompletedUploads(state.config.uploads_max)
    intake = Intake(
        runs=state.runs,
        store=state.store,
        blobs=state.blobs,
        spool=state.spool,
        layouts=Layouts(blobs=state.blobs, repairs=work.repairs),
        completed=completed,
        executor=executor,
    )
    return UpdatesServicer(
        runs=state.runs,
        assignments=state.assignments,
        members=state.members,
        store=state.store,
        blobs=state.blobs,
        spool=state.spool,
        quota=quota,
        intake=intake,
        completed=completed,
        journal=state.journal,
        uploads_max=state.config.uploads_max,
    )


def admin_service(
    state: State,
    work: Work,
    *,
    submissions: Submissions,
    replays: Replays,
    random: Random,
    address: Callable[[], str],
) -> AdminServicer:
    config = state.config
    listing = Listing(
        runs=state.runs,
        members=state.members,
        store=state.store,
        blobs=state.blobs,
        spool=state.spool,
        obstacle=work.aggregation.obstacle,
    )
    runs = RunCommands(
        runs=state.runs,
        submissions=submissions,
        store=state.store,
        journal=state.journal,
        listing=listing,
        retention=work.retention,
        random=random,
    )
    return AdminServicer(
        runs=runs,
        peers=PeerCommands(members=state.members, sessions=state.sessions, listing=listing),
        listing=listing,
        replays=replays,
        repairs=work.repairs,
        store=state.store,
        blobs=state.blobs,
        address=address,
        started_at=clock.now(),
        database_kind=config.database_url.split("://")[0],
        data_dir=Path(config.data_dir),
        models_keep=config.models_keep,
    )
