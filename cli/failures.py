"""What went wrong in a run, gathered by cause: one broken site of many rounds is one paragraph, not a hundred."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

from cli.output import WARNED
from cli.render import moment

PEERS_TOLD = 3
_NUMBERS = re.compile(r"\b\d+(\.\d+)?\b")

Entry = Mapping[str, Any]


@dataclass(kw_only=True)
class Cause:
    """Entries that say the same, but for numbers and for whom they are about."""

    kind: str
    told: str  # as the newest says it
    error_id: str
    first_at: float
    peers: list[str] = field(default_factory=list[str])
    rounds: list[int] = field(default_factory=list[int])
    times: int = 0
    repeated: str = ""  # of a warning, which is stored once however often it came

    def add(self, entry: Entry) -> None:
        self.told = cause_of(entry)
        self.times += 1
        self.repeated = entry.get("repeated", "")
        if entry["peer_id"] and entry["peer_id"] not in self.peers:
            self.peers.append(entry["peer_id"])
        if entry["round"]:
            self.rounds.append(entry["round"])


def by_cause(entries: Iterable[Entry]) -> list[Cause]:
    """In the order in which the causes came first."""
    found: dict[tuple[str, str, str], Cause] = {}
    for entry in entries:
        told = cause_of(entry)
        key = (entry["kind"], entry["error_id"], _NUMBERS.sub("#", told))
        if key not in found:
            found[key] = Cause(
                kind=entry["kind"], told=told, error_id=entry["error_id"], first_at=entry["at"] or 0.0
            )
        found[key].add(entry)
    return list(found.values())


def cause_of(entry: Entry) -> str:
    """A peer's report of its failure is shown on its own; the reason repeats it about that peer."""
    told = str(entry.get("message") or entry["reason"])
    if entry["kind"] == WARNED or not entry["peer_id"]:
        return told
    return re.sub(rf"(?<![\w.-]){re.escape(entry['peer_id'])}(?![\w-])", "the peer", told)


def cause_line(cause: Cause) -> Text:
    """ "12:00:01  assignment.lost  peer-1, 5 times, rounds 1 to 5: FileNotFoundError ..."."""
    about: list[str] = []
    if cause.kind != WARNED:  # which names its peer, and has been counted
        about += cause.peers[:PEERS_TOLD]
        if len(cause.peers) > PEERS_TOLD:
            about.append(f"{len(cause.peers) - PEERS_TOLD} more")
        about.append(_when(cause.times, cause.rounds))
    line = Text(f"{moment(cause.first_at)}  ")
    line.append(f"{cause.kind:<20}", style="yellow" if cause.kind == WARNED else "red")
    told = ", ".join(filter(None, about))
    line.append(f" {told}:" if told else "", style="bold")
    line.append(f" {cause.told}" + (f" [{cause.error_id}]" if cause.error_id else ""))
    line.append(f" ({cause.repeated})" if cause.repeated else "")
    return line


def _when(times: int, rounds: Sequence[int]) -> str:
    if not rounds:
        return f"{times} times" if times > 1 else ""
    first, last = min(rounds), max(rounds)
    where = f"round {first}" if first == last else f"rounds {first} to {last}"
    return f"{times} times, {where}" if times > 1 else where
