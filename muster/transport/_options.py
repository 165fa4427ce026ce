"""What we set of gRPC's channel arguments, and why."""

from __future__ import annotations

from dataclasses import dataclass

MESSAGE_BYTES_MAX = 4 << 20  # a chunk has 1 MiB; gRPC's own default, stated for both directions
_METADATA_BYTES_MAX = 16 << 10  # an error's detail travels as metadata


@dataclass(frozen=True, kw_only=True)
class Keepalive:
    """How soon a frozen or unplugged other side is noticed: after `idle_seconds + timeout_seconds` at the
    latest.

    Lower finds it sooner and costs pings; a server must allow the rate (it does, down to half of its own).
    """

    idle_seconds: float = 20.0
    timeout_seconds: float = 10.0


def common_options(keepalive: Keepalive) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
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


def server_options(keepalive: Keepalive) -> list[tuple[str, int]]:
    return [
        *common_options(keepalive),
        ("grpc.so_reuseport", 0),  # else a second server takes half of the first one's connections, silently
        # Pings more frequent than this are punished with GOAWAY; the default of 300 s would punish ours.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", round(keepalive.idle_seconds * 500)),
    ]


def channel_options(keepalive: Keepalive) -> list[tuple[str, int]]:
    return [
        *common_options(keepalive),
        # Channels to one address share one connection by default, and then bulk would delay control.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),  # loopback only; a proxy from the environment has no place here
        # A killed process is back within seconds; gRPC's default backoff grows to two minutes. `min` is also
        # the time that one attempt to connect may take.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 2000),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]
