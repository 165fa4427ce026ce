"""How a `MusterError` crosses the wire: whole, and as the same class on the other side.

It travels as `google.rpc.Status` (trailing metadata `grpc-status-details-bin`) whose one detail is a
`muster.v1.ErrorDetail`. What is not a `MusterError` is a defect: it is logged here with its traceback, and
the caller is told no more than a reference to that log line, since an unforeseen exception may carry anything
in its text.
"""

from __future__ import annotations

import traceback

import structlog
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2

from muster.errors import ERROR_CLASSES, InternalError, MusterError
from muster.files.digests import digest_bytes
from muster.texts import one_line, storable
from protos.v1.errors_pb2 import ErrorDetail

log = structlog.get_logger()

# Metadata has a limit (16 KiB, set in `_options`), and an error that exceeds it would arrive as nothing at
# all.
DETAIL_BYTES_MAX = 8 << 10
_CUT = " […]"


def pack_error(error: MusterError) -> ErrorDetail:
    """At most `DETAIL_BYTES_MAX` bytes; the longest texts are cut first."""
    kinds = (cls.__name__ for cls in type(error).__mro__)
    detail = ErrorDetail(
        id=storable(error.id),
        message=storable(error.message),
        cause=storable(error.cause),
        fix=storable(error.fix),
        fields={storable(name): storable(text) for name, text in error.fields.items()},
        kind=next((kind for kind in kinds if kind in ERROR_CLASSES), ""),
    )
    while detail.ByteSize() > DETAIL_BYTES_MAX:
        _cut_longest(detail)
    return detail


def unpack_error(detail: ErrorDetail) -> MusterError:
    """A kind that this version does not know becomes a plain `MusterError` with the same id and texts."""
    cls = ERROR_CLASSES.get(detail.kind, MusterError)
    error = cls(detail.id, detail.message, cause=detail.cause, fix=detail.fix)
    error.fields = dict(detail.fields)
    return error


def pack_status(error: MusterError) -> status_pb2.Status:
    """gRPC's status of an error, with the whole error in its details."""
    status = status_pb2.Status(
        code=code_pb2.Code.Value(error.status), message=one_line(f"[{error.id}] {error.message}", 512)
    )
    status.details.add().Pack(pack_error(error))
    return status


def unpack_status(body: bytes) -> MusterError | None:
    """The error inside a serialised `google.rpc.Status`; None where there is none of ours."""
    detail = ErrorDetail()
    try:
        status = status_pb2.Status.FromString(body)
        found = any(item.Unpack(detail) for item in status.details)
    except DecodeError:
        return None
    return unpack_error(detail) if found else None


def as_muster_error(error: Exception, where: str) -> MusterError:
    """`error` itself, or an `InternalError` in its place whose traceback is in this side's log only."""
    if isinstance(error, MusterError):
        return error
    told = "".join(traceback.format_exception(error))
    reference = digest_bytes(told.encode())[:12]  # the same defect at the same place has the same one
    log.error("transport.handler_failed", method=where, reference=reference, exc_info=error)
    return InternalError(
        "internal.error",
        f"{where} failed on the other side",
        cause=f"a defect of Muster; the log there has the traceback under reference {reference}",
        fix="report it with that traceback",
        reference=reference,
    )


def _cut_longest(detail: ErrorDetail) -> None:
    texts = {name: getattr(detail, name) for name in ("message", "cause", "fix")}
    name = max(texts, key=lambda key: len(texts[key]))
    key = max(detail.fields, key=lambda key: len(key) + len(detail.fields[key]), default=None)
    if key is None or len(key) + len(detail.fields[key]) <= len(texts[name]):
        setattr(detail, name, _half(texts[name]))
    elif len(detail.fields[key]) > len(_CUT):
        detail.fields[key] = _half(detail.fields[key])
    else:
        del detail.fields[key]


def _half(text: str) -> str:
    return text.removesuffix(_CUT)[: len(text) // 2 - len(_CUT)] + _CUT if len(text) > 4 * len(_CUT) else ""
