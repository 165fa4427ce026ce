"""The peer store: what is durable, when staged state counts, and that nothing is left behind."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from muster.errors import StateError, StorageError
from peer.store.store import Held, PeerStore


def held(
    assignment_id: str = "r.1.p.1", run_id: str = "r", *, deadline_at: float = 60.0, offer: bytes = b"offer"
) -> Held:
    return Held(assignment_id=assignment_id, run_id=run_id, offer=offer, deadline_at=deadline_at)


def written(store: PeerStore, kind: str, text: str) -> Path:
    path = Path(f"{store.new_stem()}.{kind}")
    path.write_text(text)
    return path


def files(store: PeerStore) -> set[str]:
    return {path.read_text() for path in (store.folder / "files").iterdir()}


def stage(store: PeerStore, value: str, assignment_id: str = "r.1.p.1") -> None:
    store.accept(held(assignment_id), now=1.0)
    update = written(store, "update", f"update {value}")
    store.stage(assignment_id, update, f"digest {value}", {"residual": written(store, "state", value)})


def test_the_secret_is_drawn_once(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        secret = store.secret("ada")
        assert len(secret) >= 32
        assert store.secret("bob") != secret
    with PeerStore(tmp_path) as store:
        assert store.secret("ada") == secret


def test_staged_state_counts_only_after_the_commit(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        stage(store, "one")
        assert store.settle("r", 0) == {}
    with PeerStore(tmp_path) as store:
        (again,) = store.held()
        assert (again.update_digest, again.update and again.update.read_text()) == (
            "digest one",
            "update one",
        )
        assert store.settle("r", 0) == {}
        store.commit("r.1.p.1", 1)
        assert store.settle("r", 1)["residual"].read_text() == "one"
        assert store.held() == []
        assert files(store) == {"one"}


def test_the_next_commit_replaces_state_and_removes_the_old_file(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        stage(store, "one")
        store.commit("r.1.p.1", 1)
        stage(store, "two", "r.2.p.1")
        assert files(store) == {"one", "two", "update two"}
        store.commit("r.2.p.1", 2)
        assert store.settle("r", 2)["residual"].read_text() == "two"
        assert files(store) == {"two"}


def test_a_round_that_was_dropped_is_rolled_back_at_the_next_offer(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        stage(store, "one")
        store.commit("r.1.p.1", 1)
        stage(store, "two", "r.2.p.1")
        store.commit("r.2.p.1", 2)
        assert files(store) == {"one", "two"}
        assert store.settle("r", 1)["residual"].read_text() == "one"
        assert files(store) == {"one"}


def test_state_that_the_coordinator_does_not_count_is_begun_anew(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        stage(store, "one")
        store.commit("r.1.p.1", 1)
        assert store.settle("r", 3) == {}
        assert files(store) == set()


def test_a_store_of_the_first_schema_goes_on_without_its_state(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        secret = store.secret("ada")
        store.accept(held(), now=1.0)
    with sqlite3.connect(tmp_path / "peer.sqlite") as db:
        db.executescript(
            "DROP TABLE state; CREATE TABLE state (run_id TEXT, key TEXT, file TEXT); PRAGMA user_version = 1;"
        )
    db.close()
    with PeerStore(tmp_path) as store:
        assert store.secret("ada") == secret
        assert [one.assignment_id for one in store.held()] == ["r.1.p.1"]
        stage(store, "one")
        store.commit("r.1.p.1", 1)
        assert store.settle("r", 1)["residual"].read_text() == "one"


def test_each_role_hands_on_a_state_of_its_own(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        store.accept(held(), now=1.0)
        stage(store, "one")
        (one,) = store.held()
        assert one.stateful
        store.commit("r.1.p.1", 1, "anchor")
        assert store.settle("r", 1, "miner") == {}
        assert store.settle("r", 1, "anchor")["residual"].read_text() == "one"
        store.forget("r")
        assert store.settle("r", 1, "anchor") == {}


def test_a_store_that_knew_one_state_of_a_run_goes_on_with_it(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        store.accept(held(), now=1.0)
        stage(store, "one")
        store.commit("r.1.p.1", 1)
    with sqlite3.connect(tmp_path / "peer.sqlite") as db:
        db.executescript(
            "ALTER TABLE state RENAME TO newer;"
            "CREATE TABLE state (run_id TEXT NOT NULL, round INTEGER NOT NULL, key TEXT NOT NULL, file TEXT NOT NULL,"
            " PRIMARY KEY (run_id, round, key)) STRICT;"
            "INSERT INTO state SELECT run_id, round, key, file FROM newer; DROP TABLE newer; PRAGMA user_version = 2;"
        )
    db.close()
    with PeerStore(tmp_path) as store:
        assert store.settle("r", 1)["residual"].read_text() == "one"


def test_rollback_keeps_the_present_state(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        stage(store, "one")
        store.commit("r.1.p.1", 1)
        stage(store, "two", "r.2.p.1")
        store.rollback("r.2.p.1")
        assert store.settle("r", 1)["residual"].read_text() == "one"
        assert store.held() == []
        assert files(store) == {"one"}


def test_an_end_drops_what_was_staged_and_keeps_the_report(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        stage(store, "one")
        store.end("r.1.p.1", b"report")
        (ended,) = store.held()
        assert (ended.report, ended.update) == (b"report", None)
        assert files(store) == set()
        store.commit("r.1.p.1", 1)
        assert store.settle("r", 1) == {}


def test_staging_again_replaces_the_first_attempt(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        stage(store, "one")
        stage(store, "two")
        store.commit("r.1.p.1", 1)
        assert store.settle("r", 1)["residual"].read_text() == "two"


def test_staging_for_an_assignment_no_longer_held_does_nothing(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        store.accept(held(), now=1.0)
        store.rollback("r.1.p.1")
        store.stage("r.1.p.1", written(store, "update", "late"), "digest", {})
        assert store.held() == []


def test_a_second_offer_only_moves_the_deadline(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        stage(store, "one")
        store.accept(held(deadline_at=99.0), now=2.0)
        (again,) = store.held()
        assert (again.deadline_at, again.update_digest) == (99.0, "digest one")


def test_discarding_an_attempt_spares_what_a_row_names(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        store.accept(held(), now=1.0)
        stem, other = store.new_stem(), store.new_stem()
        kept, left, others = Path(f"{stem}.update"), Path(f"{stem}.state.0"), Path(f"{other}.update")
        for path in (kept, left, others):
            path.write_text(path.suffix)
        store.stage("r.1.p.1", kept, "digest", {})
        store.discard(stem)
        assert (kept.exists(), left.exists(), others.exists()) == (True, False, True)


def test_start_sweeps_files_that_no_row_names(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        stage(store, "one")
        written(store, "state", "orphan")
    with PeerStore(tmp_path) as store:
        assert files(store) == {"one", "update one"}


def test_a_run_is_forgotten_whole(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        stage(store, "one")
        store.commit("r.1.p.1", 1)
        stage(store, "two", "r.2.p.1")
        store.accept(held("s.1.p.1", "s"), now=1.0)
        store.forget("r")
        assert (store.runs(), files(store)) == (["s"], set())
        assert [one.assignment_id for one in store.held()] == ["s.1.p.1"]


def test_unused_runs_are_forgotten_but_not_those_at_work(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        stage(store, "one")
        store.commit("r.1.p.1", 1)
        store.accept(held("s.1.p.1", "s"), now=1.0)
        store.accept(held("t.1.p.1", "t"), now=50.0)
        store.rollback("t.1.p.1")
        assert store.forget_unused(before=10.0) == ["r"]
        assert store.runs() == ["s", "t"]


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with PeerStore(tmp_path):
        code = (
            "import sys; from pathlib import Path; from peer.store.store import PeerStore; "
            "from muster.errors import StateError\n"
            "try: PeerStore(Path(sys.argv[1]))\n"
            "except StateError as error: print(error.id)"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == "peer.in_use"
    with PeerStore(tmp_path) as store:
        assert store.held() == []


def test_another_schema_is_refused(tmp_path: Path) -> None:
    PeerStore(tmp_path).close()
    with sqlite3.connect(tmp_path / "peer.sqlite") as db:
        db.execute("PRAGMA user_version = 7")
    db.close()
    with pytest.raises(StateError) as caught:
        PeerStore(tmp_path)
    assert caught.value.id == "peer.store_version"


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        PeerStore(tmp_path / "file" / "peer")
    assert caught.value.id == "storage.no_folder"


def test_a_full_disk_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    with PeerStore(tmp_path) as store:
        stage(store, "one")
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StorageError) as caught:
            store.accept(held("r.2.p.1", offer=os.urandom(1 << 20)), now=1.0)
        assert caught.value.id == "storage.disk_full"
        assert [one.assignment_id for one in store.held()] == ["r.1.p.1"]
        store.commit("r.1.p.1", 1)
        assert store.settle("r", 1)["residual"].read_text() == "one"
