"""Every method says who may call it, and the dispatcher sees to it."""

from __future__ import annotations

from typing import Any

import pytest

from muster.errors import MusterError, NotAllowedError
from muster.transport import MemoryTransport
from muster.transport.base import CallContext, Route
from muster.transport.identity import ADMINS, ANONYMOUS, EVERYBODY, PEERS, Identity, Role
from muster.wire import ADMIN, ENROL, METHODS, SESSION
from protos.v1 import admin_pb2

ALLOWED = {
    "/muster.v1.MembershipService/Enrol": EVERYBODY,
    "/muster.v1.MembershipService/Session": PEERS,
    "/muster.v1.ModelsService/PlanModel": PEERS,
    "/muster.v1.ModelsService/FetchModel": PEERS,
    "/muster.v1.ModelsService/RestoreModel": PEERS,
    "/muster.v1.UpdatesService/BeginUpdate": PEERS,
    "/muster.v1.UpdatesService/UploadUpdate": PEERS,
    "/muster.v1.UpdatesService/GetUpdateStatus": PEERS,
    "/muster.v1.UpdatesService/CommitUpdate": PEERS,
    **{method.path: ADMINS for method in ADMIN.values()},
}


def test_every_method_of_the_contract_has_an_entry() -> None:
    assert set(ALLOWED) == set(METHODS)


async def test_a_coordinator_serves_every_method_to_whom_it_is_for(stage: Any) -> None:
    routes = {route.method.path: route for route in stage.running.coordinator.routes}
    assert {path: route.allows for path, route in routes.items()} == ALLOWED
    unidentified = {path for path, route in routes.items() if route.identify is None}
    assert unidentified == set()


@pytest.mark.parametrize("path", sorted(ALLOWED))
async def test_who_says_nothing_of_itself_gets_no_further(stage: Any, path: str) -> None:
    """An empty message carries no credentials."""
    method = METHODS[path]
    if ALLOWED[path] == ADMINS or method is ENROL:
        return
    channel = stage.channel()
    with pytest.raises(MusterError) as caught:
        if method.client_streams or method.server_streams:
            await anext(channel.stream(method, _one(method.request()), timeout_seconds=10))
        else:
            await channel.unary(method, method.request(), timeout_seconds=10)
    assert caught.value.id in {"peer.unknown", "session.no_hello", "transfer.no_header", "update.no_header"}


async def _one(message: Any) -> Any:
    yield message


class Served:
    def __init__(self) -> None:
        self.seen: list[Identity] = []

    async def status(self, _request: Any, context: CallContext) -> admin_pb2.GetStatusResponse:
        self.seen.append(context.identity)
        return admin_pb2.GetStatusResponse()


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(
    "allows", [frozenset[Role](), PEERS, ADMINS, EVERYBODY], ids=lambda a: "+".join(sorted(a))
)
async def test_only_allowed_roles_reach_the_handler_which_is_told_who_calls(
    role: Role, allows: frozenset[Role]
) -> None:
    served, transport = Served(), MemoryTransport()
    who = Identity(role=role, name="ward" if role is Role.PEER else "")
    method = ADMIN["GetStatus"]
    route = Route(method=method, handle=served.status, allows=allows, identify=lambda _: who)
    server = await transport.serve("c:0", [route])
    channel = transport.connect(server.address)
    call = channel.unary(method, admin_pb2.GetStatusRequest(), timeout_seconds=10)
    if role in allows:
        await call
        assert served.seen == [who]
    else:
        with pytest.raises(NotAllowedError, match=f"role {role}") as caught:
            await call
        assert caught.value.id == "transport.not_allowed"
        assert served.seen == []
    await channel.close()
    await server.stop(0)


async def test_without_an_entry_nobody_may_call() -> None:
    served, transport = Served(), MemoryTransport()
    method = ADMIN["GetStatus"]
    server = await transport.serve("c:0", [Route(method=method, handle=served.status)])
    channel = transport.connect(server.address)
    with pytest.raises(NotAllowedError) as caught:
        await channel.unary(method, admin_pb2.GetStatusRequest(), timeout_seconds=10)
    assert caught.value.cause == "it may be called by: nobody"
    await channel.close()
    await server.stop(0)


async def test_a_session_without_a_word_is_refused(stage: Any) -> None:
    async def nothing() -> Any:
        for message in ():
            yield message

    with pytest.raises(MusterError) as caught:
        await anext(stage.channel().stream(SESSION, nothing(), timeout_seconds=10))
    assert caught.value.id == "transport.not_allowed"


def test_events_name_a_caller_by_role_and_name() -> None:
    assert Identity.peer("site-0").actor == "peer:site-0"
    assert Identity(role=Role.ADMIN).actor == "admin"
    assert ANONYMOUS.actor == "anonymous"
