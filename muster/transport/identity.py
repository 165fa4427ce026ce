"""Who calls, and in which role: what a handler knows of its caller, and what a route allows.

An identity is found from a call's first message (`Route.identify`); a route names the roles that may call it, and by
default allows nobody. How a caller proves who it is, is a matter of whoever finds the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Role(StrEnum):
    ANONYMOUS = "anonymous"  # has not said who it is
    PEER = "peer"
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """`name` is what the caller has proved to be; "" where it has proved nothing."""

    role: Role
    name: str = ""

    @classmethod
    def peer(cls, name: str) -> Self:
        return cls(role=Role.PEER, name=name)

    @property
    def actor(self) -> str:
        """As events name who caused them: "peer:site-0", "admin"."""
        return f"{self.role}:{self.name}" if self.name else str(self.role)


ANONYMOUS = Identity(role=Role.ANONYMOUS)
ADMIN = Identity(role=Role.ADMIN)

PEERS = frozenset({Role.PEER})
ADMINS = frozenset({Role.ADMIN})
EVERYBODY = frozenset(Role)
