"""The worker host against real processes that fail in every way a task can."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from muster.errors import ConfigError, StateError, TaskError
from muster.worker.host import SCOPES_MAX, WorkerHost
from muster.worker.logfile import LogFile

JOBS = Path(__file__).parent / "jobs"


@pytest.fixture
async def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WorkerHost]:
    monkeypatch.setenv("PYTHONPATH", str(JOBS))
    found = WorkerHost("sample_jobs", label="test", device="cpu", log_path=tmp_path / "logs" / "worker.log")
    yield found
    await found.close()


async def failure(host: WorkerHost, job: str, timeout_seconds: float = 30, **args: object) -> TaskError:
    """The error of a job that must fail; afterwards the host must run the next one in another process."""
    await host.start()
    before = host.pid
    with pytest.raises(TaskError) as caught:
        await host.run(job, args, timeout_seconds=timeout_seconds)
    answer = await host.run("echo", {}, timeout_seconds=30)
    assert answer["pid"] != before
    return caught.value


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # other processes set no event
            await asyncio.sleep(0.01)


async def test_jobs_run_in_one_warm_process_on_its_main_thread(host: WorkerHost) -> None:
    assert host.pid is None
    first = await host.run("echo", {"text": "é\n", "deep": [1, {"x": None}]}, timeout_seconds=30)
    second = await host.run("echo", {"device": "cuda:1"}, timeout_seconds=30)
    assert first["args"] == {"device": "cpu", "text": "é\n", "deep": [1, {"x": None}]}
    assert second["args"] == {"device": "cuda:1"}
    assert first["pid"] == second["pid"] == host.pid != os.getpid()
    assert first["thread"]


async def test_jobs_wait_for_their_turn(host: WorkerHost) -> None:
    answers = await asyncio.gather(*(host.run("echo", {"n": n}, timeout_seconds=30) for n in range(5)))
    assert [answer["args"]["n"] for answer in answers] == list(range(5))
    assert len({answer["pid"] for answer in answers}) == 1


async def test_no_process_serves_two_scopes(host: WorkerHost) -> None:
    async def pid(scope: str) -> int:
        return int((await host.run("echo", {}, timeout_seconds=30, scope=scope))["pid"])

    await host.start()
    waiting = host.pid
    first = await pid("a")
    assert first == waiting  # the process that was started ahead
    second = await pid("b")
    assert second != first
    assert [await pid("a"), await pid(""), await pid("b")] == [first, first, second]
    assert not gone(first) and not gone(second)


def workers() -> int:
    """That this process has; it may have started others for other tests."""
    children = psutil.Process().children()
    alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return sum("muster.worker" in child.cmdline() for child in alive)


async def test_a_scope_that_is_over_leaves_a_fresh_process_to_the_next(host: WorkerHost) -> None:
    first = (await host.run("echo", {}, timeout_seconds=30, scope="a"))["pid"]
    host.forget("a")
    host.forget("never heard of")
    await until(lambda: host.pid not in (None, first))
    assert gone(first)
    fresh = host.pid
    assert (await host.run("echo", {}, timeout_seconds=30, scope="b"))["pid"] == fresh
    assert workers() == 1


async def test_a_fresh_process_has_the_frameworks_of_the_one_before_and_nothing_else_of_it(
    host: WorkerHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "networkx.py").write_text("")  # stands in for a framework, as mpmath does
    (installed / "mpmath.py").write_text("import helper, helped.deep")
    (tmp_path / "somebodys_own.py").write_text("")
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "helped").mkdir()
    (tmp_path / "helped" / "deep.py").write_text("")
    (tmp_path / "datasets.py").write_text("")  # the user's own, by a framework's name
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (JOBS, tmp_path, installed))))
    modules = ["networkx", "mpmath", "somebodys_own", "datasets"]
    await host.run("fetch", {"modules": modules}, timeout_seconds=30, scope="a")
    before = host.pid
    host.forget("a")
    await until(lambda: host.pid not in (None, before))
    found = await host.run("look", {}, timeout_seconds=30, scope="b")
    looked_for = {*modules, "helper", "helped", "helped.deep"}
    assert looked_for & {*found["modules"]} == {"networkx", "mpmath"}


async def test_the_scope_that_waited_longest_loses_its_process(host: WorkerHost) -> None:
    first, *_ = [
        (await host.run("echo", {}, timeout_seconds=30, scope=str(number)))["pid"]
        for number in range(SCOPES_MAX + 1)
    ]
    assert gone(first)
    assert workers() == SCOPES_MAX
    assert (await host.run("echo", {}, timeout_seconds=30, scope="0"))["pid"] != first


@pytest.mark.parametrize("rest_job", ["rest", "fail"])
async def test_a_process_that_has_to_wait_rests(host: WorkerHost, tmp_path: Path, rest_job: str) -> None:
    found = WorkerHost(
        "sample_jobs", label="resting", device="cpu", log_path=tmp_path / "log", rest_job=rest_job
    )
    first = await found.run("tell_rests", {}, timeout_seconds=30, scope="a")
    assert (await found.run("tell_rests", {}, timeout_seconds=30, scope="a"))["times"] == 0
    await found.run("tell_rests", {}, timeout_seconds=30, scope="b")
    again = await found.run("tell_rests", {}, timeout_seconds=30, scope="a")
    # One that cannot rest is let go: it costs nobody's job.
    assert again == ({**first, "times": 1} if rest_job == "rest" else {"pid": found.pid, "times": 0})
    await found.close()


async def test_a_worker_begins_with_nothing_of_its_parent(
    host: WorkerHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = await host.run("look", {}, timeout_seconds=30)
    assert not {"torch", "numpy", "pydantic", "grpc", "asyncio", "pytest"} & set(found["modules"])
    assert str(tmp_path) not in found["path"] and "" not in found["path"]
    assert found["environment"]["OMP_NUM_THREADS"] == "1"


async def test_progress_is_told_within_bounds(host: WorkerHost) -> None:
    seen: list[float] = []
    await host.run("steps", {"pause": 0.11}, timeout_seconds=30, on_progress=seen.append)
    assert seen == [0.0, 0.5]
    await host.run("steps", {"pause": 0}, timeout_seconds=30, on_progress=seen.append)
    assert seen == [0.0, 0.5, 0.0]  # at most ten a second cross the pipe


async def test_an_exception_comes_with_its_traceback_and_what_was_printed(host: WorkerHost) -> None:
    error = await failure(host, "fail")
    assert error.id == "worker.failed"
    assert error.cause == "ValueError: no such column"
    assert 'raise ValueError("no such column")' in error.fields["traceback"]
    assert "child.py" not in error.fields["traceback"]
    assert "about to fail" in error.fields["log"]


async def test_texts_that_are_no_text_cross_as_what_can_be_stored(host: WorkerHost) -> None:
    """A file name in Latin-1 is a lone surrogate in Python, which nothing else takes."""
    with pytest.raises(TaskError) as caught:
        await host.run("stumble", {}, timeout_seconds=60)
    for told in (caught.value.cause, caught.value.fields["traceback"]):
        assert "bad row in donn\\xe9es.csv\ufffd" in told
    assert await host.run("name", {}, timeout_seconds=60) == {"\\xff": ["\\xfe\ufffd"]}


async def test_an_error_of_muster_crosses_whole_and_the_process_stays(host: WorkerHost) -> None:
    with pytest.raises(ConfigError) as caught:
        await host.run("refuse", {}, timeout_seconds=30)
    error = caught.value
    assert (error.id, error.message, error.cause, error.fix) == (
        "task.not_found",
        "no such task",
        "because",
        "name it",
    )
    assert error.fields == {"task": "digits"}
    before = host.pid
    assert (await host.run("echo", {}, timeout_seconds=30))["pid"] == before


@pytest.mark.parametrize(
    ("job", "exception"), [("leave", "SystemExit"), ("bad_result", "TypeError"), ("nothing", "LookupError")]
)
async def test_what_is_not_an_exception_of_the_task_is_a_failure_too(
    host: WorkerHost, job: str, exception: str
) -> None:
    error = await failure(host, job)
    assert error.id == "worker.failed" and exception in error.message


async def test_memory_beyond_the_limit_is_a_failure(host: WorkerHost) -> None:
    error = await failure(host, "eat")
    assert error.id == "worker.failed" and "MemoryError" in error.message
    assert "bytearray(2 << 30)" in error.fields["traceback"]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGRTMIN"])
async def test_a_signal_is_named(host: WorkerHost, name: str) -> None:
    error = await failure(host, "die", signal=name)
    assert error.id == "worker.crashed"
    assert error.fields["signal"] == name and name in error.message
    assert "last words" in error.fields["log"]
    assert ("memory ran out" in error.cause) == (name == "SIGKILL")


async def test_a_segmentation_fault_tells_where(host: WorkerHost) -> None:
    error = await failure(host, "touch_null")
    assert error.id == "worker.crashed" and error.fields["signal"] == "SIGSEGV"
    assert "touch_null" in error.fields["stack"]


async def test_an_exit_status_is_told(host: WorkerHost) -> None:
    error = await failure(host, "vanish", status=7)
    assert error.id == "worker.crashed" and error.fields["exit_status"] == "7"


async def test_a_crash_is_seen_although_a_process_left_behind_holds_the_pipes(host: WorkerHost) -> None:
    error = await failure(host, "leave_child")
    assert error.fields["signal"] == "SIGKILL"


async def test_an_endless_loop_is_killed_and_tells_where_it_was(host: WorkerHost, tmp_path: Path) -> None:
    error = await failure(host, "hang", timeout_seconds=1.5)
    assert error.id == "worker.timeout"
    assert "in hang" in error.fields["stack"]
    assert "in hang" in (tmp_path / "logs" / "worker.log").read_text()


async def test_cancelling_kills_the_job_with_all_its_processes(host: WorkerHost, tmp_path: Path) -> None:
    started = asyncio.Event()
    pid_file = tmp_path / "pid"
    run = asyncio.create_task(
        host.run(
            "sleep_with_child",
            {"pid_file": str(pid_file)},
            timeout_seconds=60,
            on_progress=lambda share: started.set(),
        )
    )
    await started.wait()
    host.cancel()
    with pytest.raises(TaskError) as caught:
        await run
    assert caught.value.id == "worker.cancelled"
    await until(lambda: gone(int(pid_file.read_text())))
    await host.run("echo", {}, timeout_seconds=30)


async def test_cancelling_nothing_does_nothing(host: WorkerHost) -> None:
    await host.start()
    before = host.pid
    host.cancel()
    assert (await host.run("echo", {}, timeout_seconds=30))["pid"] == before


async def test_a_cancelled_call_ends_its_job(host: WorkerHost) -> None:
    started = asyncio.Event()
    run = asyncio.create_task(
        host.run("hang", {}, timeout_seconds=60, on_progress=lambda share: started.set())
    )
    await started.wait()
    pid = host.pid
    assert pid is not None
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert gone(pid)
    await host.run("echo", {}, timeout_seconds=30)


async def test_a_worker_that_died_idle_is_replaced_without_a_word(host: WorkerHost) -> None:
    first = await host.run("echo", {}, timeout_seconds=30)
    os.kill(first["pid"], signal.SIGKILL)
    await until(lambda: host.pid is None)
    assert (await host.run("echo", {}, timeout_seconds=30))["pid"] != first["pid"]


async def test_a_module_that_cannot_be_imported_is_told_as_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_jobs.py").write_text("import nothing_of_this_name\nJOBS = {}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    host = WorkerHost("broken_jobs", label="broken", device="cpu", log_path=tmp_path / "log")
    for _ in range(2):
        with pytest.raises(TaskError) as caught:
            await host.run("echo", {}, timeout_seconds=30)
        assert caught.value.id == "worker.failed"
        assert "No module named 'nothing_of_this_name'" in caught.value.cause
    await host.close()


async def test_closing_ends_idle_and_busy_workers(host: WorkerHost) -> None:
    started = asyncio.Event()
    run = asyncio.create_task(
        host.run("hang", {}, timeout_seconds=60, on_progress=lambda share: started.set())
    )
    await started.wait()
    pid = host.pid
    await host.close()
    with pytest.raises(TaskError, match="cancelled"):
        await run
    assert pid is not None and gone(pid)
    with pytest.raises(StateError):
        await host.run("echo", {}, timeout_seconds=30)


async def test_no_file_is_left_open(host: WorkerHost) -> None:
    await host.run("echo", {}, timeout_seconds=30)
    process = psutil.Process()
    before = process.num_fds()
    for _ in range(3):
        with pytest.raises(TaskError):
            await host.run("vanish", {"status": 1}, timeout_seconds=30)
    await host.run("echo", {}, timeout_seconds=30)
    assert process.num_fds() <= before


PARENT = """
import asyncio, sys
from pathlib import Path
from muster.worker.host import WorkerHost

async def main():
    host = WorkerHost("sample_jobs", label="x", device="cpu", log_path=Path(sys.argv[1]) / "log")
    job, args = sys.argv[2], {"pid_file": sys.argv[1] + "/pid"}
    await host.start()
    told = lambda share: print(host.pid, flush=True)
    await host.run(job, args, timeout_seconds=60, on_progress=told)

asyncio.run(main())
"""


@pytest.mark.parametrize("job", ["hang", "sleep_with_child"])
async def test_a_worker_dies_with_its_parent(host: WorkerHost, job: str, tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(PARENT), str(tmp_path), job, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    worker = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await until(lambda: gone(worker))


async def test_the_log_keeps_only_the_newest(host: WorkerHost, tmp_path: Path) -> None:
    await host.run("speak", {"lines": 60_000}, timeout_seconds=60)  # about 6 MB
    await host.close()
    log = tmp_path / "logs" / "worker.log"
    older = tmp_path / "logs" / "worker.log.1"
    assert log.read_text().endswith("line 59999 " + "x" * 90 + "\n")
    assert log.stat().st_size + older.stat().st_size <= 4 << 20
    assert older.stat().st_size > 1 << 20


def test_a_log_that_cannot_be_written_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log")
    (tmp_path / "log").mkdir()
    log.write(b"lost on disk, kept in mind\n")
    assert log.tail() == "lost on disk, kept in mind\n"
