"""How many may enrol: it asks for nothing yet, so that names must not be had without end."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from muster.errors import StorageError, UnreachableError

ADDRESSES_MAX = 4096  # that are remembered; the one that enrolled longest ago is forgotten


@dataclass(frozen=True, kw_only=True)
class Rate:
    """`burst` at once, then `per_second`."""

    burst: float
    per_second: float


@dataclass(kw_only=True)
class _Bucket:
    rate: Rate
    left: float
    at: float

    def refill(self, now: float) -> None:
        self.left = min(self.rate.burst, self.left + (now - self.at) * self.rate.per_second)
        self.at = now


class EnrolmentGate:
    """For new names, and for known ones that tell something new of themselves: who is enrolled may say so as often as
    it likes, and costs nothing."""

    def __init__(
        self,
        *,
        peers_max: int,
        overall: Rate = Rate(burst=2000, per_second=50),  # frozen
        each_address: Rate = Rate(burst=1000, per_second=20),
        each_name: Rate = Rate(burst=20, per_second=0.1),
    ) -> None:
        self._peers_max = peers_max
        self._each_address = each_address
        self._each_name = each_name
        self._names: OrderedDict[str, _Bucket] = OrderedDict()
        self._overall = _Bucket(rate=overall, left=overall.burst, at=0.0)
        self._addresses: OrderedDict[str, _Bucket] = OrderedDict()

    def check(self, address: str, peers: int, now: float) -> None:
        """Counts one more name. Raises `StorageError` "peer.too_many", `UnreachableError` "peer.enrolled_too_fast",
        both of which a peer takes as a reason to try again later."""
        if peers >= self._peers_max:
            raise StorageError(
                "peer.too_many",
                f"the coordinator knows {peers} peers, as many as it may",
                cause=f"coordinator.peers_max is {self._peers_max}",
                fix="raise it, or free a name: muster peer remove NAME; names that nobody came for are freed after an "
                "hour, those of lost peers after a day. A peer tries again by itself",
            )
        own = self._of(address, now)
        for bucket, who in ((self._overall, "all"), (own, "this address")):
            bucket.refill(now)
            if bucket.left < 1:
                raise UnreachableError(
                    "peer.enrolled_too_fast",
                    f"too many new names enrol at once from {who}",
                    cause=f"{bucket.rate.per_second:g} a second are taken, after a burst of {bucket.rate.burst:g}",
                    fix="nothing: a peer tries again by itself",
                )
        self._overall.left -= 1
        own.left -= 1

    def check_again(self, name: str, now: float) -> None:
        """Counts one more change of what a known name tells of itself, as at each start of its daemon. Raises
        `UnreachableError` "peer.enrolled_too_fast"."""
        bucket = self._names.pop(name, None) or _Bucket(
            rate=self._each_name, left=self._each_name.burst, at=now
        )
        self._names[name] = bucket
        while len(self._names) > 2 * self._peers_max:
            self._names.popitem(last=False)
        bucket.refill(now)
        if bucket.left < 1:
            raise UnreachableError(
                "peer.enrolled_too_fast",
                f"{name!r} starts anew too often",
                cause=f"one start in {1 / bucket.rate.per_second:.0f} s is taken, after a burst of "
                f"{bucket.rate.burst:g}",
                fix="nothing: a peer tries again by itself; if it lasts, see why this peer ends so often",
            )
        bucket.left -= 1

    def _of(self, address: str, now: float) -> _Bucket:
        host = address.rpartition(":")[0]
        bucket = self._addresses.pop(host, None)
        if bucket is None:
            bucket = _Bucket(rate=self._each_address, left=self._each_address.burst, at=now)
        self._addresses[host] = bucket
        while len(self._addresses) > ADDRESSES_MAX:
            self._addresses.popitem(last=False)
        return bucket
