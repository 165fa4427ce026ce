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
_BULK = {"FetchModel", "RestoreModel", "UploadUpdate", "PullModel"}
_REQUEST_BYTES_MAX = 64 << 10
_LARGER_REQUESTS = {
    "Session": 1 << 20,  # a hello names all that is held, a report has a traceback
    "SubmitRun": 1 << 20,  # a run spec, twice
    "RestoreModel": (1 << 20) + (64 << 10),
    "UploadUpdate": (1 << 20) + (64 << 10),  # a chunk and what is around it
}


def _methods() -> dict[str, Method[Any, Any]]:
    found: dict[str, Method[Any, Any]] = {}
    for service_name, module in _MODULES.items():
        for method in module.DESCRIPTOR.services_by_name[service_name].methods:
            found[method.name] = Method(
                service=f"muster.v1.{service_name}",
                name=method.name,
                request=getattr(module, method.input_type.name),
                response=getattr(module, method.output_type.name),
                client_streams=method.client_streaming,
                server_streams=method.server_streaming,
                bulk=method.name in _BULK,
                request_bytes_max=_LARGER_REQUESTS.get(method.name, _REQUEST_BYTES_MAX),
            )
    return found


METHODS = _methods()

ENROL: Method[membership_pb2.EnrolRequest, membership_pb2.EnrolResponse] = METHODS["Enrol"]
SESSION: Method[membership_pb2.SessionRequest, membership_pb2.SessionResponse] = METHODS["Session"]
PLAN_MODEL: Method[models_pb2.PlanModelRequest, models_pb2.PlanModelResponse] = METHODS["PlanModel"]
FETCH_MODEL: Method[models_pb2.FetchModelRequest, models_pb2.FetchModelResponse] = METHODS["FetchModel"]
RESTORE_MODEL: Method[models_pb2.RestoreModelRequest, models_pb2.RestoreModelResponse] = METHODS[
    "RestoreModel"
]
BEGIN_UPDATE: Method[updates_pb2.BeginUpdateRequest, updates_pb2.BeginUpdateResponse] = METHODS["BeginUpdate"]
UPLOAD_UPDATE: Method[updates_pb2.UploadUpdateRequest, updates_pb2.UploadUpdateResponse] = METHODS[
    "UploadUpdate"
]
GET_UPDATE_STATUS: Method[updates_pb2.GetUpdateStatusRequest, updates_pb2.GetUpdateStatusResponse] = METHODS[
    "GetUpdateStatus"
]
COMMIT_UPDATE: Method[updates_pb2.CommitUpdateRequest, updates_pb2.CommitUpdateResponse] = METHODS[
    "CommitUpdate"
]
