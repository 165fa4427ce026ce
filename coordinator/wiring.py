"""Where the parts of a coordinator are put together: each is given the ports that it needs, by name, and no more.

Read it from top to bottom: what stands lower knows what stands higher. What would go the other way round (a decision
that starts work, peers that are gone) is told by `Events`, whose subscribers are attached at the end.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

from coordinator.background import Background
from coordinator.effects.aggregation import RoundAggregation
from coordinator.effects.evaluation import OwnEvaluation
from coordinator.effects.preparation import ModelPreparation
from coordinator.effects.runner import EffectRunner
from coordinator.engine.state import Aggregate, EvaluateOwn, PrepareModel
from coordinator.events import Events, log_events
from coordinator.intake.completed_uploads import CompletedUploads
from coordinator.intake.intake import Intake
from coordinator.intake.layouts import Layouts
from coordinator.intake.spool import Spool
from coordinator.intake.spool_quota import SpoolQuota
from coordinator.journal import Journal
from coordinator.lookups import Assignments
from coordinator.membership.enrolment import EnrolmentGate
from coordinator.membership.members import MemberBook
from coordinator.membership.watch import MembershipWatch
from coordinator.repairs import Repairs
from coordinator.replay import Replays
from coordinator.retention import Retention
from coordinator.rpc.admin import AdminServicer
from coordinator.rpc.listing import Listing
from coordinator.rpc.models import ModelsServicer
from coordinator.rpc.offers import SessionBook, SessionNotices
from coordinator.rpc.peer_commands import PeerCommands
from coordinator.rpc.run_commands import RunCommands
from coordinator.rpc.sessions import MembershipServicer
from coordinator.rpc.uploads import UpdatesServicer
from coordinator.runs import Runs
from coordinator.service import Coordinator
from coordinator.store import Store
from coordinator.submission.submissions import Submissions
from coordinator.timers import RunTimers
from coordinator.workers.task_jobs import TaskJobs
from muster.config.settings import CoordinatorConfig
from muster.files.blobs import BlobStore
from muster.runtime import clock
from muster.transport.base import Route
from muster.worker.base import Worker


def wire(
    *,
    config: CoordinatorConfig,
    store: Store,
    blobs: BlobStore,
    make_worker: Callable[[], Worker] | None,
    random: Random,
    address: Callable[[], str],
) -> Coordinator:
    """Starts nothing. `make_worker` gives what runs tasks' code (None: worker processes), `random` draws the ids, and
    `address()` is where it serves."""
    # Apart, so that no peer's update, however slow to decode, holds up a round.
    admissions = ThreadPoolExecutor(2, thread_name_prefix="admission")
    aggregations = ThreadPoolExecutor(2, thread_name_prefix="aggregation")
    replays_executor = ThreadPoolExecutor(1, thread_name_prefix="replay")
    files = asyncio.Lock()

    events = Events()
    background = Background()
    journal = Journal(store, events)
    sessions = SessionBook()
    spool = Spool(Path(config.data_dir) / "spool")
    members = MemberBook(journal=journal, config=config)
    runs = Runs(journal=journal, events=events, peers=members.views)
    assignments = Assignments(runs=runs, store=store, is_connected=sessions.is_open)
    tasks = TaskJobs(config=config, live=runs, make_worker=make_worker)
    repairs = Repairs(blobs=blobs, sessions=sessions, background=background)
    timers = RunTimers(runs=runs)
    watch = MembershipWatch(
        members=members,
        runs=runs,
        store=store,
        journal=journal,
        heartbeat_seconds=config.heartbeat_seconds,
    )
    retention = Retention(
        config=config,
        store=store,
        journal=journal,
        blobs=blobs,
        spool=spool,
        assignments=assignments,
        files=files,
        background=background,
    )
    aggregation = RoundAggregation(
        runs=runs,
        store=store,
        blobs=blobs,
        repairs=repairs,
        executor=aggregations,
        files=files,
    )
    preparation = ModelPreparation(runs=runs, blobs=blobs, tasks=tasks, files=files)
    evaluation = OwnEvaluation(runs=runs, repairs=repairs, tasks=tasks)
    effects = EffectRunner(
        background=background,
        handlers={
            PrepareModel: preparation.prepare,
            Aggregate: aggregation.aggregate,
            EvaluateOwn: evaluation.evaluate,
        },
    )
    submissions = Submissions(runs=runs, tasks=tasks)
    replays = Replays(
        store=store,
        blobs=blobs,
        executor=replays_executor,
        updates_keep_rounds=config.updates_keep_rounds,
    )
    listing = Listing(
        runs=runs,
        members=members,
        store=store,
        blobs=blobs,
        spool=spool,
        obstacle=aggregation.obstacle,
    )
    admin = AdminServicer(
        runs=RunCommands(
            runs=runs,
            submissions=submissions,
            store=store,
            journal=journal,
            listing=listing,
            retention=retention,
            random=random,
        ),
        peers=PeerCommands(members=members, sessions=sessions, listing=listing),
        listing=listing,
        replays=replays,
        repairs=repairs,
        store=store,
        blobs=blobs,
        address=address,
        started_at=clock.now(),
        database_kind=config.database_url.split("://")[0],
        data_dir=Path(config.data_dir),
        models_keep=config.models_keep,
    )
    membership = MembershipServicer(
        runs=runs,
        assignments=assignments,
        members=members,
        sessions=sessions,
        gate=EnrolmentGate(peers_max=config.peers_max),
        background=background,
        heartbeat_seconds=config.heartbeat_seconds,
    )
    models = ModelsServicer(
        runs=runs,
        store=store,
        blobs=blobs,
        members=members,
        assignments=assignments,
        repairs=repairs,
        journal=journal,
    )
    quota = SpoolQuota(
        spool=spool,
        spool_bytes_max=config.spool_bytes_max,
        disk_reserve_bytes=config.disk_reserve_bytes,
    )
    completed = CompletedUploads(config.uploads_max)
    intake = Intake(
        runs=runs,
        store=store,
        blobs=blobs,
        spool=spool,
        layouts=Layouts(blobs=blobs, repairs=repairs),
        completed=completed,
        executor=admissions,
    )
    updates = UpdatesServicer(
        runs=runs,
        assignments=assignments,
        members=members,
        store=store,
        blobs=blobs,
        spool=spool,
        quota=quota,
        intake=intake,
        completed=completed,
        journal=journal,
        uploads_max=config.uploads_max,
    )

    members.on_change(watch.changed)
    notices = SessionNotices(sessions=sessions, runs=runs)
    events.attach(
        log_events, members.hear, timers.hear, notices.hear, effects.hear, tasks.hear, retention.hear
    )
    routes: list[Route] = [
        route for servicer in (membership, models, updates, admin) for route in servicer.routes()
    ]
    return Coordinator(
        store=store,
        blobs=blobs,
        background=background,
        journal=journal,
        runs=runs,
        members=members,
        watch=watch,
        sessions=sessions,
        timers=timers,
        tasks=tasks,
        submissions=submissions,
        quota=quota,
        repairs=repairs,
        aggregation=aggregation,
        retention=retention,
        replays=replays,
        routes=routes,
        holder=f"the coordinator with the data folder {config.data_dir} on {socket.gethostname()}",
        executors=(admissions, aggregations, replays_executor),
    )
