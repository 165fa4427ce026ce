"""Runs jobs in worker processes: what goes wrong in one costs that job and nothing else, and what one run has loaded
never serves another."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from muster.errors import StateError, TaskError
from muster.worker.child import FRAMEWORKS_JOB, PRELOAD_JOB
from muster.worker.environment import worker_environment
from muster.worker.logfile import LogFile
from muster.worker.outcomes import result_of
from muster.worker.process import WorkerProcess, start_process
from muster.worker.user import WorkerUser

log = structlog.get_logger()

CLOSE_SECONDS = 2.0  # for an idle worker to end by itself
SCOPES_MAX = 4  # processes of one host at a time, each with what its scope has loaded
ASIDE_SECONDS_MAX = 10.0  # for a process to let go of what it does not need until its next job
_FRESH = ""  # in the place of a scope: a process that has loaded nothing but the module of jobs

_SIGNAL_NAMES = {found.value: found.name for found in signal.Signals}
_CAUSES: dict[int, str] = {
    signal.SIGKILL: "killed from outside, most often by the system because memory ran out",
    signal.SIGSEGV: "native code touched memory that is not its own",
    signal.SIGBUS: "native code read a file or shared memory that is no longer there (shared memory full?)",
    signal.SIGABRT: "native code gave up",
    signal.SIGXCPU: "its limit of CPU time was reached",
}


class WorkerHost:
    """Worker processes for one job at a time, in the order of the calls: started when first needed, kept warm between
    jobs, replaced after a failure.

    Whoever names a `scope` (a run) gets a process that no other scope has used: modules are imported and data are read
    once in a process, so a new run sees the code and the data that there are when it begins. A scope keeps its process
    until `forget`, or until more than `SCOPES_MAX` are at work.

    `module` has a dict `JOBS`; `rest_job`, one of them, is run in a process that has to wait for another scope's
    job. `device` is given to every job as `args["device"]` unless the caller sets that; `log_path` takes what the
    jobs print; `environment` is asked for a process's variables when one starts; `user` is whose the processes are.
    """

    def __init__(
        self,
        module: str,
        *,
        label: str,
        device: str,
        log_path: Path,
        rest_job: str | None = None,
        environment: Callable[[], Mapping[str, str]] = lambda: worker_environment(os.environ),
        user: WorkerUser | None = None,
    ) -> None:
        self._module = module
        self._label = label
        self._device = device
        self._rest_job = rest_job
        self._environment = environment
        self._user = user
        self._log = LogFile(log_path)
        self._turn = asyncio.Lock()
        self._processes: OrderedDict[str, WorkerProcess] = (
            OrderedDict()
        )  # by scope, the last one used at the end
        self._renewals: set[asyncio.Task[None]] = set()
        self._at_work: WorkerProcess | None = None
        self._cancelled = False
        self._closed = False
        self._number = 0

    @property
    def pid(self) -> int | None:
        """Of the process that was used last, if it lives."""
        process = next(reversed(self._processes.values()), None)
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Starts a process ahead of its first job, so that the job does not wait for its imports."""
        async with self._turn:
            await self._living("")

    def forget(self, scope: str) -> None:
        """The scope is over: as soon as no job runs its process ends, and a fresh one is started for the next."""
        if scope in self._processes and not self._closed:
            renewal = asyncio.get_running_loop().create_task(self._renew(scope))
            self._renewals.add(renewal)
            renewal.add_done_callback(self._renewals.discard)

    async def run(
        self,
        job: str,
        args: Mapping[str, Any],
        *,
        timeout_seconds: float,
        scope: str = "",
        on_progress: Callable[[float], None] | None = None,
    ) -> dict[str, Any]:
        """What `JOBS[job](args, progress)` gives back; `args` and result are JSON. A job without a scope loads nothing
        of anybody's and runs in any process.

        `timeout_seconds` counts from when the job gets its turn and includes the start of a process. A
        `MusterError` that the job raises is raised here as it is. Otherwise raises `TaskError`:
        "worker.failed" (another exception; `fields["traceback"]`), "worker.crashed" (`fields["signal"]` or
        `["exit_status"]`), "worker.timeout" and "worker.cancelled"; of these a process is not used again.
        Where known, `fields["stack"]` tells where every thread stood and `fields["log"]` what was printed
        last. If the call itself is cancelled, so is the job.
        """
        async with self._turn:
            scope, process = await self._living(scope)
            self._at_work, self._cancelled = process, False
            try:
                async with asyncio.timeout(timeout_seconds):
                    outcome = await self._converse(process, job, args, on_progress)
            except TimeoutError:
                await process.ask_stacks()
                await self._discard(scope)
                raise self._hung(process, job, timeout_seconds) from None
            except BaseException:
                await self._discard(scope)
                raise
            finally:
                self._at_work = None
            if outcome is None or outcome["kind"] == "failed" or self._cancelled:
                await self._discard(scope)
            if outcome is None:
                raise self._cancellation(job) if self._cancelled else self._crash(process, job)
            log_tail = self._log.tail() if outcome["kind"] == "failed" else ""
            return result_of(outcome, job=job, worker=self._label, log=log_tail)

    def cancel(self) -> None:
        """Kills the job that runs, with all its processes; its `run` raises "worker.cancelled"."""
        if self._at_work is not None:
            self._cancelled = True
            self._at_work.kill_group()

    async def close(self) -> None:
        """Ends the processes; a job that runs is cancelled. The host cannot be used again."""
        self._closed = True
        self.cancel()
        await asyncio.gather(*self._renewals)
        async with self._turn:
            processes = [*self._processes.values()]
            self._processes.clear()
            await asyncio.gather(*(process.end(patience_seconds=CLOSE_SECONDS) for process in processes))

    # -- the processes
    # -------------------------------------------------------------------------------------------------

    async def _living(self, scope: str) -> tuple[str, WorkerProcess]:
        """A process for a job of the scope, and the scope whose process it is; it becomes the last one used."""
        if self._closed:
            raise self._over()
        for found in [found for found, process in self._processes.items() if process.returncode is not None]:
            await self._discard(found)  # it died while it had nothing to do
        found = scope or next(reversed(self._processes), _FRESH)
        if found not in self._processes:
            if _FRESH not in self._processes:
                await self._start_fresh()
            await self._rest()
            self._processes[found] = self._processes.pop(_FRESH)
        elif found != next(reversed(self._processes)):
            await self._rest()
        self._processes.move_to_end(found)
        while len(self._processes) > SCOPES_MAX:
            await self._discard(next(iter(self._processes)))
        if self._closed:
            raise self._over()
        return found, self._processes[found]

    def _over(self) -> StateError:
        return StateError("worker.closed", f"worker {self._label!r} was closed")

    async def _start_fresh(self) -> None:
        self._log.forget()
        self._processes[_FRESH] = await start_process(
            self._module, self._label, self._log, self._environment(), self._user
        )
        self._processes.move_to_end(_FRESH, last=False)

    async def _renew(self, scope: str) -> None:
        async with self._turn:
            needed = {} if self._closed else await self._aside(scope, FRAMEWORKS_JOB)
            await self._discard(scope)
            if _FRESH in self._processes or self._closed:
                return
            try:
                await self._start_fresh()
            except OSError as error:  # the next job will try again, and tell
                log.warning("worker.not_started", worker=self._label, reason=str(error))
            else:
                # Nobody waits for it but the job that comes first.
                self._send(self._processes[_FRESH], PRELOAD_JOB, {"modules": [], **needed})

    async def _rest(self) -> None:
        """Before another scope's job: the process used last keeps no more than it has to."""
        scope = next(reversed(self._processes), _FRESH)
        if self._rest_job is not None and scope != _FRESH:
            await self._aside(scope, self._rest_job)

    async def _aside(self, scope: str, job: str) -> dict[str, Any]:
        """A small job of the host's own, in a scope's process if it lives; one that fails costs the process."""
        process = self._processes.get(scope)
        if process is None:
            return {}
        try:
            async with asyncio.timeout(ASIDE_SECONDS_MAX):
                outcome = await self._converse(process, job, {}, None)
        except (TimeoutError, TaskError):
            outcome = None
        except BaseException:
            await self._discard(scope)
            raise
        if outcome is None or outcome["kind"] != "done":
            await self._discard(scope)
            return {}
        result: dict[str, Any] = outcome["result"]
        return result

    async def _converse(
        self,
        process: WorkerProcess,
        job: str,
        args: Mapping[str, Any],
        on_progress: Callable[[float], None] | None,
    ) -> dict[str, Any] | None:
        self._send(process, job, args)
        while (event := await process.next_event()) is not None:
            if event.get("number") != self._number:
                continue  # a thread of an earlier job still tells of its progress
            if event["kind"] != "progress":
                return event
            if on_progress is not None:
                on_progress(event["share"])
        return None

    def _send(self, process: WorkerProcess, job: str, args: Mapping[str, Any]) -> None:
        self._number += 1
        process.send({"number": self._number, "job": job, "args": {"device": self._device, **args}})

    async def _discard(self, scope: str) -> None:
        process = self._processes.pop(scope, None)
        if process is not None:
            process.kill_group()
            await process.end()

    # -- what is told
    # -------------------------------------------------------------------------------------------------

    def _crash(self, process: WorkerProcess, job: str) -> TaskError:
        status = process.returncode or 0
        stack = process.stacks()
        if status < 0:
            name = _SIGNAL_NAMES.get(-status, f"signal {-status}")
            how = f"was ended by {name}"
            cause = _CAUSES.get(-status, "the task or a user of this machine sent it")
            known = {"signal": name}
        else:
            how = f"ended itself with exit status {status}"
            cause = "the task's own code ended the process, or closed its pipes"
            known = {"exit_status": str(status)}
        if stack:
            self._log.write(stack.encode())
        return TaskError(
            "worker.crashed",
            f"worker {self._label!r} {how} during job {job!r}",
            cause=cause,
            fix=f"see {self._log.path}",
            log=self._log.tail(),
            **known,
            **({"stack": stack, "traceback": stack} if stack else {}),
        )

    def _hung(self, process: WorkerProcess, job: str, timeout_seconds: float) -> TaskError:
        stack = process.stacks()
        self._log.write(stack.encode())
        return TaskError(
            "worker.timeout",
            f"job {job!r} of worker {self._label!r} was not done after {timeout_seconds:g} s and was killed",
            cause="an endless loop, a deadlock, or more work than the time allows; the stack tells where",
            fix=f"see {self._log.path}; raise the deadline if the work is honest",
            stack=stack,
            traceback=stack,
            log=self._log.tail(),
        )

    def _cancellation(self, job: str) -> TaskError:
        return TaskError("worker.cancelled", f"job {job!r} of worker {self._label!r} was cancelled")
