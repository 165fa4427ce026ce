"""Update bodies between the last chunk and the commit."""

from __future__ import annotations

from muster.transfer.partial import PartialBody


class CompletedUploads:
    """Bodies that have come whole and wait for their commit, which follows at once as a rule: kept open, so that
    they need not be read and hashed again. One that is pushed out is only reopened."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bodies: dict[str, PartialBody] = {}

    def put(self, assignment_id: str, body: PartialBody) -> None:
        self.drop(assignment_id)
        self._bodies[assignment_id] = body
        while len(self._bodies) > self._most:
            self.drop(next(iter(self._bodies)))

    def take(self, assignment_id: str) -> PartialBody | None:
        return self._bodies.pop(assignment_id, None)

    def drop(self, assignment_id: str) -> None:
        body = self.take(assignment_id)
        if body is not None:
            body.close()
