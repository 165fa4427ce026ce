"""The standard health check, as probes ask for it: a call like any other, within the same limits."""

from __future__ import annotations

from collections.abc import Iterable

from grpc_health.v1 import health_pb2 as pb

from muster.errors import NotFoundError
from muster.transport.base import CallContext, Method, Route
from muster.transport.identity import EVERYBODY

CHECK: Method[pb.HealthCheckRequest, pb.HealthCheckResponse] = Method(
    service="grpc.health.v1.Health",
    name="Check",
    request=pb.HealthCheckRequest,
    response=pb.HealthCheckResponse,
    request_bytes_max=1 << 10,
    any_caller=True,
)


class Health:
    """gRPC's health service."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = {"", *services}
        self.stopping = False

    def route(self) -> Route:
        return Route(method=CHECK, handle=self._check, allows=EVERYBODY)

    async def _check(self, request: pb.HealthCheckRequest, context: CallContext) -> pb.HealthCheckResponse:
        if request.service not in self._services:
            raise NotFoundError("transport.unknown_service", f"no service {request.service[:100]!r} here")
        status = pb.HealthCheckResponse.NOT_SERVING if self.stopping else pb.HealthCheckResponse.SERVING
        return pb.HealthCheckResponse(status=status)
