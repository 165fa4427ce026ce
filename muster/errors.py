"""Every error that a person can meet.

    MusterError                   exit  gRPC status
    ├── UsageError                2     INVALID_ARGUMENT     a command or a call is malformed
    ├── ConfigError               6     INVALID_ARGUMENT     a node config, policy or run spec is wrong
    ├── AuthenticationError       4     UNAUTHENTICATED      the caller is not who it says
    ├── NotAllowedError           4     PERMISSION_DENIED    the caller may not do this
    ├── UnreachableError          5     UNAVAILABLE          the other side does not answer
    ├── DeadlineError             1     DEADLINE_EXCEEDED    the other side did not answer in time
    ├── VersionError              7     FAILED_PRECONDITION  protocol, schema or plan versions differ
    ├── NotFoundError             1     NOT_FOUND            no such run, round, peer, model
    ├── StateError                1     FAILED_PRECONDITION  not possible in the present state
    ├── TransferError             1     DATA_LOSS            bytes were lost or changed on the way
    │   └── OffsetError           1     OUT_OF_RANGE         a chunk is not where the receiver stands
    ├── UpdateRejected            1     INVALID_ARGUMENT     an update did not pass admission
    ├── StorageError              1     RESOURCE_EXHAUSTED   disk or database cannot take more
    ├── TaskError                 1     ABORTED              a task's own code failed, hung or ran out of memory
    ├── RunUnsuccessful           3     ABORTED              a run that was waited for did not finish
    └── InternalError             1     INTERNAL             a defect of Muster itself

An error has a stable `id` ("update.not_finite"), a message (what, where), a cause (why) and a fix (what to type).
It crosses the wire whole (`muster.transport`), so a handler raises it and a caller catches the same class.
"""

from __future__ import annotations

from typing import ClassVar


class MusterError(Exception):
    """The root. `fields` are further values for logs and JSON; all are strings."""

    exit_code: ClassVar[int] = 1
    status: ClassVar[str] = "INTERNAL"

    def __init__(self, id: str, message: str, *, cause: str = "", fix: str = "", **fields: object) -> None:
        super().__init__(message)
        self.id = id
        self.message = message
        self.cause = cause
        self.fix = fix
        self.fields: dict[str, str] = {key: str(value) for key, value in fields.items()}

    def __str__(self) -> str:
        parts = [f"[{self.id}] {self.message}"]
        if self.cause:
            parts.append(f"cause: {self.cause}")
        if self.fix:
            parts.append(f"fix: {self.fix}")
        return "; ".join(parts)


class UsageError(MusterError):
    """A call or a command was made wrongly."""

    exit_code = 2
    status = "INVALID_ARGUMENT"


class ConfigError(MusterError):
    """A setting, a run spec or an installation is wrong."""

    exit_code = 6
    status = "INVALID_ARGUMENT"


class AuthenticationError(MusterError):
    """The caller is not who it says it is."""

    exit_code = 4
    status = "UNAUTHENTICATED"


class NotAllowedError(MusterError):
    """A policy forbids it."""

    exit_code = 4
    status = "PERMISSION_DENIED"


class UnreachableError(MusterError):
    """The other side cannot be reached, or has no room now; trying again may help."""

    exit_code = 5
    status = "UNAVAILABLE"


class DeadlineError(MusterError):
    """It took longer than allowed."""

    status = "DEADLINE_EXCEEDED"


class VersionError(MusterError):
    """The two sides speak different protocols."""

    exit_code = 7
    status = "FAILED_PRECONDITION"


class NotFoundError(MusterError):
    """What was named does not exist."""

    status = "NOT_FOUND"


class StateError(MusterError):
    """It cannot be done in the present state."""

    status = "FAILED_PRECONDITION"


class TransferError(MusterError):
    """Bytes arrived damaged, or are not those that were announced."""

    status = "DATA_LOSS"


class OffsetError(TransferError):
    """`fields["offset"]` tells where the receiver stands."""

    status = "OUT_OF_RANGE"


class UpdateRejected(MusterError):
    """Admission refuses an update; see `exchange.admission`."""

    status = "INVALID_ARGUMENT"


class StorageError(MusterError):
    """A disk or a database refuses."""

    status = "RESOURCE_EXHAUSTED"


class TaskError(MusterError):
    """`fields["traceback"]` holds the task's own traceback where there is one."""

    status = "ABORTED"


class RunUnsuccessful(MusterError):
    """A run that was waited for has not finished."""

    exit_code = 3
    status = "ABORTED"


class InternalError(MusterError):
    """A defect of Muster."""


ERROR_CLASSES: dict[str, type[MusterError]] = {
    cls.__name__: cls
    for cls in (
        UsageError, ConfigError, AuthenticationError, NotAllowedError, UnreachableError, DeadlineError,
        VersionError, NotFoundError, StateError, TransferError, OffsetError, UpdateRejected, StorageError,
        TaskError, RunUnsuccessful, InternalError,
    )
}  # fmt: skip
