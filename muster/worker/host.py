"""Runs jobs in a worker process: what goes wrong in one costs that job and nothing else."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from muster.errors import ERROR_CLASSES, MusterError, StateError, TaskError
from muster.worker.logfile import LogFile
from muster.worker.process import WorkerProcess, start_process

CLOSE_SECONDS = 2.0  # for an idle worker to end by itself

_SIGNAL_NAMES = {found.value: found.name for found in signal.Signals}
_CAUSES: dict[int, str] = {
    signal.SIGKILL: "killed from outside, most often by the system because memory ran out",
    signal.SIGSEGV: "native code touched memory that is not its own",
    signal.SIGBUS: "native code read a file or shared memory that is no longer there (shared memory full?)",
    signal.SIGABRT: "native code gave up",
    signal.SIGXCPU: "its limit of CPU time was reached",
}


class WorkerHost:
    """One worker process, started when first needed, kept warm between jobs, replaced after a failure.

    `module` has a dict `JOBS`; `device` is given to every job as `args["device"]` unless the caller sets
    that; `log_path` takes what the jobs print. Jobs run one at a time, in the order of the calls.
    """

    def __init__(self, module: str, *, label: str, device: str, log_path: Path) -> None:
        self._module = module
        self._label = label
        self._device = device
        self._log = LogFile(log_path)
        self._turn = asyncio.Lock()
        self._process: WorkerProcess | None = None
        self._busy = False
        self._cancelled = False
        self._closed = False
        self._number = 0

    @property
    def pid(self) -> int | None:
        """Of the process that lives now, if any."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Starts the process ahead of its first job, so that the job does not wait for its imports."""
        async with self._turn:
            await self._living()

    async def run(
        self,
        job: str,
        args: Mapping[str, Any],
        *,
        timeout_seconds: float,
        on_progress: Callable[[float], None] | None = None,
    ) -> dict[str, Any]:
        """What `JOBS[job](args, progress)` gives back; `args` and result are JSON.

        `timeout_seconds` counts from when the job gets its turn and includes the start of a process. A
        `MusterError` that the job raises is raised here as it is. Otherwise raises `TaskError`:
        "worker.failed" (another exception; `fields["traceback"]`), "worker.crashed" (`fields["signal"]` or
        `["exit_status"]`), "worker.timeout" and "worker.cancelled"; of these a process is not used again.
        Where known, `fields["stack"]` tells where every thread stood and `fields["log"]` what was printed
        last. If the call itself is cancelled, so is the job.
        """
        async with self._turn:
            process = await self._living()
            self._busy, self._cancelled = True, False
            try:
                async with asyncio.timeout(timeout_seconds):
                    outcome = await self._converse(process, job, args, on_progress)
            except TimeoutError:
                await process.ask_stacks()
                await self._discard()
                raise self._hung(process, job, timeout_seconds) from None
            except BaseException:
                await self._discard()
                raise
            finally:
                self._busy = False
            if outcome is None or outcome["kind"] == "failed" or self._cancelled:
                await self._discard()
            if outcome is None:
                raise self._cancellation(job) if self._cancelled else self._crash(process, job)
            return self._result(job, outcome)

    def cancel(self) -> None:
        """Kills the job that runs, with all its processes; its `run` raises "worker.cancelled"."""
        if self._busy and self._process is not None:
            self._cancelled = True
            self._process.kill_group()

    async def close(self) -> None:
        """Ends the process; a job that runs is cancelled. The host cannot be used again."""
        self._closed = True
        self.cancel()
        async with self._turn:
            if self._process is not None:
                process, self._process = self._process, None
                await process.end(patience_seconds=CLOSE_SECONDS)

    async def _living(self) -> WorkerProcess:
        if self._closed:
            raise StateError("worker.closed", f"worker {self._label!r} was closed")
        if self._process is not None and self._process.returncode is not None:
            await self._discard()  # it died while it had nothing to do
        if self._process is None:
            self._log.forget()
            self._process = await start_process(self._module, self._label, self._log)
        return self._process

    async def _converse(
        self,
        process: WorkerProcess,
        job: str,
        args: Mapping[str, Any],
        on_progress: Callable[[float], None] | None,
    ) -> dict[str, Any] | None:
        self._number += 1
        process.send({"number": self._number, "job": job, "args": {"device": self._device, **args}})
        while (event := await process.next_event()) is not None:
            if event.get("number") != self._number:
                continue  # a thread of an earlier job still tells of its progress
            if event["kind"] != "progress":
                return event
            if on_progress is not None:
                on_progress(event["share"])
        return None

    async def _discard(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill_group()
            await process.end()

    # -- what is told
    # -------------------------------------------------------------------------------------------------

    def _result(self, job: str, outcome: dict[str, Any]) -> dict[str, Any]:
        if outcome["kind"] == "done":
            found: dict[str, Any] = outcome["result"]
            return found
        if outcome["kind"] == "error":
            raise ERROR_CLASSES.get(outcome["class"], MusterError)(
                outcome["id"],
                outcome["message"],
                cause=outcome["cause"],
                fix=outcome["fix"],
                **outcome["fields"],
            )
        raise TaskError(
            "worker.failed",
            f"job {job!r} of worker {self._label!r} raised {outcome['exception']}",
            cause=f"{outcome['exception']}: {outcome['message']}",
            fix="mend the task; its traceback is with this error",
            traceback=outcome["traceback"],
            log=self._log.tail(),
        )

    def _crash(self, process: WorkerProcess, job: str) -> TaskError:
        status = process.returncode or 0
        stack = process.stacks()
        if status < 0:
            name = _SIGNAL_NAMES.get(-status, f"signal {-status}")
            how = f"was ended by {name}"
            cause = _CAUSES.get(-status, "the task or somebody on this machine sent it")
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
