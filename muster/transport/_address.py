"""Addresses are `host:port`, and for now only this machine's own."""

from __future__ import annotations

import ipaddress

from muster.errors import ConfigError


def loopback_address(address: str) -> tuple[str, int]:
    """`(host, port)`; `localhost` becomes 127.0.0.1. Raises `ConfigError` `transport.address_invalid` for
    what is no `host:port`, `transport.address_not_loopback` for any host that is not this machine's own."""
    host, colon, port_text = address.rpartition(":")
    if (
        "://" in address
        or not colon
        or not (port_text.isascii() and port_text.isdigit())
        or int(port_text) > 65535
    ):
        raise ConfigError(
            "transport.address_invalid", f"{address!r} is not HOST:PORT", fix='write it as "127.0.0.1:7070"'
        )
    host = host.removeprefix("[").removesuffix("]")
    if not _is_loopback(host):
        raise ConfigError(
            "transport.address_not_loopback",
            f"{address!r} is not a loopback address",
            cause="connections have no identities and no encryption yet, so they must not leave the machine",
            fix="use 127.0.0.1, [::1] or localhost, over a tunnel (ssh -L) if the other side is elsewhere",
        )
    return ("127.0.0.1" if host == "localhost" else host), int(port_text)


def join_address(host: str, port: int) -> str:
    """ "host:port", an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
