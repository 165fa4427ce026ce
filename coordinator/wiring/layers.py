"""The first two layers of a coordinator: the state and its one writer, and the work that follows commits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from coordinator.background import Background
from coordinator.effects.aggregation import RoundAggregation
from coordinator.effects.evaluation import OwnEvaluation
from coordinator.effects.preparation import ModelPreparation
from coordinator.effects.runner import EffectRunner
from coordinator.engine.state import Aggregate, EvaluateOwn, PrepareModel
from coordinator.events import Events
from coordinator.intake.spool import Spool
from coordinator.journal import Journal
from coordinator.lookups import Assignments
from coordinator.membership.members import MemberBook
from coordinator.membership.watch import MembershipWatch
from coordinator.repairs import Repairs
from coordinator.retention import Retention
from coordinator.rpc.offers import SessionBook
from coordinator.runs import Runs
from coordinator.store import Store
from coordinator.timers import RunTimers
from coordinator.workers.task_jobs import TaskJobs
from muster.config.settings import CoordinatorConfig
from muster.files.blobs import BlobStore
from muster.worker.base import Worker


@dataclass(frozen=True, kw_only=True)
class State:
    """What is known, and the one writer of it."""

    config: CoordinatorConfig
    store: Store
    blobs: BlobStore
    events: Events
    background: Background
    journal: Journal
    sessions: SessionBook
    spool: Spool
    members: MemberBook
    runs: Runs
    assignments: Assignments


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done because of it."""

    tasks: TaskJobs
    repairs: Repairs
    retention: Retention
    aggregation: RoundAggregation
    effects: EffectRunner
    timers: RunTimers
    watch: MembershipWatch
    executors: Sequence[Executor]


def wire_state(config: CoordinatorConfig, store: Store, blobs: BlobStore) -> State:
    events = Events()
    journal = Journal(store, events)
    sessions = SessionBook()
    members = MemberBook(journal=journal, config=config)
    runs = Runs(journal=journal, events=events, peers=members.views)
    return State(
        config=config,
        store=store,
        blobs=blobs,
        events=events,
        background=Background(),
        journal=journal,
        sessions=sessions,
        spool=Spool(Path(config.data_dir) / "spool"),
        members=members,
        runs=runs,
        assignments=Assignments(runs=runs, store=store, is_connected=sessions.is_open),
    )


def wire_work(state: State, make_worker: Callable[[], Worker] | None) -> Work:
    config, runs, store, blobs = state.config, state.runs, state.store, state.blobs
    executor = ThreadPoolExecutor(2, thread_name_prefix="aggregation")
    files = asyncio.Lock()  # see `coordinator.retention`
    tasks = TaskJobs(config=config, live=runs, make_worker=make_worker)
    repairs = Repairs(runs=runs, blobs=blobs, sessions=state.sessions, background=state.background)
    preparation = ModelPreparation(runs=runs, blobs=blobs, tasks=tasks, files=files)
    aggregation = RoundAggregation(
        runs=runs, store=store, blobs=blobs, repairs=repairs, executor=executor, files=files
    )
    evaluation = OwnEvaluation(runs=runs, repairs=repairs, tasks=tasks)
    return Work(
        tasks=tasks,
        repairs=repairs,
        retention=Retention(
            config=config,
            store=store,
            journal=state.journal,
            blobs=blobs,
            spool=state.spool,
            assignments=state.assignments,
            files=files,
            background=state.background,
        ),
        aggregation=aggregation,
        effects=EffectRunner(
            background=state.background,
            handlers={
                PrepareModel: preparation.prepare,
                Aggregate: aggregation.aggregate,
                EvaluateOwn: evaluation.evaluate,
            },
        ),
        timers=RunTimers(runs=runs),
        watch=MembershipWatch(
            members=state.members,
            runs=runs,
            store=store,
            journal=state.journal,
            heartbeat_seconds=config.heartbeat_seconds,
        ),
        executors=(executor,),
    )
