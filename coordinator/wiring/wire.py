"""Where the parts of a coordinator are put together: each is given the ports that it needs, by name, and no more.

Three layers: the state and its one writer, the work that follows commits, the services. Each knows those before it.
What goes the other way round (a decision that starts work, peers that are gone) is told by `Events`, whose subscribers
are attached in `wire`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random

from coordinator.events import log_events
from coordinator.intake.spool_quota import SpoolQuota
from coordinator.replay import Replays
from coordinator.rpc.offers import SessionNotices
from coordinator.service import Coordinator
from coordinator.store import Store
from coordinator.submission.submissions import Submissions
from coordinator.wiring import services
from coordinator.wiring.layers import wire_state, wire_work
from muster.config.settings import CoordinatorConfig
from muster.files.blobs import BlobStore
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
    state = wire_state(config, store, blobs)
    work = wire_work(state, make_worker)
    # One for updates, apart, so that no peer's, however slow to decode, holds up a round; one for replays, which run
    # one after the other.
    admissions = ThreadPoolExecutor(2, thread_name_prefix="admission")
    replaying = ThreadPoolExecutor(1, thread_name_prefix="replay")
    keep = config.updates_keep_rounds
    replays = Replays(store=store, blobs=blobs, executor=replaying, updates_keep_rounds=keep)
    submissions = Submissions(runs=state.runs, tasks=work.tasks)
    quota = SpoolQuota(
        spool=state.spool,
        spool_bytes_max=config.spool_bytes_max,
        disk_reserve_bytes=config.disk_reserve_bytes,
    )
    served = (
        services.membership_service(state),
        services.models_service(state, work),
        services.updates_service(state, work, quota, admissions),
        services.admin_service(
            state, work, submissions=submissions, replays=replays, random=random, address=address
        ),
    )
    state.members.on_change(work.watch.changed)
    state.events.attach(
        log_events,
        state.members.hear,
        work.timers.hear,
        SessionNotices(sessions=state.sessions, runs=state.runs).hear,
        work.effects.hear,
        work.tasks.hear,
        work.retention.hear,
    )
    return Coordinator(
        store=store,
        blobs=blobs,
        background=state.background,
        journal=state.journal,
        runs=state.runs,
        members=state.members,
        watch=work.watch,
        sessions=state.sessions,
        timers=work.timers,
        tasks=work.tasks,
        submissions=submissions,
        quota=quota,
        repairs=work.repairs,
        aggregation=work.aggregation,
        retention=work.retention,
        replays=replays,
        routes=[route for service in served for route in service.routes()],
        holder=f"the coordinator with the data folder {config.data_dir} on {socket.gethostname()}",
        executors=(*work.executors, admissions, replaying),
    )
