"""Whatever is committed, in whatever order: the store in memory says and holds what the one in a database does."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from coordinator.engine.state import Transition
from coordinator.store import MemoryStore, SqlStore, Store, Transfer
from muster.errors import MusterError
from tests.store.conftest import Script

PEERS, RUNS, ROUNDS = ("a", "b"), ("r1", "r2"), (1, 2)
STATES = ("OFFERED", "TRAINING", "DELIVERED", "LOST")


def transitions(script: Script) -> st.SearchStrategy[Transition]:
    peer, run, number, state = map(st.sampled_from, (PEERS, RUNS, ROUNDS, STATES))
    reason = st.sampled_from(["", "told", "\0 and \udce9", "\N{SNOWMAN}"])

    def row(kind: str, entity: str, key: Any, before: str | None, **values: Any) -> Transition:
        return script.row(kind, entity, key, before, **values)

    made: list[st.SearchStrategy[Transition]] = [
        st.builds(script.peer, peer, st.sampled_from(["ACTIVE", "PENDING"]), reason=reason),
        st.builds(script.run, run, st.sampled_from(["RUNNING", "FINISHED", "QUEUED"]), reason=reason),
        st.builds(script.round, number, st.sampled_from(["OPEN", "COMMITTED", "SKIPPED"])),
        st.builds(
            script.assignment,
            number,
            peer,
            state,
            attempt=st.integers(1, 2),
            digest=st.sampled_from(["", "u"]),
            dense_bytes=st.integers(0, 9),
        ),
        st.builds(script.progress, number, peer, state, state, norm=st.sampled_from([None, 1, 0.5])),
        st.builds(script.model, number, digest=st.sampled_from(["m", "n"]), round=number),
        st.builds(script.evaluation, number, st.sampled_from(["RUNNING", "FINISHED"])),
        st.builds(
            lambda name, seen: row("", "peer", {"peer_id": name}, "", state="LOST", seen_at=seen),
            peer,
            st.integers(0, 9),
        ),
        st.builds(
            lambda id, before: row("run.moved", "run", {"run_id": id}, before, state="PAUSED"),
            run,
            st.sampled_from(["RUNNING", "PAUSED", ""]),
        ),
        st.builds(
            lambda version, digest: row(
                "", "optimizer_state", {"run_id": "r1", "version": version, "name": "m"}, "", digest=digest
            ),
            number,
            st.sampled_from(["s", "t"]),
        ),
    ]
    return st.one_of(made)


SCRIPT = Script()
TRANSFERS = st.builds(
    Transfer,
    run_id=st.sampled_from(RUNS),
    round=st.sampled_from(ROUNDS),
    peer_id=st.sampled_from(PEERS),
    direction=st.sampled_from(["up", "down"]),
    bytes=st.integers(0, 2**40),
)
COMMITS = st.lists(
    st.tuples(st.lists(transitions(SCRIPT), max_size=2), st.lists(TRANSFERS, max_size=1)),
    min_size=20,
    max_size=40,
)
# Without these next to nothing would be accepted.
FIRST = [*map(SCRIPT.peer, PEERS), *map(SCRIPT.run, RUNS), SCRIPT.model(0, digest="zero")]


async def _committed(store: Store, commits: Any) -> list[Any]:
    """What each commit answers: numbers, or the id of what it is refused with."""
    answers: list[Any] = [await store.commit(FIRST)]
    for rows, transfers in commits:
        try:
            answers.append(await store.commit(rows, transfers))
        except MusterError as error:
            answers.append(error.id)
    return answers


QUESTIONS: dict[str, Callable[[Store], Any]] = {
    "events": lambda store: store.events(),
    "recent": lambda store: store.recent_events(peer_id="a", limit=3),
    "runs": lambda store: store.runs(),
    "peers": lambda store: store.peers(),
    "counts": lambda store: store.counts(),
    "load_runs": lambda store: store.load_runs({}),
    "load_peers": lambda store: store.load_peers(),
    "named_peers": lambda store: store.named_peers(),
    "live_blobs": lambda store: store.live_blobs(),
    "delivered": lambda store: store.delivered_sequence("r1.1.a.1"),
    **{
        f"unneeded {keep}": lambda store, keep=keep: store.unneeded_blobs(
            updates_keep_rounds=keep, models_keep=keep or None, ended_runs_keep=0
        )
        for keep in (0, 1)
    },
    **{
        f"{name} {run_id}": lambda store, name=name, run_id=run_id: getattr(store, name)(run_id)
        for name in ("run", "rounds", "models", "model", "warnings")
        for run_id in RUNS
    },
    **{f"round {number}": lambda store, number=number: store.round("r1", number) for number in ROUNDS},
    **{f"bare {number}": lambda store, number=number: store.bare_round("r1", number) for number in ROUNDS},
}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, since to make it takes longer than all that is asked of it."""
    folder = tmp_path_factory.mktemp("empty")

    async def make() -> None:
        await (await SqlStore.open(f"sqlite:///{folder}/muster.db")).close()

    asyncio.run(make())
    return folder / "muster.db"


# Not shrunk: each example takes a while, and the commits of one that fails are short.
@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(commits=COMMITS)
def test_memory_answers_as_a_database_does(empty_database: Path, commits: Any) -> None:
    async def compare(folder: Path) -> None:
        memory, sql = MemoryStore(), await SqlStore.open(f"sqlite:///{folder}/muster.db")
        try:
            assert await _committed(memory, commits) == await _committed(sql, commits)
            for name, ask in QUESTIONS.items():
                assert await ask(memory) == await ask(sql), name
        finally:
            await sql.close()

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(empty_database, folder)
        asyncio.run(compare(Path(folder)))
