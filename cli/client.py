"""The coordinator, as the command sees it: the admin service over one channel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import Message

from cli.settings import Settings
from muster.errors import (
    DeadlineError,
    MusterError,
    NotFoundError,
    TransferError,
    UnreachableError,
    UsageError,
)
from muster.transport.base import Channel, Method
from muster.wire import ADMIN
from protos.v1 import admin_pb2 as pb

Item = TypeVar("Item", pb.Run, pb.Peer)

RECONNECT_SECONDS = (
    60.0  # a coordinator that is being restarted is waited for so long by those who follow a run
)
SUBMIT_SECONDS_MIN = 120.0  # the coordinator imports the task, which on a cold machine takes its time
REPLAY_SECONDS_MAX = 600.0  # large models, one replay after the other
# States that a run never leaves, and the one in which nothing happens to it at this coordinator.
PAUSED = "run.paused"
ENDED = frozenset({"FINISHED", "FAILED", "CANCELLED", "UNREADABLE"})


class Client:
    """Made by `connect`. Every call raises what the coordinator raised, or `UnreachableError`,
    `DeadlineError`."""

    def __init__(
        self, channel: Channel, *, address: str, timeout_seconds: float, tell: Callable[[str], None]
    ) -> None:
        self.channel = channel
        self.address = address
        self.timeout_seconds = timeout_seconds
        self._tell = tell  # shows a person what is not part of the data

    async def call(self, name: str, request: Message) -> Any:
        """One unary procedure of the admin service, by its name."""
        method: Method[Any, Any] = ADMIN[name]
        return await self.channel.unary(method, request, timeout_seconds=self.timeout_seconds)

    async def submit(self, request: pb.SubmitRunRequest) -> pb.SubmitRunResponse:
        method: Method[Any, Any] = ADMIN["SubmitRun"]
        seconds = max(self.timeout_seconds, SUBMIT_SECONDS_MIN)
        answer: pb.SubmitRunResponse = await self.channel.unary(method, request, timeout_seconds=seconds)
        return answer

    async def pages(self, name: str, request: Any) -> AsyncIterator[Any]:
        """The answers of a procedure that answers in pages, each asked for when the one before has been used."""
        seen: set[str] = set()
        while True:
            response = await self.call(name, request)
            yield response
            request.page_token = response.next_page_token
            if not request.page_token:
                return
            if request.page_token in seen:  # it would go on for ever
                raise TransferError("cli.endless_list", f"{self.address} gave the same page of {name} twice")
            seen.add(request.page_token)

    async def runs(self) -> Sequence[pb.Run]:
        pages = self.pages("ListRuns", pb.ListRunsRequest())
        return [run async for page in pages for run in page.runs]

    async def run(self, run_id: str) -> pb.Run:
        response: pb.GetRunResponse = await self.call("GetRun", pb.GetRunRequest(run_id=run_id))
        return response.run

    async def rounds(self, run_id: str) -> Sequence[pb.Round]:
        pages = self.pages("ListRounds", pb.ListRoundsRequest(run_id=run_id))
        return [each async for page in pages for each in page.rounds]

    async def round(self, run_id: str, number: int) -> pb.Round:
        """With its assignments."""
        request = pb.GetRoundRequest(run_id=run_id, number=number)
        found: pb.Round | None = None
        async for page in self.pages("GetRound", request):
            if found is None:
                found = page.round
            else:
                found.assignments.extend(page.round.assignments)
        assert found is not None
        return found

    async def explain(self, run_id: str) -> pb.ExplainRunResponse:
        found: pb.ExplainRunResponse | None = None
        async for page in self.pages("ExplainRun", pb.ExplainRunRequest(run_id=run_id)):
            if found is None:
                found = page
            else:
                found.details.extend(page.details)
        assert found is not None
        found.next_page_token = ""
        return found

    async def replay(self, run_id: str, number: int, changes: Mapping[str, Any]) -> pb.ReplayRoundResponse:
        """`changes` are those to the run spec's aggregation table. It takes as long as the round's own did."""
        request = pb.ReplayRoundRequest(run_id=run_id, number=number, aggregation_json=json.dumps(changes))
        method: Method[Any, Any] = ADMIN["ReplayRound"]
        response: pb.ReplayRoundResponse = await self.channel.unary(
            method, request, timeout_seconds=max(self.timeout_seconds, REPLAY_SECONDS_MAX)
        )
        return response

    async def peers(self) -> Sequence[pb.Peer]:
        pages = self.pages("ListPeers", pb.ListPeersRequest())
        return [peer async for page in pages for peer in page.peers]

    async def models(self, run_id: str) -> Sequence[pb.Model]:
        pages = self.pages("ListModels", pb.ListModelsRequest(run_id=run_id))
        return [model async for page in pages for model in page.models]

    async def find_run(self, text: str) -> pb.Run:
        """The run whose id is `text`, or else whose name is, or else whose id begins with it.

        Of several submissions with one name it takes the newest and says so; `NAME@N` is the Nth.
        """
        runs = await self.runs()
        by_name = submissions(runs)
        if text in by_name and all(run.run_id != text for run in runs):
            return self._newest(text, by_name[text])
        name, at, number = text.rpartition("@")
        if at and name in by_name:
            return _submission(name, number, by_name[name])
        ids = [run.run_id for run in runs]
        return _pick(text, runs, kind="run", ids=ids, others=tuple(by_name))

    def _newest(self, name: str, found: Sequence[pb.Run]) -> pb.Run:
        newest = found[-1]
        if len(found) > 1:
            last = len(found) - 1
            others = f"The other is {name}@1" if last == 1 else f"The others are {name}@1 to {name}@{last}"
            self._tell(
                f"{len(found)} runs are called {name!r}; this is the newest, {newest.run_id}. "
                f"{others}: muster run list"
            )
        return newest

    async def find_peer(self, text: str) -> pb.Peer:
        peers = await self.peers()
        return _pick(text, peers, kind="peer", ids=[peer.peer_id for peer in peers])

    async def events(
        self, *, run_id: str = "", after_sequence: int = 0, follow: bool = False
    ) -> AsyncIterator[Sequence[pb.Event]]:
        """Batches of events in order, each event once. With `follow`, until the run has ended or has paused itself;
        a coordinator that goes away meanwhile is waited for up to `RECONNECT_SECONDS`."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + RECONNECT_SECONDS
        pause_seconds = 0.1
        ended = False
        while True:
            news = False
            try:
                async for batch in self._watch(run_id, after_sequence, follow):
                    news = True
                    yield batch
                    after_sequence = max(after_sequence, batch[-1].sequence)
                    paused = follow and run_id != "" and any(event.kind == PAUSED for event in batch)
                    if paused and (await self.run(run_id)).needs_resume:
                        return
                if not follow or (ended and not news):
                    return
                # The end of a stream does not tell that all has come: an ended run is asked once more.
                ended = bool(run_id) and (await self.run(run_id)).state in ENDED
                give_up_at = loop.time() + RECONNECT_SECONDS
            except (UnreachableError, DeadlineError):
                if not follow or loop.time() >= give_up_at:
                    raise
            pause_seconds = 0.1 if news else min(2.0, pause_seconds * 2)
            if not ended:
                await asyncio.sleep(pause_seconds)

    async def _watch(
        self, run_id: str, after_sequence: int, follow: bool
    ) -> AsyncIterator[Sequence[pb.Event]]:
        request = pb.WatchEventsRequest(run_id=run_id, after_sequence=after_sequence, follow=follow)
        response: pb.WatchEventsResponse
        async for response in self.channel.stream(ADMIN["WatchEvents"], once(request)):
            if response.events:
                yield response.events


async def once(request: Any) -> AsyncIterator[Any]:
    """A request as the one-element stream that streaming procedures take."""
    yield request


@asynccontextmanager
async def connect(settings: Settings) -> AsyncGenerator[Client]:
    """A client of the coordinator that the settings name."""
    from cli.node import coordinator_address
    from cli.output import note
    from muster.transport.grpc_ import GrpcTransport

    address = settings.address or coordinator_address(settings)
    channel = GrpcTransport().connect(address)
    try:
        yield Client(
            channel, address=address, timeout_seconds=settings.timeout_seconds, tell=partial(note, settings)
        )
    except UnreachableError as error:
        error.fix = "start one with `muster serve`, or give the address of another with --address"
        raise
    finally:
        await channel.close()


def submissions(runs: Sequence[pb.Run]) -> dict[str, list[pb.Run]]:
    """The runs of each name, first submitted first: NAME@1, NAME@2, ..."""
    found: dict[str, list[pb.Run]] = {}
    for run in sorted(runs, key=lambda run: (run.created_at, run.run_id)):
        if run.name:
            found.setdefault(run.name, []).append(run)
    return found


def callings(runs: Sequence[pb.Run]) -> dict[str, str]:
    """Each run's name besides its id, with @N where several runs have it."""
    return {
        run.run_id: name if len(found) == 1 else f"{name}@{at}"
        for name, found in submissions(runs).items()
        for at, run in enumerate(found, start=1)
    }


def _submission(name: str, number: str, found: Sequence[pb.Run]) -> pb.Run:
    if number.isdecimal() and 0 < int(number) <= len(found):
        return found[int(number) - 1]
    many = f"{len(found)} runs are" if len(found) > 1 else "one run is"
    raise NotFoundError(
        "run.not_found",
        f"there is no {name}@{number}: {many} called {name!r}",
        fix="muster run list; @1 is the first that was submitted",
    )


def _pick(text: str, items: Iterable[Item], *, kind: str, ids: list[str], others: Sequence[str] = ()) -> Item:
    """By id, or by its beginning; `others` are what else it may have been meant to say."""
    found = list(items)
    matches = [at for at, identifier in enumerate(ids) if identifier == text]
    matches = matches or [at for at, identifier in enumerate(ids) if text and identifier.startswith(text)]
    if len(matches) == 1:
        return found[matches[0]]
    if matches:
        candidates = ", ".join(ids[at] for at in matches[:8]) + (", ..." if len(matches) > 8 else "")
        raise UsageError(
            "cli.ambiguous",
            f"{text!r} may mean any of {len(matches)} {kind}s: {candidates}",
            fix=f"give the {kind}'s id, or more of it",
        )
    raise _not_found(text, kind, [*ids, *others])


def _not_found(text: str, kind: str, known: list[str]) -> MusterError:
    from muster.plugins import nearest

    guess = nearest(text, tuple(known))
    return NotFoundError(
        f"{kind}.not_found",
        f"no {kind} is called {text!r}" + (f"; did you mean {guess!r}?" if guess else ""),
        fix=f"muster {kind} list",
    )
