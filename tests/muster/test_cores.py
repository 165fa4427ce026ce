"""How many threads a worker may take, and who else is on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from muster.runtime import cores
from muster.runtime.cores import Slots, said_threads, share, usable_cores

SITS = """
import sys, time
from pathlib import Path
from muster.runtime.cores import Slots
slots = Slots(Path(sys.argv[1])).take()
print("sits", flush=True)
time.sleep(60)
"""


def test_a_share_is_never_less_than_one() -> None:
    assert [share(8, count) for count in (0, 1, 2, 3, 4, 8, 9, 50)] == [8, 8, 4, 2, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("said", "found"), [("1", 1), (" 6 ", 6), ("4,2", 4), ("", None), ("0", None), ("x", None)]
)
def test_what_was_said_to_openmp_counts(said: str, found: int | None) -> None:
    assert said_threads({"OMP_NUM_THREADS": said}) == found


def test_peers_are_counted_until_they_go(tmp_path: Path) -> None:
    first, second = Slots(tmp_path), Slots(tmp_path)
    assert first.count() == 0
    first.take()
    first.take()  # twice is once
    second.take()
    assert (first.count(), second.count(), Slots(tmp_path).count()) == (2, 2, 2)
    first.release()
    assert second.count() == 1
    first.take()
    assert second.count() == 2
    first.release()
    second.release()


def test_a_killed_peer_counts_no_more(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", SITS, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"sits\n"
    assert Slots(tmp_path).count() == 1
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert Slots(tmp_path).count() == 0


def test_a_folder_that_cannot_be_used_holds_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Slots(tmp_path / "file").take().count() == 0


def test_slots_are_its_users_alone(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "runtime").take()
    assert (tmp_path / "runtime").stat().st_mode & 0o777 == 0o700
    slots.release()


@pytest.mark.parametrize(
    ("files", "group", "least"),
    [
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, "0::/a/b", 2.5),
        ({"a/cpu.max": "max 100000"}, "0::/a", None),
        ({"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/a", 0.5),
        ({"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/a", None),
        ({"a/cpu.max": "rubbish"}, "0::/a", None),
        ({}, "7:memory:/a", None),
    ],
)
def test_a_cpu_quota_is_a_number_of_cores(
    tmp_path: Path, files: dict[str, str], group: str, least: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "membership").write_text(group + "\n")
    assert min(cores._quotas(tmp_path, tmp_path / "membership"), default=None) == least


def test_no_more_cores_than_the_process_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5})
    monkeypatch.setattr(cores, "_quotas", lambda *_: [2.5])
    assert usable_cores() == 3
    monkeypatch.setattr(cores, "_quotas", lambda *_: [])
    assert usable_cores() == 6
