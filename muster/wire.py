"""Every remote procedure of the wire contract, typed. The protobuf files are in `protos/v1`."""

from __future__ import annotations

from typing import Any

from muster.transport.base import Method
from protos.v1 import admin_pb2, membership_pb2, models_pb2, updates_pb2

PROTOCOL_VERSION = 2  # raised with every change that an older side would misread

_MODULES = {
    "MembershipService": membership_pb2,
    "ModelsService": models_pb2,
    "UpdatesService": updates_pb2,
    "AdminService": admin_pb2,
}
_BULK = {
    "/muster.v1.ModelsService/FetchModel",
    "/muster.v1.ModelsService/RestoreModel",
    "/muster.v1.UpdatesService/UploadUpdate",
    "/muster.v1.AdminService/PullModel",
}
_REQUEST_BYTES_MAX = 64 << 10
_LARGER_REQUESTS = {
    "/muster.v1.MembershipService/Session": 1
    << 20,  # a hello names all that is held, a report has a traceback
    "/muster.v1.AdminService/SubmitRun": 1 << 20,  # a run spec, twice
    "/muster.v1.ModelsService/RestoreModel": (1 << 20) + (64 << 10),
    "/muster.v1.UpdatesService/UploadUpdate": (1 << 20) + (64 << 10),  # a chunk and what is around it
}


def _methods() -> dict[str, Method[Any, Any]]:
    found: dict[str, Method[Any, Any]] = {}
    for service_name, module in _MODULES.items():
        for method in module.DESCRIPTOR.services_by_name[service_name].methods:
            path = f"/muster.v1.{service_name}/{method.name}"
            found[path] = Method(
                service=f"muster.v1.{service_name}",
                name=method.name,
                request=getattr(module, method.input_type.name),
                response=getattr(module, method.output_type.name),
                client_streams=method.client_streaming,
                server_streams=method.server_streaming,
                bulk=path in _BULK,
                request_bytes_max=_LARGER_REQUESTS.get(path, _REQUEST_BYTES_MAX),
            )
    return found


METHODS = _methods()  # by path, so that two services may have methods of one name


def methods_of(service: str) -> dict[str, Method[Any, Any]]:
    """The methods of one service ("AdminService") by name."""
    return {each.name: each for each in METHODS.values() if each.service == f"muster.v1.{service}"}


ADMIN = methods_of("AdminService")
_MEMBERSHIP, _MODELS, _UPDATES = map(methods_of, ("MembershipService", "ModelsService", "UpdatesService"))

ENROL: Method[membership_pb2.EnrolRequest, membership_pb2.EnrolResponse] = _MEMBERSHIP["Enrol"]
SESSION: Method[membership_pb2.SessionRequest, membership_pb2.SessionResponse] = _MEMBERSHIP["Session"]
PLAN_MODEL: Method[models_pb2.PlanModelRequest, models_pb2.PlanModelResponse] = _MODELS["PlanModel"]
FETCH_MODEL: Method[models_pb2.FetchModelRequest, models_pb2.FetchModelResponse] = _MODELS["FetchModel"]
RESTORE_MODEL: Method[models_pb2.RestoreModelRequest, models_pb2.RestoreModelResponse] = _MODELS[
    "RestoreModel"
]
BEGIN_UPDATE: Method[updates_pb2.BeginUpdateRequest, updates_pb2.BeginUpdateResponse] = _UPDATES[
    "BeginUpdate"
]
UPLOAD_UPDATE: Method[updates_pb2.UploadUpdateRequest, updates_pb2.UploadUpdateResponse] = _UPDATES[
    "UploadUpdate"
]
GET_UPDATE_STATUS: Method[updates_pb2.GetUpdateStatusRequest, updates_pb2.GetUpdateStatusResponse] = _UPDATES[
    "GetUpdateStatus"
]
COMMIT_UPDATE: Method[updates_pb2.CommitUpdateRequest, updates_pb2.CommitUpdateResponse] = _UPDATES[
    "CommitUpdate"
]
