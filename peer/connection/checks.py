"""What a coordinator says, checked before it is acted upon, as the coordinator checks what a peer says.

A coordinator may be broken, of another version, or hostile. What makes no sense is refused by name, and the peer stays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from muster.errors import MusterError, TransferError, UsageError
from muster.files.digests import checked_digest
from muster.work import PARAMS_BYTES_MAX
from protos.v1.membership_pb2 import Assignment, Welcome, Work
from protos.v1.models_pb2 import PlanModelResponse

HEARTBEAT_SECONDS_MIN, HEARTBEAT_SECONDS_MAX = 0.01, 3600.0
DEADLINE_SECONDS_MAX = 366 * 24 * 3600.0
ID_CHARS_MAX = 128  # of a run; an assignment's has the run's and the peer's in it
ASSIGNMENT_ID_CHARS_MAX = 256
DIGEST_CHARS_MAX = 128
SPEC_CHARS_MAX = 1 << 20
MODEL_BYTES_MAX = 1 << 46
COHORT_MAX = 1_000_000
GROUPS_MAX = 64
DELTAS_MAX = 64
BESIDE_BYTES_MIN = 1 << 20  # what goes with a version may have so much, however small the version


def heartbeat_seconds(welcome: Welcome) -> float:
    """Raises `TransferError` "session.bad_welcome", after which the peer tries again later."""
    seconds = welcome.heartbeat_seconds
    if not HEARTBEAT_SECONDS_MIN <= seconds <= HEARTBEAT_SECONDS_MAX:  # NaN is nowhere
        raise TransferError(
            "session.bad_welcome",
            f"the coordinator wants a heartbeat every {seconds!r} s",
            cause=f"it has to be {HEARTBEAT_SECONDS_MIN} to {HEARTBEAT_SECONDS_MAX:.0f} s",
            fix="check what coordinator this is; the peer tries again by itself",
        )
    return seconds


def named(offer: Assignment) -> bool:
    """Whether an offer can be answered at all."""
    return 0 < len(offer.assignment_id) <= ASSIGNMENT_ID_CHARS_MAX


def offer_refusal(offer: Assignment, name: str) -> MusterError | None:
    """Why the peer `name` does not take an offer whose values make no sense, None if they do."""
    wrong = next(_mistakes(offer, name), "")
    if not wrong:
        return None
    return UsageError(
        "peer.bad_offer",
        f"this peer takes no such offer: {wrong}",
        cause="the coordinator is broken, of another version, or not what it seems",
        fix="run the same version of Muster on coordinator and peer",
    )


def _mistakes(offer: Assignment, name: str) -> Iterator[str]:
    if not named(offer):
        yield f"its id has {len(offer.assignment_id)} characters, not 1 to {ASSIGNMENT_ID_CHARS_MAX}"
    if not 0 < len(offer.run_id) <= ID_CHARS_MAX:
        yield f"its run_id has {len(offer.run_id)} characters, not 1 to {ID_CHARS_MAX}"
    if (other := _peer_of(offer)) not in (None, name):
        yield f"it is for {other!r}"
    work = offer.work
    texts = {"role": work.role, "base": work.base.digest, "layout": work.base.layout_digest}
    for what, text in texts.items():
        if not 0 < len(text) <= DIGEST_CHARS_MAX:
            yield f"its {what} has {len(text)} characters, not 1 to {DIGEST_CHARS_MAX}"
    if len(work.groups) > GROUPS_MAX or any(len(name) > DIGEST_CHARS_MAX for name in work.groups):
        yield f"its work names {len(work.groups)} groups, or one of too long a name"
    if len(work.params_json) > PARAMS_BYTES_MAX:
        yield f"its work's params have {len(work.params_json)} characters, more than {PARAMS_BYTES_MAX}"
    elif (wrong := _params_mistake(work)) is not None:
        yield f"its work's params are no JSON object: {wrong}"
    if len(offer.spec_json) > SPEC_CHARS_MAX:
        yield f"its run spec has {len(offer.spec_json)} characters, more than {SPEC_CHARS_MAX}"
    if not math.isfinite(offer.deadline_seconds) or not 0 <= offer.deadline_seconds <= DEADLINE_SECONDS_MAX:
        yield f"its deadline is in {offer.deadline_seconds!r} s, not 0 to {DEADLINE_SECONDS_MAX:.0f}"
    if offer.work.base.size_bytes > MODEL_BYTES_MAX:
        yield f"its model has {offer.work.base.size_bytes} bytes, more than {MODEL_BYTES_MAX}"
    if offer.cohort_size > COHORT_MAX:
        yield f"its cohort has {offer.cohort_size} peers, more than {COHORT_MAX}"


def params_of(work: Work) -> dict[str, Any]:
    """The schedule's params. Raises `ValueError` or `TypeError` for what is no object, or names options that are
    none."""
    found = json.loads(work.params_json or "{}")
    if not isinstance(found, dict) or not isinstance(found.get("options", {}), dict):
        raise TypeError(work.params_json[:40])
    return found


def _params_mistake(work: Work) -> str | None:
    try:
        params_of(work)
    except (ValueError, TypeError, RecursionError) as error:
        return str(error)
    return None


def _peer_of(offer: Assignment) -> str | None:
    """Whom an id "RUN.ROUND.PEER.ATTEMPT" names; None if it has another form."""
    prefix = f"{offer.run_id}."
    if not offer.assignment_id.startswith(prefix):
        return None
    round_, _, rest = offer.assignment_id.removeprefix(prefix).partition(".")
    peer, _, attempt = rest.rpartition(".")
    return peer if peer and round_.removeprefix("e").isdigit() and attempt.isdigit() else None


def plan_mistake(plan: PlanModelResponse, offer: Assignment) -> str:
    """What makes no sense in a plan, after which the version is fetched whole; empty if nothing."""
    if len(plan.deltas) > DELTAS_MAX:
        return f"it has {len(plan.deltas)} deltas, more than {DELTAS_MAX}"
    size = sum(delta.size_bytes for delta in plan.deltas)
    if plan.deltas and size > max(offer.work.base.size_bytes, BESIDE_BYTES_MIN):
        return f"its deltas have {size} bytes, the version has {offer.work.base.size_bytes}"
    if len(plan.groups) > GROUPS_MAX:
        return f"it has {len(plan.groups)} groups, more than {GROUPS_MAX}"
    groups = sum(group.size_bytes for group in plan.groups)
    if groups > (most := GROUPS_MAX * beside_bytes_max(offer)):
        return f"its groups have {groups} bytes, more than {most}"
    digests = [plan.base_digest, *(delta.digest for delta in plan.deltas)] if plan.deltas else []
    try:
        for digest in (*digests, *filter(None, (plan.scale_digest, plan.factor_digest))):
            checked_digest(digest)
        for group in plan.groups:
            checked_digest(group.digest)
    except MusterError as error:
        return error.message
    return ""


def beside_bytes_max(offer: Assignment) -> int:
    """Of a vector or factor that goes with the offer's base version, of which no size is told."""
    return max(2 * offer.work.base.size_bytes, BESIDE_BYTES_MIN)
