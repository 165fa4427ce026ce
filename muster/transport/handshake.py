"""The version handshake: every call tells its protocol, and a server refuses any other than its own."""

from __future__ import annotations

from collections.abc import Mapping

from muster.errors import VersionError
from muster.runtime.version import muster_version
from muster.wire import PROTOCOL_VERSION

PROTOCOL_HEADER = "muster-protocol"
VERSION_HEADER = "muster-version"


def handshake_headers(protocol: int = PROTOCOL_VERSION) -> dict[str, str]:
    """Metadata that tell the protocol and the version."""
    return {PROTOCOL_HEADER: str(protocol), VERSION_HEADER: muster_version()}


def refuse_version(headers: Mapping[str, str], protocol: int = PROTOCOL_VERSION) -> VersionError | None:
    """None if the caller speaks `protocol`, else the error that tells which of the two to upgrade."""
    spoken = headers.get(PROTOCOL_HEADER, "")
    if spoken == str(protocol):
        return None
    caller = f"Muster {headers.get(VERSION_HEADER, 'of an unknown version')}"
    here = f"Muster {muster_version()}"
    fields = {"protocol_caller": spoken, "protocol_server": protocol}
    # The header is whatever the caller chose to send.
    if not (spoken.isascii() and spoken.isdigit() and len(spoken) <= 9):
        return VersionError(
            "transport.protocol_mismatch",
            f"the caller does not say that it speaks Muster's protocol {protocol}",
            cause=f"every call carries the header {PROTOCOL_HEADER}; this one has {spoken[:32]!r}",
            fix="call through Muster, or add the header",
            **fields,
        )
    caller_is_older = int(spoken) < protocol
    return VersionError(
        "transport.protocol_mismatch",
        f"the caller ({caller}) speaks protocol {spoken}, the server ({here}) speaks protocol {protocol}",
        cause="a side of another protocol would misread the messages",
        fix=f"upgrade Muster on the {'calling' if caller_is_older else 'serving'} side",
        **fields,
    )
