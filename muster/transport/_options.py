"""What we set of gRPC's channel arguments, and why."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from muster.transport.base import MESSAGE_BYTES_MAX

_METADATA_BYTES_MAX = 16 << 10  # an error's detail travels as metadata


_STREAMS_OF_CONNECTION_MAX = 128  # a peer needs three; more calls of one caller wait on its side
_CONNECTIONS_MAX = 32_768  # a peer has two
_DESCRIPTORS_KEPT = 256  # for database, blobs, spool, workers and logs


@dataclass(frozen=True, kw_only=True)
class Keepalive:
    """How soon a frozen or unplugged other side is noticed: after `idle_seconds + timeout_seconds` at the
    latest.

    Lower finds it sooner and costs pings; a server must allow the rate (it does, down to half of its own).
    """

    idle_seconds: float = 20.0
    timeout_seconds: float = 10.0


def common_options(keepalive: Keepalive) -> list[tuple[str, int]]:
    """Options of both channels and servers."""
    return [
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_metadata_size", _METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", 2 * _METADATA_BYTES_MAX),
        ("grpc.keepalive_time_ms", round(keepalive.idle_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(keepalive.timeout_seconds * 1000)),
        # The timeout that decides: without it a frozen side is noticed after a minute, whatever keepalive
        # says.
        ("grpc.http2.ping_timeout_ms", round(keepalive.timeout_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def server_options(keepalive: Keepalive, request_bytes_max: int = MESSAGE_BYTES_MAX) -> list[tuple[str, int]]:
    """`request_bytes_max`: of the method that takes the largest requests; the core has one limit for all."""
    return [
        *common_options(keepalive),
        ("grpc.max_receive_message_length", request_bytes_max),
        ("grpc.max_concurrent_streams", _STREAMS_OF_CONNECTION_MAX),
        # Connections take file descriptors, which the disk needs too.
        ("grpc.max_allowed_incoming_connections", _connections_max()),
        ("grpc.server_handshake_timeout_ms", 10_000),  # a connection that says nothing; default 120 s
        # A connection without a call is closed; a caller that comes back makes another, unnoticed.
        ("grpc.max_connection_idle_ms", 120_000),
        ("grpc.so_reuseport", 0),  # else a second server takes half of the first one's connections, silently
        # Pings more frequent than this are strikes, and strikes are punished with GOAWAY; the default of 300 s would
        # punish ours. A caller with a shorter keepalive than ours costs little and is no reason to end a session.
        # (The core ignores arguments that it does not know, and the first is spelt otherwise in most of what is
        # written about it.)
        ("grpc.http2.min_ping_interval_without_data_ms", round(keepalive.idle_seconds * 500)),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def channel_options(keepalive: Keepalive) -> list[tuple[str, int]]:
    """Options of a channel."""
    return [
        *common_options(keepalive),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        # Channels to one address share one connection by default, and then bulk would delay control.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),  # loopback only; a proxy from the environment has no place here
        # A killed process is back within seconds; gRPC's default backoff grows to two minutes. `min` is also
        # the time that one attempt to connect may take.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 2000),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]


def _connections_max() -> int:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return _CONNECTIONS_MAX
    return min(_CONNECTIONS_MAX, max(descriptors - _DESCRIPTORS_KEPT, descriptors // 2))
