"""Commands on peers: drain, quarantine, release, remove."""

from __future__ import annotations

from coordinator.membership import detector
from coordinator.membership.members import MemberBook
from coordinator.rpc.listing import Listing
from coordinator.rpc.offers import SessionBook
from muster.texts import one_line
from muster.transport.base import CallContext
from protos.v1 import admin_pb2 as pb


class PeerCommands:
    """The admin service's methods about peers."""

    def __init__(self, *, members: MemberBook, sessions: SessionBook, listing: Listing) -> None:
        self._members = members
        self._sessions = sessions
        self._listing = listing

    async def drain_peer(self, request: pb.DrainPeerRequest, context: CallContext) -> pb.DrainPeerResponse:
        reason, actor = one_line(request.reason), context.identity.actor
        await self._members.command(detector.Drain(peer_id=request.peer_id, reason=reason, actor=actor))
        return pb.DrainPeerResponse(peer=await self._listing.peer(request.peer_id))

    async def quarantine_peer(
        self, request: pb.QuarantinePeerRequest, context: CallContext
    ) -> pb.QuarantinePeerResponse:
        reason, actor = one_line(request.reason), context.identity.actor
        await self._members.command(detector.Quarantine(peer_id=request.peer_id, reason=reason, actor=actor))
        return pb.QuarantinePeerResponse(peer=await self._listing.peer(request.peer_id))

    async def release_peer(
        self, request: pb.ReleasePeerRequest, context: CallContext
    ) -> pb.ReleasePeerResponse:
        await self._members.command(detector.Release(peer_id=request.peer_id, actor=context.identity.actor))
        return pb.ReleasePeerResponse(peer=await self._listing.peer(request.peer_id))

    async def remove_peer(self, request: pb.RemovePeerRequest, context: CallContext) -> pb.RemovePeerResponse:
        reason, actor = one_line(request.reason), context.identity.actor
        told = await self._members.command(
            detector.Remove(peer_id=request.peer_id, reason=reason, actor=actor)
        )
        session = self._sessions.get(request.peer_id)
        if session is not None:
            session.close(told, reconnect=False)
        return pb.RemovePeerResponse(peer=await self._listing.peer(request.peer_id))
