"""Following a run to its end: a live screen on a terminal, one line a round elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from cli.client import Client
from cli.json_output import emit_json
from cli.lines import Lines, why
from cli.output import WARNED, console, note, warn
from cli.settings import Settings
from muster.errors import DeadlineError, RunUnsuccessful, UnreachableError
from protos.v1 import admin_pb2 as pb

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

ROUNDS_SHOWN = 8
REFRESH_SECONDS = 0.25  # a tiny model makes ten rounds a second; people do not read faster than this
STILL_SECONDS = 3.0  # without news for so long, the screen says what the run waits for
IDLE_SECONDS = 1.0  # without news the clock on the screen still goes on


class Warned:
    """Tells each of a run's warnings once, on standard error, as it comes; quiet or not."""

    def __init__(self, settings: Settings, told: Iterable[str] = ()) -> None:
        self._settings = settings
        self._told = set(told)

    def tell(self, sentences: Iterable[str]) -> None:
        for sentence in sentences:
            if sentence not in self._told:
                self._told.add(sentence)
                warn(self._settings, [sentence])

    def take(self, event: pb.Event) -> bool:
        """Whether it is a warning; if so, it is shown."""
        if event.kind != WARNED:
            return False
        self.tell([event.reason])
        return True


async def follow(
    client: Client, settings: Settings, run: pb.Run, *, beside: bool = True, told: Iterable[str] = ()
) -> pb.Run:
    """Returns the finished run, with its warnings; raises `RunUnsuccessful` for one that failed, was stopped, or has
    paused itself after too many skipped rounds and waits for a person.

    `beside`: what is shown goes to standard error, since the caller's data are something else. `told`: warnings
    that the caller has shown already.
    """
    try:
        if not run.needs_resume:
            await _follow(client, settings, run, beside=beside, told=told)
    except asyncio.CancelledError:  # Ctrl-C
        note(settings, f"the run goes on at the coordinator; to see it again: muster run watch {run.run_id}")
        raise
    ended = await client.run(run.run_id)
    if ended.needs_resume:
        raise RunUnsuccessful(
            "run.paused",
            f"run {ended.run_id} is paused: {ended.reason}",
            fix=f"once that is mended: muster run resume {ended.run_id}, and then: muster run watch {ended.run_id}",
            run_id=ended.run_id,
            state=ended.state,
        )
    if ended.state != "FINISHED":
        raise RunUnsuccessful(
            f"run.{ended.state.lower()}",
            f"run {ended.run_id} ended {ended.state}: {ended.reason}",
            fix=f"muster run logs {ended.run_id}",
            run_id=ended.run_id,
            state=ended.state,
        )
    return ended


async def _follow(
    client: Client, settings: Settings, run: pb.Run, *, beside: bool, told: Iterable[str]
) -> None:
    screen = console(settings, stderr=beside)
    warned = Warned(settings, told)
    if settings.json and not beside:
        from cli.json_form import to_json

        await _each_event(client, run.run_id, lambda event: emit_json(to_json(event), line=True))
    elif settings.quiet:
        await _each_event(client, run.run_id, warned.take)
    elif screen.is_terminal:
        await _live(client, run, screen, warned)
    else:
        await Lines(client, run, lambda line: screen.print(line, soft_wrap=True)).follow(warned.take)


async def _each_event(client: Client, run_id: str, show: Callable[[pb.Event], object]) -> None:
    async for batch in client.events(run_id=run_id, follow=True):
        for event in batch:
            show(event)


class Screen:
    """What the live screen shows: the run, its last rounds, the peers and their part in the newest round."""

    def __init__(self, client: Client, run: pb.Run) -> None:
        self._client = client
        self.run = run
        self.rounds: dict[int, pb.Round] = {}
        self.peers: Sequence[pb.Peer] = ()
        self.changed: set[int] = set()  # rounds named by events since the last refresh
        self.trouble = ""
        self.waits_for = ""  # while nothing happens: in one sentence
        self._news_at = time.monotonic()

    async def refresh(self) -> None:
        """Asks for what has changed, and what is waited for if nothing has for a while.

        A coordinator that is away leaves the screen as it is, with a word about it.
        """
        if self.changed:
            self._news_at, self.waits_for = time.monotonic(), ""
        try:
            for number in sorted(self.changed)[-ROUNDS_SHOWN:]:
                self.rounds[number] = await self._client.round(self.run.run_id, number)
            self.changed.clear()
            self.peers = await self._client.peers()
            self.run = await self._client.run(self.run.run_id)
            if time.monotonic() - self._news_at > STILL_SECONDS:
                self.waits_for = await why(self._client, self.run.run_id)
            self.trouble = ""
        except (UnreachableError, DeadlineError) as error:
            self.trouble = f"{error.message}; trying again"
        for number in sorted(self.rounds)[:-ROUNDS_SHOWN]:
            del self.rounds[number]

    def draw(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        from cli.render import followed_peers_table, run_line
        from cli.render_rounds import rounds_table

        shown = [self.rounds[number] for number in sorted(self.rounds)]
        parts: list[RenderableType] = [run_line(self.run), "", rounds_table(shown)]
        parts += ["", followed_peers_table(self.peers, shown[-1] if shown else None)]
        if self.waits_for:
            parts += ["", Text(self.waits_for)]
        if self.trouble:
            parts += ["", Text(self.trouble, style="yellow")]
        return Group(*parts)


async def _live(client: Client, run: pb.Run, console: Console, warned: Warned) -> None:
    from rich.live import Live

    screen = Screen(client, run)
    recent = (await client.call("ExplainRun", pb.ExplainRunRequest(run_id=run.run_id))).recent
    newest = max((event.sequence for event in recent), default=0)
    warned.tell(each.reason for each in (await client.run(run.run_id)).warnings)
    screen.changed.update(each.number for each in (await client.rounds(run.run_id))[-ROUNDS_SHOWN:])
    news = asyncio.Event()

    async def read() -> None:
        async for batch in client.events(run_id=run.run_id, after_sequence=newest, follow=True):
            screen.changed.update(event.round for event in batch if event.round)
            for event in batch:
                warned.take(event)  # the live screen lets what is written pass above it
            news.set()

    reader = asyncio.create_task(read())
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not (reader.done() or screen.run.needs_resume):
                await screen.refresh()
                live.update(screen.draw(), refresh=True)
                with suppress(TimeoutError):
                    await asyncio.wait_for(_either(news, reader), IDLE_SECONDS)
                news.clear()
                await asyncio.sleep(REFRESH_SECONDS)
        if reader.done():
            await reader
    finally:
        reader.cancel()


async def _either(news: asyncio.Event, reader: asyncio.Task[None]) -> None:
    """Ends when there is news or the reader has ended."""
    waiting = asyncio.create_task(news.wait())
    try:
        await asyncio.wait([waiting, reader], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
