"""Following a run without a terminal: one line a round, and what the run waits for while nothing happens."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from cli.client import Client
from cli.render import metrics_line, one_line
from muster.errors import DeadlineError, UnreachableError
from protos.v1 import admin_pb2 as pb

QUIET_SECONDS = 3.0  # after so long without a line, one says what the run waits for

# Kinds of event that are not a round's end and get a line nevertheless.
_TOLD = re.compile(r"run\.(?!submitted)")
_ENDS = {"round.committed": "", "round.skipped": "SKIPPED  ", "round.failed": "FAILED  "}
_CLOCKS = re.compile(r"\b\d+(\.\d+)? (s|bytes)\b")  # what changes without anything having happened


class Lines:
    """`show` is given one line at a time."""

    def __init__(self, client: Client, run: pb.Run, show: Callable[[str], None]) -> None:
        self._client = client
        self._run = run
        self._show = show
        self._evaluated: dict[int, pb.Event] = {}  # committed rounds whose metrics are awaited, by round
        self._newest: pb.Event | None = None  # a committed round of which it is not known yet
        self._reason = ""
        self._last = ""

    async def follow(self, also: Callable[[pb.Event], bool]) -> None:
        """To the run's end. `also` is given every event first, and says whether it has dealt with it."""
        batches: asyncio.Queue[Sequence[pb.Event]] = asyncio.Queue()
        reader = asyncio.create_task(self._read(batches))
        try:
            while not (reader.done() and batches.empty()):
                news = asyncio.create_task(batches.get())
                done, _ = await asyncio.wait(
                    {news, reader}, timeout=QUIET_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                for event in news.result() if news in done else ():
                    if not also(event):
                        self.take(event)
                news.cancel()
                if not done:
                    await self._tell_reason()
            await reader
            self._flush()
        finally:
            reader.cancel()

    async def _read(self, batches: asyncio.Queue[Sequence[pb.Event]]) -> None:
        async for batch in self._client.events(run_id=self._run.run_id, follow=True):
            batches.put_nowait(batch)

    def take(self, event: pb.Event) -> None:
        newest, self._newest = self._newest, None
        if newest is not None and event.kind == "evaluation.started" and event.round == newest.round:
            self._evaluated[newest.round] = newest
        elif newest is not None:
            self._round(newest)
        if event.kind == "evaluation.finished":
            if (committed := self._evaluated.pop(event.round, None)) is not None:
                self._round(committed, _metrics(event))
        elif event.kind == "round.committed":
            self._newest = event
        elif event.kind in _ENDS:
            self._round(event)
        elif _TOLD.match(event.kind):
            if event.kind in ("run.finished", "run.failed", "run.cancelled"):
                self._flush()
            self._line(event.at, one_line(event.reason))

    def _flush(self) -> None:
        """Rounds whose metrics do not come any more."""
        held = [*self._evaluated.values(), *([self._newest] if self._newest is not None else [])]
        self._evaluated.clear()
        self._newest = None
        for event in held:
            self._round(event)

    def _round(self, event: pb.Event, metrics: str = "") -> None:
        reason = one_line(event.reason).removeprefix(f"round {event.round} ")
        told = f"{_ENDS[event.kind]}{metrics}{'; ' if metrics else ''}{reason}"
        total = self._run.rounds_total  # of committed ones: where some are skipped, there are more
        self._line(event.at, f"round {event.round}{f'/{total}' if event.round <= total else ''}  {told}")

    def _line(self, at: float, text: str) -> None:
        self._reason, self._last = "", text  # whatever it waits for now is another thing
        self._show(f"{datetime.fromtimestamp(at).astimezone():%H:%M:%S}  {text}")

    async def _tell_reason(self) -> None:
        sentence = await why(self._client, self._run.run_id)
        bare = _CLOCKS.sub("", sentence)
        if bare != self._reason and not (self._last and one_line(sentence).endswith(self._last)):
            self._show(f"{datetime.now().astimezone():%H:%M:%S}  {sentence}")
            self._reason = bare


async def why(client: Client, run_id: str) -> str:
    """What the run waits for, in one sentence; that the coordinator is away, if it is."""
    try:
        request = pb.ExplainRunRequest(run_id=run_id)
        found: pb.ExplainRunResponse = await client.call("ExplainRun", request)
    except (UnreachableError, DeadlineError) as error:
        return f"{error.message}; trying again"
    return found.sentence


def _metrics(event: pb.Event) -> str:
    try:
        data: Any = json.loads(event.data_json)
        return metrics_line(data["metrics"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
