"""`muster peer list | show | drain | quarantine | release | remove`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.output import confirm, emit
from cli.settings import Settings, command

PeerName = Annotated[str, typer.Argument(metavar="PEER", help="A peer's id, or the beginning of it.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Stored with the peer, and sent to it.")]


def register(app: typer.Typer) -> None:
    command(app, "list", example="muster peer list")(list_peers)
    command(app, "show", example="muster peer show ward-3")(show)
    command(app, "drain", example="muster peer drain ward-3 --reason maintenance")(drain)
    command(app, "quarantine", example="muster peer quarantine ward-3 --reason 'odd updates'")(quarantine)
    command(app, "release", example="muster peer release ward-3")(release)
    command(app, "remove", example="muster peer remove ward-3")(remove)


async def list_peers(settings: Settings) -> None:
    """All peers that ever enrolled, with their state and what they delivered."""
    from cli.client import connect
    from cli.json_form import to_json
    from cli.render import peers_table

    async with connect(settings) as client:
        peers = await client.peers()
    emit(settings, [to_json(peer) for peer in peers], lambda: peers_table(peers))


async def show(settings: Settings, peer: PeerName) -> None:
    """One peer, and the last that was heard of it."""
    from cli.client import connect
    from cli.json_form import to_json
    from cli.render import peer_view
    from protos.v1 import admin_pb2 as pb

    async with connect(settings) as client:
        request = pb.GetPeerRequest(peer_id=(await client.find_peer(peer)).peer_id)
        found: pb.GetPeerResponse = await client.call("GetPeer", request)
    emit(settings, to_json(found), lambda: peer_view(found.peer, found.recent))


async def drain(settings: Settings, peer: PeerName, reason: Reason = "") -> None:
    """Let a peer end what it holds and give it no more, so that its machine can be stopped."""
    from protos.v1 import admin_pb2 as pb

    await _steer(settings, peer, "DrainPeer", pb.DrainPeerRequest(reason=reason))


async def quarantine(settings: Settings, peer: PeerName, reason: Reason = "") -> None:
    """Give a peer no work and refuse its updates until it is released."""
    from protos.v1 import admin_pb2 as pb

    request = pb.QuarantinePeerRequest(reason=reason)
    await _steer(settings, peer, "QuarantinePeer", request, question="Refuse all updates of {}?")


async def release(settings: Settings, peer: PeerName) -> None:
    """Take a drained or quarantined peer back."""
    from protos.v1 import admin_pb2 as pb

    await _steer(settings, peer, "ReleasePeer", pb.ReleasePeerRequest())


async def remove(settings: Settings, peer: PeerName, reason: Reason = "") -> None:
    """Send a peer away for good, and free its name.

    What it did stays in the history. Who joins under the name then is a new peer, as one whose data folder was lost is.
    """
    from protos.v1 import admin_pb2 as pb

    request = pb.RemovePeerRequest(reason=reason)
    await _steer(settings, peer, "RemovePeer", request, question="Send {} away for good, and free its name?")


async def _steer(settings: Settings, text: str, procedure: str, request: Any, *, question: str = "") -> None:
    """Calls a procedure that takes a peer's id and gives the peer."""
    from cli.client import connect
    from cli.json_form import to_json
    from cli.render import peers_table

    async with connect(settings) as client:
        request.peer_id = (await client.find_peer(text)).peer_id
        if question:
            confirm(settings, question.format(request.peer_id))
        peer = (await client.call(procedure, request)).peer
    emit(settings, to_json(peer), lambda: peers_table([peer]))
